"""Text2Mol, the cosine of text and molecule embeddings: a plug-in, for its weights are not ours.

MolT5 reports it from a model of Edwards et al. (2021), whose weights are not to be had. Whoever has
them, or another model of the kind, gives it as a `Text2Mol`.
"""

import importlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from molt5_multitask import chem
from molt5_multitask.metrics.scores import Scores, UnavailableError, mean

NEEDS = (
    "needs a model of your own (its weights are not public): --text2mol MODULE:NAME with a "
    "`name` that, called with texts and SMILES, returns their cosines"
)


class Text2Mol(Protocol):
    """Judges how well texts and molecules fit."""

    @property
    def name(self) -> str:
        """What the table calls the model."""
        ...

    def __call__(self, texts: Sequence[str], smiles: Sequence[str]) -> Float[np.ndarray, " rows"]:
        """Return the cosine of the embeddings of each text and the molecule beside it."""
        ...


def load_text2mol(where: str) -> Text2Mol:
    """Import a plug-in, given as `module:name`.

    Raises:
      ValueError: if there is no such module or name.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--text2mol {where}: {error}; it must be MODULE:NAME") from error


def text2mol_scores(
    texts: Sequence[str] | None, smiles: Sequence[str] | None, model: Text2Mol | None
) -> Scores:
    """Mean cosine "Text2Mol" of texts and molecules, one of which was written by the model.

    Rows whose SMILES is not valid are left out, as MolT5 does.

    Raises:
      UnavailableError: if there is no model, or the inputs are not known.
    """
    if model is None:
        raise UnavailableError(NEEDS)
    if texts is None or smiles is None:
        raise UnavailableError("needs the inputs: a column `input`, `SMILES` or `description`")
    rows = [row for row, molecule in enumerate(smiles) if chem.is_valid(molecule)]
    cosines = model([texts[row] for row in rows], [smiles[row] for row in rows])
    return Scores(values={"Text2Mol": mean(cosines)}, notes={"model of Text2Mol": model.name})
