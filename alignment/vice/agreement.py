"""How far embeddings of different seeds say the same."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from alignment.vice.embedding import Embedding


def best_matches(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n e"]) -> np.ndarray:
    """Return the largest Pearson correlation of each dimension of `a` with one of `b`, (d,)."""
    a, b = ((x - x.mean(0)) / np.maximum(x.std(0), 1e-12) for x in (a, b))
    return (a.T @ b / len(a)).max(1)


def similarity_correlation(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n e"]) -> float:
    """Return the Pearson correlation of the dot products of all pairs of objects."""
    upper = np.triu_indices(len(a), 1)
    return float(np.corrcoef((a @ a.T)[upper], (b @ b.T)[upper])[0, 1])


def agreement(embeddings: Sequence[Embedding]) -> dict[str, float]:
    """Average over ordered pairs of pruned embeddings.

    Returns:
      "dimension": mean correlation of a dimension with its best match in another seed;
      "dimensions above 0.8": share of those with at least that;
      "similarities": correlation of the similarities of all pairs of objects.
    """
    pairs = list(itertools.permutations([e.values for e in embeddings], 2))
    matches = np.concatenate([best_matches(a, b) for a, b in pairs])
    return {
        "dimension": float(matches.mean()),
        "dimensions above 0.8": float((matches >= 0.8).mean()),
        "similarities": float(np.mean([similarity_correlation(a, b) for a, b in pairs])),
    }
