"""Reactions of building blocks by real reaction SMARTS, written as IBM RXN writes them.

That convention: molecules are canonical, sorted and joined by `.`; the fragments of one compound
are joined by `~`; reagents and solvents stand among the precursors.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rdkit import Chem
from rdkit.Chem import rdChemReactions

from molt5_multitask.corpus.fragments import ALKYLS, ARYLS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reaction:
    """One reaction class."""

    name: str
    """Its usual name."""
    smarts: str
    """Reaction SMARTS of the transformation."""
    blocks: tuple[str, ...]
    """Building blocks, one a reactant: a SMILES in which {ar} stands for an aromatic group and
    {alk} for an aliphatic one."""
    reagents: str
    """Reagents and solvents as one `.`-joined string."""


REACTIONS = (
    Reaction(
        name="amide coupling",
        smarts="[CX3:1](=[O:2])[OX2H1].[NX3;H2:3]>>[C:1](=[O:2])[N:3]",
        blocks=("OC(=O){ar}", "N{alk}"),
        reagents="CCN=C=NCCCN(C)C.ClCCl",
    ),
    Reaction(
        name="esterification",
        smarts="[CX3:1](=[O:2])[OX2H1].[CX4:3][OX2H1:4]>>[C:1](=[O:2])[O:4][C:3]",
        blocks=("OC(=O){ar}", "O{alk}"),
        reagents="Cc1ccccc1.O=S(=O)(O)O",
    ),
    Reaction(
        name="Suzuki coupling",
        smarts="[c:1][Br].[c:2]B(O)O>>[c:1][c:2]",
        blocks=("Br{ar}", "OB(O){ar}"),
        reagents="C1COCCO1.O.O=C([O-])[O-]~[K+]~[K+]",
    ),
    Reaction(
        name="reductive amination",
        smarts="[c:1][CX3H1:2]=O.[NX3;H2:3]>>[c:1][C:2][N:3]",
        blocks=("O=C{ar}", "N{alk}"),
        reagents="CC(=O)O.CO.[BH3-]C#N~[Na+]",
    ),
    Reaction(
        name="Buchwald-Hartwig amination",
        smarts="[c:1][Br].[NX3;H2:2]>>[c:1][N:2]",
        blocks=("Br{ar}", "N{alk}"),
        reagents="CC(C)(C)[O-]~[Na+].Cc1ccccc1",
    ),
    Reaction(
        name="nucleophilic aromatic substitution",
        smarts="[c:1]([F])[c:2][N+:3](=[O:4])[O-:5].[NX3;H2:6]>>[c:1]([N:6])[c:2][N+:3](=[O:4])[O-:5]",
        blocks=("[O-][N+](=O)c9ccc({ar})cc9F", "N{alk}"),
        reagents="CCN(C(C)C)C(C)C.CS(C)=O",
    ),
    Reaction(
        name="Williamson ether synthesis",
        smarts="[c:1][OX2H1:2].[CX4:3][Br]>>[c:1][O:2][C:3]",
        blocks=("O{ar}", "BrC{alk}"),
        reagents="CN(C)C=O.O=C([O-])[O-]~[Cs+]~[Cs+]",
    ),
    Reaction(
        name="sulfonamide formation",
        smarts="[SX4:1](=[O:2])(=[O:3])Cl.[NX3;H2:4]>>[S:1](=[O:2])(=[O:3])[N:4]",
        blocks=("ClS(=O)(=O){ar}", "N{alk}"),
        reagents="ClCCl.c1ccncc1",
    ),
    Reaction(
        name="urea formation",
        smarts="[N:1]=[C:2]=[O:3].[NX3;H2:4]>>[N:1][C:2](=[O:3])[N:4]",
        blocks=("O=C=N{ar}", "N{alk}"),
        reagents="C1CCOC1",
    ),
    Reaction(
        name="Boc removal",
        smarts="[N:1]C(=O)OC(C)(C)C>>[N:1]",
        blocks=("CC(C)(C)OC(=O)NC({alk}){ar}",),
        reagents="ClCCl.O=C(O)C(F)(F)F",
    ),
    Reaction(
        name="Boc protection",
        smarts="[NX3;H2:1].[C:2](=[O:3])([O:4][C:5])OC(=O)OC(C)(C)C>>[N:1][C:2](=[O:3])[O:4][C:5]",
        blocks=("NC({alk}){ar}", "CC(C)(C)OC(=O)OC(=O)OC(C)(C)C"),
        reagents="C1CCOC1.CCN(CC)CC",
    ),
    Reaction(
        name="nitro reduction",
        smarts="[c:1][N+](=O)[O-]>>[c:1]N",
        blocks=("[O-][N+](=O)c9ccc({ar})cc9O{alk}",),
        reagents="CCO.[Cl-]~[NH4+].[Fe]",
    ),
    Reaction(
        name="ester hydrolysis",
        smarts="[CX3:1](=[O:2])[OX2][CH3]>>[C:1](=[O:2])O",
        blocks=("COC(=O)C({alk}){ar}",),
        reagents="CO.O.[Li+]~[OH-]",
    ),
    Reaction(
        name="azide-alkyne cycloaddition",
        smarts="[C:1]#[CH1:2].[N:3]=[N+:4]=[N-:5]>>[c:1]1[c:2][n:3][n+0:4][n-0:5]1",
        blocks=("C#C{ar}", "[N-]=[N+]=NC{alk}"),
        reagents="CC(C)(C)O.O.O=S(=O)([O-])[O-]~[Cu+2]",
    ),
    Reaction(
        name="ketone reduction",
        smarts="[c:1][CX3:2](=[O:3])[#6:4]>>[c:1][C:2]([O:3])[#6:4]",
        blocks=("O=C({alk}){ar}",),
        reagents="CO.[BH4-]~[Na+]",
    ),
    Reaction(
        name="Heck reaction",
        smarts="[c:1][Br].[CH2:2]=[CH1:3][C:4](=[O:5])[O:6]>>[c:1]/[C:2]=[C:3]/[C:4](=[O:5])[O:6]",
        blocks=("Br{ar}", "C=CC(=O)O{alk}"),
        reagents="CC(=O)[O-]~CC(=O)[O-]~[Pd+2].CCN(CC)CC.CN(C)C=O",
    ),
)
"""The reaction classes of the corpus."""


class Pair(NamedTuple):
    """One reaction."""

    precursors: str
    """Reactants and reagents."""
    product: str
    """Canonical SMILES of the product."""
    name: str
    """Name of the reaction class."""


def react(reaction: Reaction, reactants: Sequence[str]) -> str:
    """Return the canonical SMILES of the product.

    Raises:
      ValueError: if the reactants do not react to exactly one product that sanitises.
    """
    mols = [_molecule(smiles) for smiles in reactants]
    products = set()
    for (mol,) in _transformation(reaction.smarts).RunReactants(mols):
        Chem.SanitizeMol(mol)
        # The product inherits hydrogen counts from the template: read it once more.
        products.add(Chem.CanonSmiles(Chem.MolToSmiles(mol)))
    if len(products) != 1:
        raise ValueError(f"{reaction.name} of {reactants} gives {sorted(products)}")
    return products.pop()


def draw(rng: random.Random, *, groups: int, classes: int) -> Iterator[Pair]:
    """Yield reactions of building blocks in random order, until all combinations are used up.

    Args:
      rng: source of the order.
      groups: how many of the aromatic and of the aliphatic groups are used.
      classes: how many of the reaction classes are used.
    """
    used = REACTIONS[:classes]
    combinations = [
        (reaction, reactants) for reaction in used for reactants in _combinations(reaction, groups)
    ]
    rng.shuffle(combinations)
    for reaction, reactants in combinations:
        precursors = [*map(_canonical, reactants), *reaction.reagents.split(".")]
        yield Pair(".".join(sorted(precursors)), react(reaction, reactants), reaction.name)


def _combinations(reaction: Reaction, groups: int) -> Iterator[tuple[str, ...]]:
    """Yield the reactants for every choice of groups."""
    blocks = [
        [
            block.replace("{ar}", ar).replace("{alk}", alk)
            for ar in (ARYLS[:groups] if "{ar}" in block else ("",))
            for alk in (ALKYLS[:groups] if "{alk}" in block else ("",))
        ]
        for block in reaction.blocks
    ]
    return itertools.product(*blocks)


@functools.cache
def _transformation(smarts: str) -> rdChemReactions.ChemicalReaction:
    return rdChemReactions.ReactionFromSmarts(smarts)


@functools.lru_cache(maxsize=4096)
def _molecule(smiles: str) -> Chem.Mol:
    return Chem.MolFromSmiles(smiles)


@functools.lru_cache(maxsize=4096)
def _canonical(smiles: str) -> str:
    return Chem.MolToSmiles(_molecule(smiles))
