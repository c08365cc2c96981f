"""How near the written molecules are to the expected ones, as MolT5's scripts define it.

BLEU, exact match, Levenshtein distance and validity are over all rows; the similarities are means
over the valid outputs only, so that a file of low validity looks better in them: they are never to
be read without the validity.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

from molt5_multitask import chem
from molt5_multitask.metrics.scores import Scores, mean, track
from molt5_multitask.metrics.text import bleu

CHUNK = 512
"""Molecules in one bulk call of RDKit: enough to keep its threads busy, few enough for a bar."""


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
    known: dict[str, Chem.Mol | None] = {}
    for smiles in track({*references, *outputs}, "reading SMILES", enabled=progress):
        known[smiles] = chem.parse(smiles)
    pairs = [(known[ref], known[out]) for ref, out in zip(references, outputs, strict=True)]
    exact = [same_inchi(ref, out) for ref, out in track(pairs, "exact match", enabled=progress)]
    distance = [Levenshtein.distance(*pair) for pair in zip(references, outputs, strict=True)]
    valid = [out is not None for _, out in pairs]
    per_row = {
        "exact": np.array(exact, np.float64),
        "Levenshtein": np.array(distance, np.float64),
        "validity": np.array(valid, np.float64),
        **similarities(pairs, progress=progress),
    }
    return Scores(
        values={
            "BLEU": bleu(references, outputs, orders=(4,))[4],
            **{name: mean(values) for name, values in per_row.items()},
        },
        counts={
            "rows": len(pairs),
            "valid outputs": sum(valid),
            "empty outputs": sum(not output for output in outputs),
            "unreadable references": sum(ref is None for ref, _ in pairs),
        },
        per_row=per_row,
    )


def same_inchi(a: Chem.Mol | None, b: Chem.Mol | None) -> bool:
    """Whether two molecules have the same InChI; not if it is empty, as for the empty molecule."""
    if a is None or b is None:
        return False
    # InChI holds the formula: where that differs, which is cheap to see, there is no need of it.
    if rdMolDescriptors.CalcMolFormula(a) != rdMolDescriptors.CalcMolFormula(b):
        return False
    key = chem.inchi(a)
    return key != "" and key == chem.inchi(b)


def same_fingerprints(a: Chem.Mol, b: Chem.Mol) -> bool:
    """Whether two molecules are known to have the same fingerprints, with some bit in each.

    MACCS, RDK and Morgan do not see stereochemistry. A bond sets a bit of RDK, a heteroatom one of
    MACCS; where neither is sure, two empty fingerprints might be compared, whose similarity is 0.
    """
    if a is b:
        plain = True
    elif rdMolDescriptors.CalcMolFormula(a) != rdMolDescriptors.CalcMolFormula(b):
        return False
    else:
        plain = _without_stereo(a) == _without_stereo(b)
    return plain and a.GetNumBonds() > 0 and rdMolDescriptors.CalcNumHeteroatoms(a) > 0


def _without_stereo(mol: Chem.Mol) -> str:
    copy = Chem.Mol(mol)
    Chem.RemoveStereochemistry(copy)
    return Chem.MolToSmiles(copy)


def similarities(
    pairs: Sequence[tuple[Chem.Mol | None, Chem.Mol | None]], *, progress: bool = False
) -> dict[str, np.ndarray]:
    """Tanimoto similarities "MACCS", "RDK" and "Morgan" by row; NaN where a molecule is missing."""
    valid = {row: (a, b) for row, (a, b) in enumerate(pairs) if a is not None and b is not None}
    other = {row: pair for row, pair in valid.items() if not same_fingerprints(*pair)}
    # The same object stands for the same SMILES, so that a repeated molecule is done once.
    mols: list[Any] = list({id(mol): mol for pair in other.values() for mol in pair}.values())
    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=2)
    rdk = rdFingerprintGenerator.GetRDKitFPGenerator()  # the defaults of Chem.RDKFingerprint

    def rdk_of(chunk: list[Any]) -> Any:
        return rdk.GetFingerprints(chunk, numThreads=os.cpu_count() or 1)

    # The paths of RDK are as costly as all else; its bulk call leaves Python free meanwhile.
    with ThreadPoolExecutor(1) as pool:
        later: list[Future[Any]] = [
            pool.submit(rdk_of, mols[i : i + CHUNK]) for i in range(0, len(mols), CHUNK)
        ]
        prints = {
            id(mol): {
                "MACCS": rdMolDescriptors.GetMACCSKeysFingerprint(mol),
                "Morgan": morgan.GetSparseCountFingerprint(mol),
            }
            for mol in track(mols, "MACCS and Morgan", enabled=progress)
        }
        done = (fp for future in track(later, "RDK", enabled=progress) for fp in future.result())
        for mol, fingerprint in zip(mols, done, strict=True):
            prints[id(mol)]["RDK"] = fingerprint

    def of(name: str) -> np.ndarray:
        values = np.full(len(pairs), np.nan)
        values[list(valid)] = 1.0
        for row, (a, b) in other.items():
            values[row] = DataStructs.TanimotoSimilarity(prints[id(a)][name], prints[id(b)][name])
        return values

    return {name: of(name) for name in ("MACCS", "RDK", "Morgan")}
