"""Captions computed from the structure of a molecule: ring system, substituents, groups, atoms."""

import functools
from collections import Counter

from rdkit import Chem

from molt5_multitask.corpus.fragments import SCAFFOLDS, SUBSTITUENTS

_GROUPS = {
    "a carboxylic acid": "[CX3](=O)[OX2H1]",
    "an ester": "[CX3](=O)[OX2][#6]",
    "an amide": "[CX3](=O)[NX3]",
    "a ketone": "[#6][CX3](=O)[#6]",
    "an aldehyde": "[CX3H1](=O)[#6]",
    "a sulfone": "[SX4](=O)(=O)([#6])[#6]",
    "a nitro compound": "[NX3+](=O)[O-]",
    "a nitrile": "C#N",
    "an alcohol": "[CX4][OX2H1]",
    "a phenol": "c[OX2H1]",
    "an ether": "[OX2;!$(OC=O);!r]([#6])[#6]",
    "a thioether": "[SX2;!r]([#6])[#6]",
    "an amine": "[NX3;!$(NC=O);!$([N+])]",
    "an organohalogen": "[F,Cl,Br,I][#6]",
    "an alkene": "[CX3;!$(C=O)]=[CX3]",
}
_ATOMS = {7: "nitrogen", 8: "oxygen", 16: "sulfur", 9: "fluorine", 17: "chlorine", 35: "bromine"}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@functools.cache
def _queries() -> dict[str, Chem.Mol]:
    return {name: Chem.MolFromSmarts(smarts) for name, smarts in _GROUPS.items()}


@functools.cache
def _cores() -> list[tuple[str, Chem.Mol, list[int]]]:
    """Return name, query and locants (0 where nothing can stand) of each ring system.

    Fused systems come first, then those with most heteroatoms: a benzene lies within a quinoline.
    """
    cores = []
    for name, smiles in SCAFFOLDS.items():
        mol = Chem.MolFromSmiles(smiles)
        locants = [atom.GetAtomMapNum() for atom in mol.GetAtoms()]
        for atom in mol.GetAtoms():
            atom.SetAtomMapNum(0)
            atom.SetNoImplicit(False)
            atom.SetNumExplicitHs(0)
        cores.append((name, mol, locants))
    return sorted(
        cores,
        key=lambda c: (-c[1].GetNumAtoms(), sum(a.GetSymbol() == "C" for a in c[1].GetAtoms())),
    )


@functools.cache
def _names() -> dict[str, str]:
    """Return the name of each substituent by its canonical SMILES with an attachment point."""
    return {Chem.CanonSmiles("*" + smiles): name for name, smiles in SUBSTITUENTS.items()}


def substituents(mol: Chem.Mol) -> tuple[str, list[tuple[int, str]]]:
    """Name the ring system of a molecule and what stands on it, with the lowest locants.

    Returns:
      The name of the ring system, and (locant, name) of each substituent in rising order.

    Raises:
      ValueError: for a molecule that holds another ring system, or a substituent without a name.
    """
    for name, core, locants in _cores():
        if not (matches := mol.GetSubstructMatches(core, uniquify=False)):
            continue
        chains = Chem.ReplaceCore(mol, core, matches[0], labelByIndex=True)
        placed = []
        for chain in Chem.GetMolFrags(chains, asMols=True):
            dummy = next(a for a in chain.GetAtoms() if a.GetAtomicNum() == 0)
            atom = matches[0][dummy.GetIsotope()]
            dummy.SetIsotope(0)
            smiles = Chem.MolToSmiles(chain)
            if smiles not in _names():
                raise ValueError(f"the substituent {smiles} has no name")
            placed.append((atom, _names()[smiles]))
        numberings = [
            sorted((locants[match.index(atom)], group) for atom, group in placed)
            for match in matches
        ]
        return name, min(numberings, key=lambda n: ([locant for locant, _ in n], n))
    raise ValueError(f"{Chem.MolToSmiles(mol)} holds none of the known ring systems")


def groups(mol: Chem.Mol) -> list[str]:
    """Name the functional groups of a molecule."""
    return [name for name, query in _queries().items() if mol.HasSubstructMatch(query)]


def _enumerate(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _article(name: str) -> str:
    return ("an " if name.lstrip("(")[0] in "aeiouE" else "a ") + name


def caption(mol: Chem.Mol) -> str:
    """Describe a molecule: its ring system and substituents, its groups and its heteroatoms.

    The wording depends on the structure, so that it can be learned and still varies.
    """
    ring, placed = substituents(mol)
    parts = [f"{_article(group)} group at position {locant}" for locant, group in placed]
    verb = ("bearing", "substituted by", "that carries")[len(placed) % 3]
    text = f"The molecule is {_article(ring)} {verb} {_enumerate(parts)}."
    if found := groups(mol):
        opening = "It belongs to the class of" if len(found) == 1 else "It is"
        classes = found[0].split(" ", 1)[1] + "s" if len(found) == 1 else _enumerate(found)
        text += f" {opening} {classes}."
    atoms = Counter(atom.GetAtomicNum() for atom in mol.GetAtoms())
    counts = [
        f"{_NUMBERS[atoms[number]]} {symbol} atom{'s' if atoms[number] > 1 else ''}"
        for number, symbol in _ATOMS.items()
        if atoms[number]
    ]
    if counts:
        text += f" It contains {_enumerate(counts)}."
    return text
