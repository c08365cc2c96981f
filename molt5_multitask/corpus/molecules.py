"""Molecules assembled from ring systems and substituents."""

import random
import re

from rdkit import Chem

from molt5_multitask.corpus.fragments import SCAFFOLDS, SUBSTITUENTS

# A position of a ring system: element, locant, digits of ring bonds.
_POSITION = re.compile(r"\[([A-Za-z])H2?:(\d)\](\d*)")


def assemble(rng: random.Random, *, ring_systems: int, substituents: int, most: int) -> Chem.Mol:
    """Put one to `most` substituents on a ring system.

    Args:
      rng: source of the choices.
      ring_systems: how many of the known ring systems are used.
      substituents: how many of the known substituents are used.
      most: largest number of them on a ring.
    """
    scaffold = rng.choice(list(SCAFFOLDS.values())[:ring_systems])
    groups = list(SUBSTITUENTS.values())[:substituents]
    places = rng.sample(_POSITION.findall(scaffold), rng.randint(1, most))
    chosen = {locant: f"({rng.choice(groups)})" for _, locant, _ in places}
    # "[nH]"-like atoms do not occur among the positions: a bare symbol takes its hydrogens itself.
    smiles = _POSITION.sub(lambda m: m[1] + m[3] + chosen.get(m[2], ""), scaffold)
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise ValueError(f"the assembled {smiles} is not a valid molecule")
    return mol
