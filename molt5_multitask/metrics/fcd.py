"""Fréchet ChemNet distance: an optional extra, because its packages bring torch and weights."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from molt5_multitask import chem
from molt5_multitask.metrics.scores import Scores, UnavailableError, track

LENGTH = 350
"""Characters that ChemNet was trained on: longer SMILES are cut, shorter ones padded."""
BATCH = 256


def fcd_scores(
    references: Sequence[str], outputs: Sequence[str], *, progress: bool = False
) -> Scores:
    r"""Fréchet ChemNet distance "FCD" of two sets of molecules (Preuer et al., 2018).

    .. math:: |m_1 - m_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

    with mean and covariance of the activations of the canonical SMILES. What is not valid, and the
    empty molecule, are left out.

    Raises:
      UnavailableError: if the extra `fcd` is not installed, or fewer than two molecules are left.
    """
    for package in ("torch", "fcd_torch"):
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(f"needs the package {package}: pip install '.[fcd]'")
    sides = [
        [text for smiles in side if (text := chem.canonical(smiles))]
        for side in (references, outputs)
    ]
    if min(map(len, sides)) < 2:
        raise UnavailableError("needs two valid molecules at least among references and outputs")
    (m1, c1), (m2, c2) = (
        (a.mean(0), np.cov(a, rowvar=False))
        for a in activations(sides[0] + sides[1], len(sides[0]), progress=progress)
    )
    distance = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2) - 2 * trace_of_root(c1, c2)
    return Scores(values={"FCD": float(distance)})


def trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    """Trace of the square root of A B, for symmetric positive semi-definite A and B.

    A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2), and these are accurate.
    """
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = np.linalg.eigvalsh(root @ b @ root)
    return float(np.sqrt(np.clip(product, 0, None)).sum())


def activations(smiles: Sequence[str], split: int, *, progress: bool) -> list[np.ndarray]:
    """Return ChemNet's last hidden layer of the first `split` SMILES and of the others."""
    import fcd_torch  # an extra, which brings torch
    import torch
    from fcd_torch.utils import get_one_hot

    model: Any = fcd_torch.FCD().model
    parts = []
    with torch.no_grad():
        for i in track(range(0, len(smiles), BATCH), "FCD", enabled=progress):
            hot = np.stack([get_one_hot(text, LENGTH) for text in smiles[i : i + BATCH]])
            # As the weights expect: channels first, and scaled by the number of symbols.
            hot = np.swapaxes(hot, 1, 2) / hot.shape[-1]
            parts.append(model(torch.from_numpy(hot).float()).double().numpy())
    both = np.concatenate(parts)
    return [both[:split], both[split:]]
