"""One affine map for the mean of the similarities of several."""

import numpy as np
from jaxtyping import Float


def average_maps(
    weights: Float[np.ndarray, "k p q"], bias: Float[np.ndarray, "k q"]
) -> tuple[Float[np.ndarray, "p p"], Float[np.ndarray, "p"]]:
    """Return the map whose dot products are nearest to the mean of those of k maps.

    With the rows [x, 1] and A_k the weights on top of the bias, a map's similarities are
    `[x, 1] A_k A_k^T [y, 1]^T`. Their mean has the Gram matrix `G = 1/K sum_k A_k A_k^T`, again of
    an affine map: of p + 1 dimensions, of which the p with the largest eigenvalues are kept. Maps
    of equal similarities differ by a rotation of what comes out; the one returned has symmetric
    weights, W = (W W^T)^(1/2), as an identity that was stretched would have.
    """
    maps = np.concatenate([weights, bias[:, None]], axis=1, dtype=np.float64)
    gram = np.einsum("kpq,krq->pr", maps, maps) / len(maps)
    values, vectors = np.linalg.eigh(gram)
    root = vectors[:, 1:] * np.sqrt(np.maximum(values[1:], 0))
    left, stretch, right = np.linalg.svd(root[:-1])
    symmetric = (left * stretch) @ left.T
    return symmetric.astype(np.float32), (root[-1] @ (left @ right).T).astype(np.float32)
