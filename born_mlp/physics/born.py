"""Born terms of step potentials and their tensors, of any order and exactly integrated.

The Born series is the Taylor series of the scattering length in the coupling, `a_0(g U) =
sum_n g^n a^(n)`, `a^(n) = -<x| U (G U)^(n-1) |x>` with `G(x, x') = min(x, x')`. For steps
`a^(n) = T_n[U, ..., U]` with one symmetric tensor for each order and number of cells. With the
customary signs, `a^(1) = -sum_i g_i U_i`, `a^(2) = -sum_ij B_ij U_i U_j`, so `B = -T_2`.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float

from born_mlp import packing
from born_mlp.physics.scattering import cell_edges

_MEMORY_LIMIT = 8 * 2**30  # bytes; refused before they are asked for


def _powers(coefficients: list[float], z: Array) -> Array:
    """The terms `c_k z^k`, along a new last axis."""
    return jnp.asarray(coefficients, z.dtype) * z[..., None] ** jnp.arange(len(coefficients))


def _toeplitz(series: Array) -> Array:
    """The lower triangular matrix that multiplies a cut-off power series by `series`."""
    terms = series.shape[-1]
    lag = np.arange(terms)[:, None] - np.arange(terms)
    return jnp.where(lag >= 0, series[..., np.maximum(lag, 0)], 0.0)


def _cell_coefficients(order: int) -> tuple[list[float], list[float], list[float]]:
    """Coefficients of `z^0 .. z^order` of C, z S and z D."""
    c = [(-1) ** k / math.factorial(2 * k) for k in range(order + 1)]
    s = [(-1) ** k / math.factorial(2 * k + 1) for k in range(order)]
    d = [(-1) ** k * (2 * k + 2) / math.factorial(2 * k + 3) for k in range(order)]
    return c, [0.0, *s], [0.0, *d]


@functools.partial(jax.jit, static_argnames="order")
def born_terms(
    potential: Float[Array, "*batch d"],
    order: int,
    *,
    edges: Float[Array, "d+1"] | None = None,
) -> Float[Array, "*batch order"]:
    """Born terms `a^(1), ..., a^(order)`; their sum to n is the n-th Born approximation.

    The recursion of `scattering` is run on power series in the coupling, cut off behind `order`.

    Args:
      potential: `U`, constant in each of d cells; any leading batch axes; positive attracts.
      order: highest order, at least 1.
      edges: the d + 1 cell edges from 0 to 1; equal cells when None.

    Returns:
      The terms in units of the range, along a new last axis.
    """
    if order < 1:
        raise ValueError(f"the Born series starts at order 1, got order {order}")
    potential = jnp.asarray(potential, jnp.result_type(potential, float))
    grid = cell_edges(potential, edges)
    c_series, zs_series, zd_series = _cell_coefficients(order)

    def times(a: Array, b: Array) -> Array:
        return jnp.einsum("...kj,...j->...k", _toeplitz(a), b)

    def cross(state: tuple[Array, Array], cell: tuple[Array, Array, Array]) -> tuple:
        w, p = state
        strength, x, h = cell
        z = strength * h * h
        c, q, zd = _powers(c_series, z), _powers(zs_series, z) / h, _powers(zd_series, z)
        right = x + h
        w_next = times(c + q * right, w) - times(h * zd + q * x * right, p)
        return (w_next, times(c - q * x, p) + times(q, w)), None

    cells = jnp.moveaxis(potential, -1, 0)
    zero = jnp.zeros((*cells.shape[1:], order + 1), cells.dtype)
    start = (zero, zero.at[..., 0].set(1.0))
    (w, p), _ = lax.scan(cross, start, (cells, grid[:-1], jnp.diff(grid)))
    quotient = solve_triangular(_toeplitz(p), w[..., None], lower=True, unit_diagonal=True)
    return quotient[..., 1:, 0]


def born_tensor(d: int, order: int) -> Float[np.ndarray, "packed"]:
    """Unique entries of the exact Born tensor `T_order` of d equal cells, in float64.

    The map through a cell is 1 at `U = 0`, so the Taylor coefficient of `w(1)` and `p(1)` at a
    monomial is the product of Taylor coefficients of the maps of its own cells, in order. The
    tensors of the quotient `a_0 = w/p` follow from those of w and p as for power series, with the
    product of two symmetric tensors in place of that of two coefficients.

    Args:
      d: number of cells.
      order: order of the tensor, at least 1.

    Returns:
      Entries at `packing.multi_indices(d, order)`.

    Raises:
      ValueError: if the computation would not fit in memory.
    """
    if order < 1:
        raise ValueError(f"the Born series starts at order 1, got order {order}")
    size = packing.size(d, order)
    needed = size * (order + 12) * 8
    if needed > _MEMORY_LIMIT:
        raise ValueError(
            f"the Born tensor of order {order} of {d} cells has {size} unique entries and takes "
            f"{needed / 2**30:.3g} GiB to make, over {_MEMORY_LIMIT / 2**30:.0f}: lower the "
            "order or the number of cells, or evaluate the terms with born_terms"
        )
    h = 1 / d
    x = np.arange(d) * h
    right = x + h
    c, zs, zd = (np.array(s)[:, None] for s in _cell_coefficients(order))
    z_power = h ** (2 * np.arange(order + 1))[:, None]
    c, q, hzd = c * z_power, zs * z_power / h, zd * z_power * h
    ww, wp, pp = c + q * right, -(hzd + q * x * right), c - q * x

    p_tensors: list[np.ndarray] = [np.ones(1)]
    tensors: list[np.ndarray] = [np.zeros(1)]
    for n in range(1, order + 1):
        indices = packing.multi_indices(d, n)
        w, p = np.zeros(len(indices)), np.ones(len(indices))
        run = np.zeros(len(indices), np.int64)
        for t in range(n):
            cell = indices[:, t]
            last = cell != indices[:, t + 1] if t + 1 < n else np.ones(len(cell), bool)
            power = np.where(last, run + 1, 0)  # the coefficient of power 0 is the unit matrix
            w, p = (
                ww[power, cell] * w + wp[power, cell] * p,
                q[power, 0] * w + pp[power, cell] * p,
            )
            run = np.where(last, 0, run + 1)
        shares = packing.multiplicities(d, n)
        p_tensors.append(p / shares)
        tensor = w / shares
        for k in range(1, n):
            symmetric = np.zeros(len(indices))
            for chosen in itertools.combinations(range(n), k):
                rest = [t for t in range(n) if t not in chosen]
                symmetric += (
                    p_tensors[k][packing.positions(indices[:, list(chosen)], d)]
                    * tensors[n - k][packing.positions(indices[:, rest], d)]
                )
            tensor = tensor - symmetric / math.comb(n, k)
        tensors.append(tensor)
    return tensors[order]
