"""Accuracies of reaction prediction: top-k, largest fragment, round trip.

A side of a reaction is a set of molecules (`chem.molecules`): their order, their atom maps and the
`~` between fragments of a compound do not matter. Every accuracy is over all rows; duplicate and
invalid beams keep their rank.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np

from molt5_multitask import chem
from molt5_multitask.metrics.scores import Scores, UnavailableError, track

RANKS = (1, 3, 5, 10)
"""The k of the top-k accuracies, as far as there are so many beams."""


class ForwardModel(Protocol):
    """Predicts products, for the round trip."""

    @property
    def name(self) -> str:
        """What the table calls it: the accuracy depends on it."""
        ...

    def __call__(self, precursors: Sequence[str]) -> Sequence[str]:
        """Return the product of each set of `.`-joined precursors."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedForward:
    """A forward model whose predictions have been written down."""

    name: str
    """Name of the model."""
    products: Mapping[str, str]
    """Predicted product by precursors, as they stand in the predictions that are scored."""

    def __call__(self, precursors: Sequence[str]) -> list[str]:
        """Look the products up.

        Raises:
          ValueError: if there is no prediction for some of them.
        """
        lost = [text for text in precursors if text not in self.products]
        if lost:
            raise ValueError(
                f"the forward predictions of {self.name} lack {len(lost):,} of "
                f"{len(precursors):,} inputs, among them {lost[0]!r}: predict every output"
            )
        return [self.products[text] for text in precursors]


def reaction_scores(
    references: Sequence[str],
    beams: Sequence[Sequence[str]],
    *,
    ranks: Sequence[int] = RANKS,
    progress: bool = False,
) -> Scores:
    """Accuracies of the best beams of each row against its reference.

    Args:
      references: expected side of the reaction by row; one that RDKit cannot read is never hit.
      beams: written sides by row, best first, the same number in each row.
      ranks: the k of the accuracies; those above the number of beams are left out.
      progress: show a progress bar.

    Returns:
      "top-k" (the set of molecules is among the first k beams), and "MaxFrag top-k" (its largest
      molecule is).
    """
    read = functools.cache(chem.molecules)
    rows = list(zip(references, beams, strict=True))
    sets, fragments = [], []
    for reference, outputs in track(rows, "reaction accuracy", enabled=progress):
        sets.append(_rank(reference, outputs, read))
        fragments.append(_rank(reference, outputs, lambda text: chem.largest(read(text) or ())))
    width = min((len(outputs) for outputs in beams), default=0)
    return Scores(
        values={
            **_accuracies("top", sets, ranks, width),
            **_accuracies("MaxFrag top", fragments, ranks, width),
        }
    )


def round_trip_scores(
    products: Sequence[str] | None,
    beams: Sequence[Sequence[str]],
    forward: ForwardModel | None,
    *,
    ranks: Sequence[int] = RANKS,
    progress: bool = False,
) -> Scores:
    """Share of the rows in which a forward model leads from the written precursors to the product.

    Args:
      products: the molecules that retrosynthesis was asked for.
      beams: written precursors by row, best first, the same number in each row.
      forward: the forward model; asked once for each different beam that RDKit can read.
      ranks: the k of the accuracies.
      progress: show a progress bar.

    Returns:
      "round trip top-k": for one of the first k beams, the product set is that asked for.

    Raises:
      UnavailableError: if there is no forward model, or the products are not known.
    """
    if forward is None:
        raise UnavailableError("needs a forward model: --forward_predictions and --forward_model")
    if products is None:
        raise UnavailableError("needs the inputs: a column `input` with the products")
    read = functools.cache(chem.molecules)
    asked = list({beam: None for outputs in beams for beam in outputs if read(beam)})
    found = dict(zip(asked, forward(asked), strict=True))
    rows = list(zip(products, beams, strict=True))
    hits = [
        _rank(product, [found.get(beam, "") for beam in outputs], read)
        for product, outputs in track(rows, "round trip", enabled=progress)
    ]
    width = min((len(outputs) for outputs in beams), default=0)
    return Scores(
        values=_accuracies("round trip top", hits, ranks, width),
        notes={"forward model of the round trip": forward.name},
    )


def _rank(reference: str, beams: Sequence[str], read: Callable[[str], Hashable | None]) -> float:
    """Rank (from 1) of the first beam that reads as the reference; infinite if none does."""
    wanted = read(reference)
    if wanted:
        for rank, beam in enumerate(beams, 1):
            if read(beam) == wanted:
                return rank
    return np.inf


def _accuracies(
    name: str, hits: Sequence[float], ranks: Sequence[int], width: int
) -> dict[str, float]:
    found = np.array(hits)
    return {f"{name}-{k}": float(np.mean(found <= k)) for k in ranks if k <= width}
