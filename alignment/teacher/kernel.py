"""A teacher that is no affine map: kernel regression of embeddings, in a metric that it learns.

A recursive feature machine (Radhakrishnan, Beaglehole, Pandit and Belkin, "Mechanism for feature
learning in neural networks and backpropagation-free machine learning models", Science 2024). With

    k(x, x') = exp(-sqrt((x - x')^T M (x - x')) / scale),    M = I at first,

regress the embedding on the features; then measure where the regression f is steep,

    G = 1/n sum_x (df/dx)^T (df/dx),    M = G^(1/2),

and regress anew. Directions of the features that tell nothing of the embedding fade from M. All is
in closed form, and takes seconds for a few thousand objects.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelMap:
    """Predicts the embedding of objects from their features."""

    objects: Float[np.ndarray, "n p"]
    """Features that it was fitted on, times `root`."""
    root: Float[np.ndarray, "p p"]
    """Square root of the metric, symmetric."""
    scale: float
    """Distance at which the kernel is 1/e."""
    dual: Float[np.ndarray, "n d"]
    """Weights of the kernel functions."""
    mean: Float[np.ndarray, "d"]
    """Embedding far from all objects."""

    def __call__(self, features: Float[np.ndarray, "m p"]) -> Float[np.ndarray, "m d"]:
        """Return the embedding, float32."""
        near = np.exp(-distances(features @ self.root, self.objects) / self.scale)
        found = near @ self.dual + self.mean
        return found.astype(np.float32)

    def steepness(self) -> Float[np.ndarray, "p p"]:
        """Return the mean over the objects of (df/dx)^T (df/dx), x the features times `root`.

        With weights w of the kernel's derivative, df/dx at object a is
        `sum_i w_ai dual_i (x_i - x_a)^T`; the sum over a of its squares takes products of
        n x n matrices alone.
        """
        apart = distances(self.objects, self.objects) / self.scale
        # At distance 0 (up to rounding) the kernel has a tip; its derivative is taken as 0 there.
        w = np.exp(-apart) / np.where(apart > 1e-6, apart, np.inf) / self.scale**2
        mixed = w * (w @ self.dual @ self.dual.T)
        inner = (self.dual @ self.dual.T) * (w.T @ w) - mixed - mixed.T
        inner[np.diag_indices_from(inner)] += mixed.sum(1)
        return self.objects.T @ inner @ self.objects / len(inner)


def fit_kernel(
    features: Float[np.ndarray, "n p"],
    embedding: Float[np.ndarray, "n d"],
    *,
    ridge: float,
    rounds: int = 1,
) -> KernelMap:
    """Fit a map.

    Args:
      features: features of the objects; their scale does not matter.
      embedding: the embedding whose dot products are the objects' similarities. Several embeddings
        side by side, each divided by the square root of their number, give the mean of their
        similarities.
      ridge: strength of the regulariser, beside a kernel whose diagonal is 1.
      rounds: how often the metric is measured; 0 leaves all directions alike.

    Raises:
      ValueError: if features and embedding are not of the same objects, or ridge is not positive.
    """
    if len(features) != len(embedding):
        raise ValueError(f"{len(features)} rows of features for {len(embedding)} of the embedding")
    if ridge <= 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    mean = embedding.mean(0, dtype=np.float64)
    root = np.eye(features.shape[1])
    found = _regress(features, embedding - mean, mean, root, ridge)
    for _ in range(rounds):
        values, vectors = np.linalg.eigh(root @ found.steepness() @ root)
        # The root of M = G^(1/2), of mean square eigenvalue 1.
        stretch = np.maximum(values, 0) ** 0.25
        root = (vectors * (stretch / np.sqrt(np.mean(stretch**2)))) @ vectors.T
        found = _regress(features, embedding - mean, mean, root, ridge)
    return found


def _regress(
    features: np.ndarray, centred: np.ndarray, mean: np.ndarray, root: np.ndarray, ridge: float
) -> KernelMap:
    objects = features @ root
    apart = distances(objects, objects)
    scale = float(np.median(apart))
    kernel = np.exp(-apart / scale)
    kernel[np.diag_indices_from(kernel)] += ridge
    dual = cho_solve(cho_factor(kernel), centred)
    return KernelMap(objects=objects, root=root, scale=scale, dual=dual, mean=mean)


def distances(a: Float[np.ndarray, "n p"], b: Float[np.ndarray, "m p"]) -> Float[np.ndarray, "n m"]:
    """Return the Euclidean distances between rows, by one matrix product."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))
