r"""What the tasks need of RDKit: quiet parsing, canonical forms, molecule sets, backslashes.

Two conventions of the data are met here and nowhere else:

- Fragments of one compound in a reaction are joined by `~` (`[Na+]~[OH-]`). RDKit would read it as
  a bond of unspecified order, so every function here treats it as `.`.
- The ChEBI-20 files write the backslash of a double bond twice, MolT5's prediction files once.
  Inside the code a SMILES has single backslashes: `single_backslashes` is called once, on load.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from rdkit import Chem, rdBase

BackslashForm = Literal["none", "single", "doubled"]

HEAVY_ATOM = re.compile(r"\[(?!\d*(?:\*|H[+-]?\d*\]))[^]]+\]|Br|Cl|[BCNOPSFIbcnops]")
"""Atoms of a SMILES: the organic subset, and what stands in brackets but hydrogens and dummies."""


def parse(smiles: str) -> Chem.Mol | None:
    """Read a SMILES and sanitise it, without log lines; None if it is not valid.

    The empty string is the empty molecule, as RDKit has it.
    """
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles.replace("~", "."))


def is_valid(smiles: str) -> bool:
    """Whether RDKit reads the SMILES; the empty string counts as valid."""
    return parse(smiles) is not None


def canonical(smiles: str, *, stereo: bool = True) -> str | None:
    """Return RDKit's canonical SMILES, or None if the input is not valid."""
    mol = parse(smiles)
    return None if mol is None else Chem.MolToSmiles(mol, isomericSmiles=stereo)


def inchi(mol: Chem.Mol) -> str:
    """Return the standard InChI; empty if there is none, as for the empty molecule."""
    with rdBase.BlockLogs():
        return Chem.MolToInchi(mol)


def molecules(side: str) -> frozenset[str] | None:
    """Return the canonical SMILES of the molecules in one side of a reaction.

    Atom map numbers are removed. The set is empty for the empty string.

    Returns:
      The set, in which a molecule that is written twice stands once; None if the side is not valid,
      which here includes text after a space: RDKit alone would pass over it as a name.
    """
    mol = None if len(side.split()) > 1 else parse(side)
    if mol is None:
        return None
    if ":" in side:
        for atom in mol.GetAtoms():
            atom.SetAtomMapNum(0)
        # A mapped explicit hydrogen, or bracket, may now be implicit: read it once more.
        mol = parse(Chem.MolToSmiles(mol))
    text = "" if mol is None else Chem.MolToSmiles(mol)
    return frozenset(text.split(".")) - {""}


def largest(found: Iterable[str]) -> str | None:
    """Return the molecule with most heavy atoms of canonical SMILES; None if there is none.

    Of several with the same number, the last in alphabetical order: any fixed rule would do.
    """
    return max(found, key=lambda smiles: (len(HEAVY_ATOM.findall(smiles)), smiles), default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backslashes:
    """How the backslashes of a column of SMILES are written."""

    form: BackslashForm
    """Form of the column: that of most runs of backslashes."""
    single: int
    """Runs of an odd number of backslashes; in a single-form column, all of them."""
    doubled: int
    """Runs of an even number of backslashes; in a doubled-form column, all of them."""


def backslashes(smiles: Iterable[str]) -> Backslashes:
    r"""Find out in which form a whole column is written.

    No valid SMILES holds two bonds in a row, so `\\` can only be one backslash written twice. A
    column is judged as a whole, because a model's output may be anything in single rows.
    """
    single = doubled = 0
    for text in smiles:
        for run in re.findall(r"\\+", text):
            if len(run) % 2:
                single += 1
            else:
                doubled += 1
    form: BackslashForm = "none"
    if single or doubled:
        form = "doubled" if doubled > single else "single"
    return Backslashes(form=form, single=single, doubled=doubled)


def single_backslashes(
    smiles: Sequence[str], *, form: BackslashForm | None = None
) -> tuple[list[str], Backslashes]:
    r"""Bring a column of SMILES to single backslashes, once, on load.

    Args:
      smiles: the column.
      form: how it is written; found out from the column if None. Only where it is "doubled", each
        `\\` becomes one backslash.

    Returns:
      The column with single backslashes, and what was found in it, for the report.
    """
    found = backslashes(smiles)
    if (form or found.form) == "doubled":
        return [text.replace("\\\\", "\\") for text in smiles], found
    return list(smiles), found
