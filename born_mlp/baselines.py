"""What the perturbation theory has to be compared with: least squares and the solver itself."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from born_mlp import packing
from born_mlp.physics.born import born_tensor
from born_mlp.physics.scattering import scattering_length
from born_mlp.samples import ScatteringSamples

_MAX_TERMS = 4000


def packed_norm(packed: Float[np.ndarray, "packed"], cells: int, order: int) -> float:
    """Return the L2 norm of the dense symmetric tensor with these unique entries."""
    return float(np.sqrt(np.sum(packing.multiplicities(cells, order) * packed**2)))


def polynomial_errors(
    source: ScatteringSamples, *, degree: int, rows: int = 8192
) -> dict[str, Any]:
    """Fit one polynomial of all monomials up to `degree` to the same samples by least squares.

    Args:
      source: the samples that the networks were trained on.
      degree: degree of the polynomial.
      rows: samples to use, at most; raised to four for each monomial.

    Returns:
      "degree", "monomials", "rows", "seconds" and "errors": the relative L2 error of the Taylor
      term of each order against the exact Born tensor.

    Raises:
      ValueError: if the polynomial has more monomials than a dense solve should be asked for.
    """
    cells = source.features
    indices = [packing.multi_indices(cells, m) for m in range(1, degree + 1)]
    monomials = 1 + sum(len(i) for i in indices)
    if monomials > _MAX_TERMS:
        raise ValueError(
            f"a polynomial of degree {degree} in {cells} cells has {monomials} monomials, over "
            f"{_MAX_TERMS}: lower polynomial_degree"
        )
    samples = source.draw()
    rows = min(len(samples.x), max(rows, 4 * monomials))
    # Every second half row is a mirror image: a random choice keeps both.
    chosen = np.random.default_rng(source.seed).permutation(len(samples.x))[:rows]
    x, y = samples.x[chosen], samples.y[chosen]
    start = time.perf_counter()
    scale = np.sqrt(np.mean(x**2))
    columns = [np.ones((rows, 1))]
    columns += [np.prod((x / scale)[:, index], axis=-1) for index in indices]
    solution = np.linalg.lstsq(np.concatenate(columns, axis=1), y, rcond=None)[0]
    seconds = time.perf_counter() - start
    errors, offset = {}, 1
    for order, index in enumerate(indices, 1):
        found = (
            solution[offset : offset + len(index)]
            / scale**order
            / packing.multiplicities(cells, order)
        )
        offset += len(index)
        exact = born_tensor(cells, order)
        errors[str(order)] = packed_norm(found - exact, cells, order) / packed_norm(
            exact, cells, order
        )
    return {
        "degree": degree,
        "monomials": monomials,
        "rows": rows,
        "seconds": seconds,
        "errors": errors,
    }


def autodiff_errors(cells: int) -> dict[str, Any]:
    """Differentiate the solver itself at U = 0, where its source is at hand.

    Returns:
      "seconds" (compilation included) and "errors" of orders 1 and 2 against the Born tensors.
    """
    start = time.perf_counter()
    origin = jnp.zeros(cells)
    gradient = np.asarray(jax.jit(jax.grad(scattering_length))(origin))
    hessian = np.asarray(jax.jit(jax.hessian(scattering_length))(origin)) / 2
    seconds = time.perf_counter() - start
    i, j = packing.multi_indices(cells, 2).T
    errors = {}
    for order, found in ((1, gradient), (2, hessian[i, j])):
        exact = born_tensor(cells, order)
        errors[str(order)] = packed_norm(found - exact, cells, order) / packed_norm(
            exact, cells, order
        )
    return {"seconds": seconds, "errors": errors}
