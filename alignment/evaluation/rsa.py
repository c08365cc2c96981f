"""Representational similarity analysis: do distances between features go with human ones?"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import pearsonr, spearmanr

from alignment.features import check_matrix

Metric = Literal["cosine", "correlation"]
Correlation = Literal["spearman", "pearson"]


def rdm(features: Float[np.ndarray, "n p"], metric: Metric = "cosine") -> Float[np.ndarray, "n n"]:
    """Return the representational dissimilarity matrix: 1 - cosine, or 1 - Pearson's correlation.

    Raises:
      ValueError: for a row without direction (of zeros; of one value, for correlations).
    """
    check_matrix(features, what="features")
    x = np.asarray(features, np.float64)
    if metric == "correlation":
        x = x - x.mean(1, keepdims=True)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if bad := np.flatnonzero(norm == 0).tolist():
        raise ValueError(
            f"row {bad[0]} (0-based) of the features has no direction: {metric} is undefined"
        )
    x /= norm
    return 1 - x @ x.T


def upper_triangle(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "pairs"]:
    """Return what lies above the diagonal."""
    return matrix[np.triu_indices(len(matrix), 1)]


def correlate(
    a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"], kind: Correlation = "spearman"
) -> float:
    """Correlate two dissimilarity matrices, pair by pair.

    Similarities are no dissimilarities: turn their sign first.

    Raises:
      ValueError: for matrices of different shape, or one that is constant.
    """
    if a.shape != b.shape:
        raise ValueError(f"dissimilarities of {len(a)} images against those of {len(b)}")
    x, y = upper_triangle(a), upper_triangle(b)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("all dissimilarities are the same: they correlate with nothing")
    found = spearmanr(x, y) if kind == "spearman" else pearsonr(x, y)
    return float(found.statistic)


def noise_ceiling(
    human: Float[np.ndarray, "people n n"], kind: Correlation = "spearman"
) -> tuple[float, float]:
    """Return the mean correlation of one person with the mean of all others, and with that of all.

    No model is expected above the second; one at the first is as good as another person. A model
    is compared with the mean of all people, which is less noisy than one person: so compared, it
    may lie above both.

    Raises:
      ValueError: for fewer than two people.
    """
    if len(human) < 2:
        raise ValueError("a noise ceiling needs the dissimilarities of two people at least")
    total = human.sum(0)
    lower = [correlate(one, (total - one) / (len(human) - 1), kind) for one in human]
    upper = [correlate(one, total / len(human), kind) for one in human]
    return float(np.mean(lower)), float(np.mean(upper))


def rsa(
    features: Float[np.ndarray, "n p"], human: Float[np.ndarray, "people n n"], *, prefix: str = ""
) -> dict[str, float]:
    """Correlate the distances of features with the mean human dissimilarities.

    Returns:
      `spearman_cosine`, `pearson_cosine`, `spearman_correlation` and `pearson_correlation`, named
      by the correlation and by the distance.
    """
    mean = human.mean(0)
    scores = {}
    for metric in ("cosine", "correlation"):
        ours = rdm(features, metric)
        for kind in ("spearman", "pearson"):
            scores[f"{prefix}{kind}_{metric}"] = correlate(ours, mean, kind)
    return scores


def check_rdms(human: np.ndarray, *, source: str) -> Float[np.ndarray, "people n n"]:
    """Return human dissimilarities as (people, n, n), or raise ValueError saying what is wrong.

    One matrix (n, n), such as a mean over people, becomes (1, n, n).
    """
    human = human[None] if human.ndim == 2 else human
    if human.ndim != 3 or human.shape[1] != human.shape[2] or human.dtype.kind != "f":
        raise ValueError(
            f"{source}: dissimilarities must be floats (people, n, n), got {human.dtype} of shape "
            f"{human.shape}"
        )
    off = ~np.eye(human.shape[1], dtype=bool)
    for person, matrix in enumerate(human):
        if not np.isfinite(matrix[off]).all():
            raise ValueError(f"{source}: matrix {person} (0-based) holds NaN or infinity")
        if not np.allclose(matrix, matrix.T, atol=1e-5, equal_nan=True):
            raise ValueError(f"{source}: matrix {person} (0-based) is not symmetric")
    return human.astype(np.float64)


def differs(membership: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n n"]:
    """Return the model matrix of one category: 1 between members and others, 0 elsewhere."""
    return (membership[:, None] != membership).astype(np.float64)
