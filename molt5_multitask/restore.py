r"""Characters that the T5 vocabulary cannot write, put back after decoding.

The vocabulary has no `\` and no `~`: both come out as the unknown piece. What it stands for depends
on the kind of the output: in a SMILES it is `\`, the geometry of a double bond; in a reaction it
may also be `~`, which joins the fragments of one compound. In prose it may be anything and is left.
"""

import itertools

from rdkit import Chem

from molt5_multitask import chem
from molt5_multitask.tasks import Kind

UNKNOWN = "<unk>"
"""How the tokenizer decodes the unknown piece."""

MAX_SEARCHED_MARKS = 8
"""More marks than this in one compound are all taken for `\\`: no salt has as many fragments."""


def restore(text: str, kind: Kind) -> str:
    """Replace each unknown piece of a decoded output by the character that it stands for."""
    if kind == "smiles":
        return text.replace(UNKNOWN, "\\")
    if kind == "reaction":
        return ".".join(_restore_compound(compound) for compound in text.split("."))
    return text


def _restore_compound(compound: str) -> str:
    r"""Choose between `\` and `~` for each mark of one compound.

    Of all assignments the one in which RDKit finds most double bonds with defined geometry, and of
    several such the one with most `~`. Compounds do not influence each other, so that searching
    them one by one finds what searching the whole reaction would.
    """
    pieces = compound.split(UNKNOWN)
    marks = len(pieces) - 1
    if not marks:
        return compound
    if marks > MAX_SEARCHED_MARKS:
        return "\\".join(pieces)
    candidates = [
        "".join(itertools.chain.from_iterable(zip(pieces, (*signs, ""), strict=True)))
        for signs in itertools.product("~\\", repeat=marks)
    ]
    return max(candidates, key=lambda c: (_defined_double_bonds(c), c.count("~")))


def _defined_double_bonds(smiles: str) -> int:
    """Count the double bonds with defined geometry; -1 for a string that RDKit does not read."""
    mol = chem.parse(smiles)
    if mol is None:
        return -1
    return sum(bond.GetStereo() > Chem.BondStereo.STEREOANY for bond in mol.GetBonds())
