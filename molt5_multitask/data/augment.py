"""SMILES augmentation: the same molecules written in another order of their atoms."""

import random

from rdkit import Chem

from molt5_multitask import chem
from molt5_multitask.tasks import Kind


def randomise(text: str, kind: Kind, seed: int) -> str:
    """Rewrite a molecule, or the compounds of a reaction in another order, by a seed alone.

    Args:
      text: a valid SMILES or reaction; compounds of several fragments are left as they are, since
        their `~` has no place in a rewritten SMILES.
      kind: what it is; text and actions are returned as they are.
      seed: nonnegative, below 2^31.

    Returns:
      A SMILES of the same molecule, or a reaction side of the same compounds.
    """
    if kind == "smiles":
        return _rewrite(text, seed)
    if kind == "reaction":
        compounds = text.split(".")
        random.Random(seed).shuffle(compounds)
        return ".".join(c if "~" in c else _rewrite(c, seed) for c in compounds)
    return text


def _rewrite(smiles: str, seed: int) -> str:
    mol = chem.parse(smiles)
    if mol is None:
        raise ValueError(f"{smiles!r} is not a valid SMILES")
    (text,) = Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)
    return text
