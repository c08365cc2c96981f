"""How near the written molecules are to the expected ones, as MolT5's scripts define it.

BLEU, exact match, Levenshtein distance and validity are over all rows; the similarities are means
over the valid outputs only, so that a file of low validity looks better in them: they are never to
be read without the validity.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

from molt5_multitask import chem
from molt5_multitask.metrics.scores import Scores, mean, track
from molt5_multitask.metrics.text import bleu

CHUNK = 128
"""Rows that are handled at a time: while Python does one chunk, RDKit's threads do the last."""
Pair = tuple[Chem.Mol | None, Chem.Mol | None]
"""Reference and output; None where RDKit cannot read it."""


def molecule_scores(
    references: Sequence[str], outputs: Sequence[str], *, progress: bool = False
) -> Scores:
    """Score SMILES, or the `.`-joined SMILES of a reaction, against one reference a row.

    Args:
      references: expected SMILES, with single backslashes.
      outputs: written SMILES, the first of each row.
      progress: show progress bars.

    Returns:
      "BLEU" (4-grams of characters), "exact" (equal InChI, not empty), "Levenshtein" (characters),
      "validity" (an empty output is a valid empty molecule), and "MACCS", "RDK" and "Morgan": mean
      Tanimoto similarities of the valid rows, NaN if there is none. The Morgan fingerprint is
      the unfolded count of radius 2. A reference that RDKit cannot read is counted, matches
      nothing and is left out of the similarities.
    """
    rows = list(zip(references, outputs, strict=True))
    read = functools.cache(chem.parse)  # one object, and one fingerprint, for each SMILES
    pairs: list[Pair] = []
    exact: list[bool] = []
    alike: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        fingerprints = Fingerprints(pool)
        for start in track(range(0, len(rows), CHUNK), "molecules", enabled=progress):
            chunk = [(read(ref), read(out)) for ref, out in rows[start : start + CHUNK]]
            same = [same_fingerprints(*pair) for pair in chunk]
            different = [pair for pair, known in zip(chunk, same, strict=True) if not known]
            fingerprints.add(mol for a, b in different if a and b for mol in (a, b))
            exact += [same_inchi(*pair) for pair in chunk]
            alike += same
            pairs += chunk

    def similarity(name: str) -> list[float]:
        return [
            1.0 if known else fingerprints.tanimoto(name, a, b) if a and b else np.nan
            for (a, b), known in zip(pairs, alike, strict=True)
        ]

    columns: dict[str, list[Any]] = {
        "exact": exact,
        "Levenshtein": [Levenshtein.distance(*row) for row in rows],
        "validity": [out is not None for _, out in pairs],
        **{name: similarity(name) for name in ("MACCS", "RDK", "Morgan")},
    }
    per_row = {name: np.array(column, np.float64) for name, column in columns.items()}
    return Scores(
        values={
            "BLEU": bleu(references, outputs, orders=(4,))[4],
            **{name: mean(values) for name, values in per_row.items()},
        },
        counts={
            "rows": len(rows),
            "valid outputs": sum(out is not None for _, out in pairs),
            "empty outputs": sum(not output for output in outputs),
            "unreadable references": sum(ref is None for ref, _ in pairs),
        },
        per_row=per_row,
    )


def same_inchi(a: Chem.Mol | None, b: Chem.Mol | None) -> bool:
    """Whether two molecules have the same InChI; not if it is empty, as for the empty molecule."""
    if a is None or b is None or not _same_formula(a, b):  # InChI holds the formula
        return False
    key = chem.inchi(a)
    return key != "" and key == chem.inchi(b)


def same_fingerprints(a: Chem.Mol | None, b: Chem.Mol | None) -> bool:
    """Whether two molecules are known to have the same fingerprints, with some bit in each.

    MACCS, RDK and Morgan do not see stereochemistry. A bond sets a bit of RDK, a heteroatom one of
    MACCS; where neither is sure, two empty fingerprints might be compared, whose similarity is 0.
    """
    if a is None or b is None or not _same_formula(a, b):
        return False
    some = a.GetNumBonds() > 0 and rdMolDescriptors.CalcNumHeteroatoms(a) > 0
    return some and (a is b or _without_stereo(a) == _without_stereo(b))


def _same_formula(a: Chem.Mol, b: Chem.Mol) -> bool:
    """Whether two molecules may be equal: much cheaper to see than InChI or SMILES."""
    return rdMolDescriptors.CalcMolFormula(a) == rdMolDescriptors.CalcMolFormula(b)


def _without_stereo(mol: Chem.Mol) -> str:
    copy = Chem.Mol(mol)
    Chem.RemoveStereochemistry(copy)
    return Chem.MolToSmiles(copy)


class Fingerprints:
    """MACCS, RDK and Morgan fingerprints of molecules, each computed once.

    Those of RDK, all paths up to seven bonds, cost as much as all else. RDKit's bulk calls, which
    MACCS lacks, do not hold Python, so the others are made in the background.
    """

    def __init__(self, pool: Executor) -> None:
        """Use a pool of one thread for the bulk calls."""
        self._pool = pool
        rdk = rdFingerprintGenerator.GetRDKitFPGenerator()  # defaults of Chem.RDKFingerprint
        morgan = rdFingerprintGenerator.GetMorganGenerator(radius=2)
        self._bulk = {"RDK": rdk.GetFingerprints, "Morgan": morgan.GetSparseCountFingerprints}
        self._mols: dict[int, Chem.Mol] = {}
        self._found: dict[str, dict[int, Any]] = {"MACCS": {}, "RDK": {}, "Morgan": {}}
        self._later: list[tuple[str, list[int], Future[Any]]] = []

    def add(self, mols: Iterable[Chem.Mol]) -> None:
        """Make the fingerprints of molecules that have none yet; a molecule is its object."""
        new = {id(mol): mol for mol in mols if id(mol) not in self._mols}
        if not new:
            return
        self._mols |= new
        threads = max(1, (os.cpu_count() or 1) - 1)  # Python needs the other
        for name, bulk in self._bulk.items():
            future = self._pool.submit(bulk, list(new.values()), numThreads=threads)
            self._later.append((name, list(new), future))
        for key, mol in new.items():
            self._found["MACCS"][key] = rdMolDescriptors.GetMACCSKeysFingerprint(mol)

    def tanimoto(self, name: str, a: Chem.Mol, b: Chem.Mol) -> float:
        """Return the similarity of two molecules that were added."""
        while self._later:
            kind, keys, future = self._later.pop()
            self._found[kind].update(zip(keys, future.result(), strict=True))
        found = self._found[name]
        return DataStructs.TanimotoSimilarity(found[id(a)], found[id(b)])
