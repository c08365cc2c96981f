"""Scattering lengths of step potentials, callables and samples, in units of the range.

The solution of `u'' = -U u` with `u(0) = 0` is carried in the variables

    p = u',    w = x u' - u,    so that    p' = -U u,    w' = -x U u,    a_0 = w(1) / p(1).

Both are constant where `U = 0`, hence `w` is of the order of `U` itself and no digit is lost for a
weak potential, where `1 - u(1)/u'(1)` subtracts nearly equal numbers. `a = w/p` is the scattering
length of the potential cut off at `x` (Calogero's variable phase, `a' = -U (x - a)^2`); unlike `a`,
the pair `(w, p)` stays finite through its poles. A cell of width h and constant U, `z = U h^2`, has

    C = cos sqrt z,   S = sin sqrt z / sqrt z,   D = (S - C)/z,   q = z S / h:
    p <- (C - q x) p + q w,   w <- (C + q (x + h)) w - (h z D + q x (x + h)) p,

with `x` its left edge; C, S and D are entire functions of z, and the map is 1 at U = 0.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float
from scipy.interpolate import CubicSpline

_SERIES_RADIUS = 1.0
_TERMS = 9  # the first omitted term is below the rounding of float64 for |z| <= 1
_S_SERIES = [(-1) ** n / math.factorial(2 * n + 1) for n in range(_TERMS)]
_D_SERIES = [(-1) ** n * (2 * n + 2) / math.factorial(2 * n + 3) for n in range(_TERMS)]


class CellFunctions(NamedTuple):
    """The entire functions of `z = U h^2` that solve a cell."""

    c: Array
    """cos sqrt z."""
    s: Array
    """sin sqrt z / sqrt z."""
    d: Array
    """(S - C) / z = 1/3 - z/30 + ..."""


def _horner(coefficients: Sequence[float], z: Array) -> Array:
    value = jnp.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * z + coefficient
    return value


def _series(z: Array) -> CellFunctions:
    s, d = _horner(_S_SERIES, z), _horner(_D_SERIES, z)
    return CellFunctions(s - z * d, s, d)


def cell_functions(z: Array) -> CellFunctions:
    """C, S and D at real `z` of any sign and size, divided by `exp sqrt(-z)` where `z < -1`.

    A scattering length depends on their ratios alone, and the common factor keeps strong repulsion
    from overflowing. It is a constant for differentiation; derivatives of all orders are right, at
    `z = 0` included.
    """
    small = jnp.abs(z) <= _SERIES_RADIUS
    series = _series(jnp.where(small, z, 0.0))
    # Each branch sees harmless arguments where the other one is taken: no NaN in the gradients.
    k = jnp.sqrt(jnp.where(small, 1.0, jnp.abs(z)))
    factor = lax.stop_gradient(k)
    rising, falling = jnp.exp(k - factor), jnp.exp(-k - factor)
    c = jnp.where(z > 0, jnp.cos(k), (rising + falling) / 2)
    s = jnp.where(z > 0, jnp.sin(k), (rising - falling) / 2) / k
    d = (s - c) / jnp.where(small, 1.0, z)
    closed = CellFunctions(c, s, d)
    return CellFunctions(*(jnp.where(small, a, b) for a, b in zip(series, closed, strict=True)))


class Solution(NamedTuple):
    """The solution at one radius, up to a common positive factor."""

    w: Array
    """x u' - u."""
    p: Array
    """u'."""


def _cross_cell(
    solution: Solution, strength: Array, x: Array, h: Array | float, functions: CellFunctions
) -> Solution:
    w, p = solution
    c, s, d = functions
    q = strength * h * s
    right = x + h
    w_next = (c + q * right) * w - (strength * h**3 * d + q * x * right) * p
    return Solution(w_next, (c - q * x) * p + q * w)


def cell_edges(potential: Array, edges: Array | None) -> Array:
    """The d + 1 cell edges of `(*batch, d)` potentials: as given, or those of equal cells."""
    cells = potential.shape[-1]
    if edges is None:
        return jnp.arange(cells + 1, dtype=potential.dtype) / cells
    if edges.shape != (cells + 1,):
        raise ValueError(
            f"{cells} cells have {cells + 1} edges, but edges has shape {edges.shape}; "
            "give the left edge of each cell and the right edge of the last one"
        )
    return jnp.asarray(edges, potential.dtype)


def solve(
    potential: Float[Array, "*batch d"], *, edges: Float[Array, "d+1"] | None = None
) -> Solution:
    """Solve the radial equation through the cells.

    Args:
      potential: `U`, constant in each of d cells; any leading batch axes.
      edges: the d + 1 cell edges from 0 to 1; equal cells when None.

    Returns:
      `(w, p)` at every right edge of a cell, each of shape `(d, *batch)`, up to a positive factor
      that differs from one radius to the next and counts as a constant in derivatives.
    """
    potential = jnp.asarray(potential, jnp.result_type(potential, float))
    grid = cell_edges(potential, edges)

    def cross(solution: Solution, cell: tuple[Array, Array, Array]) -> tuple[Solution, Solution]:
        strength, x, h = cell
        w, p = _cross_cell(solution, strength, x, h, cell_functions(strength * h * h))
        # Like the factor of the cells a constant for differentiation: it drops out of w/p.
        scale = 1 / lax.stop_gradient(jnp.maximum(jnp.abs(w), jnp.abs(p)))
        solution = Solution(w * scale, p * scale)
        return solution, solution

    cells = jnp.moveaxis(potential, -1, 0)
    start = Solution(jnp.zeros_like(cells[0]), jnp.ones_like(cells[0]))
    return lax.scan(cross, start, (cells, grid[:-1], jnp.diff(grid)))[1]


@jax.jit
def scattering_length(
    potential: Float[Array, "*batch d"], *, edges: Float[Array, "d+1"] | None = None
) -> Float[Array, "*batch"]:
    """S-wave scattering length at zero energy of step potentials, exact up to rounding.

    Rounding errors are a few units in the last place, times `sqrt(-U)` behind strong repulsion and
    the condition number near a pole. Differentiable to any order: the Taylor tensors at `U = 0` are
    the Born tensors.

    Args:
      potential: `U`, constant in each of d cells; any leading batch axes; positive attracts.
      edges: the d + 1 cell edges from 0 to 1; equal cells when None.

    Returns:
      `a_0` in units of the range; infinite exactly at a pole (a bound state at zero energy).
    """
    w, p = solve(potential, edges=edges)
    return w[-1] / p[-1]


@jax.jit
def wave_function(
    potential: Float[Array, "*batch d"], x: Float[Array, "points"]
) -> Float[Array, "*batch points"]:
    """Zero-energy wave function `u(x)` of step potentials with equal cells, with `u'(0) = 1`.

    Beyond the range `x = 1` it is the straight line whose zero is the scattering length.
    """
    d = potential.shape[-1]
    grid = jnp.arange(d + 1, dtype=potential.dtype) / d

    def advance(u: Array, p: Array, strength: Array, h: Array) -> tuple[Array, Array]:
        z = strength * h * h
        c, s, _ = cell_functions(z)
        # The factor that cell_functions leaves out, there a constant for differentiation.
        scale = lax.stop_gradient(jnp.exp(jnp.sqrt(jnp.where(z < -_SERIES_RADIUS, -z, 0.0))))
        return scale * (c * u + h * s * p), scale * (c * p - strength * h * s * u)

    def cross(state: tuple[Array, Array], strength: Array) -> tuple[tuple[Array, Array], Array]:
        state = advance(*state, strength, grid[1])
        return state, jnp.stack(state)

    cells = jnp.moveaxis(potential, -1, 0)
    start = (jnp.zeros_like(cells[0]), jnp.ones_like(cells[0]))
    trajectory = lax.scan(cross, start, cells)[1]
    edges = jnp.concatenate([jnp.stack(start)[None], trajectory])
    strengths = jnp.concatenate([cells, jnp.zeros_like(cells[:1])])
    left = jnp.clip(jnp.floor(x * d).astype(int), 0, d)
    distance = (x - grid[left]).reshape(-1, *[1] * (potential.ndim - 1))
    u, _ = advance(edges[left, 0], edges[left, 1], strengths[left], distance)
    return jnp.moveaxis(u, 0, -1)


def scattering_length_of(
    potential: Callable[[Array], Array],
    *,
    breakpoints: Sequence[float] = (),
    levels: int = 8,
    tolerance: float = 1e-10,
) -> Array:
    """Scattering length of a potential given as a function of the radius.

    Step potentials that take the values at the midpoints of n cells have an error in even powers of
    1/n wherever `U` is smooth between the breakpoints, so `levels` doublings from 4 cells a piece
    are extrapolated (Romberg): level k removes the power `n^-2k`, for an order of convergence of
    `2 levels`. At the defaults smooth wells come out to about 1e-13.

    Args:
      potential: `U(x)`; takes radii of shape (n,) in (0, 1) and returns `(*batch, n)`.
      breakpoints: radii inside (0, 1) where `U` or a derivative jumps.
      levels: number of refinements, at least 2.
      tolerance: largest accepted difference from the extrapolation with one level less, relative
        to `max(1, |a_0|)`. Not checked under a transformation of JAX, where values are unknown.

    Returns:
      `a_0` of shape `batch`, in units of the range; differentiable in what `potential` closes over.

    Raises:
      ValueError: if the breakpoints are not increasing inside (0, 1), if the potential is not
        finite, or if the tolerance is not met.
    """
    pieces = np.asarray([0.0, *breakpoints, 1.0])
    if not np.all(np.diff(pieces) > 0):
        raise ValueError(f"breakpoints must increase strictly inside (0, 1), got {breakpoints}")

    def at_midpoints(cells: int) -> Array:
        fraction = np.arange(cells) / cells
        edges = np.append((pieces[:-1, None] + np.diff(pieces)[:, None] * fraction).ravel(), 1.0)
        values = potential(jnp.asarray(0.5 * (edges[1:] + edges[:-1])))
        return scattering_length(values, edges=jnp.asarray(edges))

    column = [at_midpoints(4 * 2**level) for level in range(levels)]
    for k in range(1, levels):
        one_level_less = column[0]
        column = [
            fine + (fine - coarse) / (4**k - 1) for coarse, fine in itertools.pairwise(column)
        ]
    result = column[-1]
    if not isinstance(result, jax.core.Tracer):
        error = np.abs(result - one_level_less) / np.maximum(1, np.abs(result))
        if not np.all(error <= tolerance):
            raise ValueError(
                f"the scattering length is known only to {np.max(error):.1e}, not to "
                f"{tolerance:.1e}: give the radii where the potential jumps or bends as "
                "breakpoints, check that it is finite, or raise levels or tolerance"
            )
    return result


def scattering_length_of_samples(
    radii: Float[np.ndarray, "n"],
    values: Float[Array, "*batch n"],
    *,
    levels: int = 6,
    tolerance: float = 1e-10,
) -> Array:
    """Scattering length of potentials known at some radii, through the cubic spline of the values.

    The interpolation error is of fourth order in the spacing of the radii, for smooth potentials.

    Args:
      radii: increasing, inside [0, 1], at least four; the spline is continued to 0 and to 1.
      values: `U` at the radii; any leading batch axes.
      levels: as in `scattering_length_of`.
      tolerance: as in `scattering_length_of`; on the integration, not on the interpolation.

    Returns:
      `a_0` of shape `batch`, in units of the range; differentiable in `values`.
    """
    radii = np.asarray(radii, np.float64)
    if radii.ndim != 1 or len(radii) < 4 or np.any(np.diff(radii) <= 0):
        raise ValueError("radii must be at least four numbers that increase strictly")
    if radii[0] < 0 or radii[-1] > 1:
        raise ValueError(
            f"radii run from {radii[0]:g} to {radii[-1]:g}, but the range is 1: "
            "give them in units of the range, inside [0, 1]"
        )
    if values.shape[-1:] != radii.shape:
        raise ValueError(f"{len(radii)} radii, but values of shape {values.shape}")
    spline = CubicSpline(radii, np.eye(len(radii)))  # one spline for each sample: linear in values
    return scattering_length_of(
        lambda x: values @ jnp.asarray(spline(np.asarray(x)).T),
        breakpoints=[float(x) for x in radii if 0 < x < 1],
        levels=levels,
        tolerance=tolerance,
    )


def check_shape(potentials: np.ndarray) -> None:
    """Raise a ValueError unless the potentials have the shape `(n, d)`, d >= 1."""
    if potentials.ndim != 2 or potentials.shape[1] == 0:
        raise ValueError(
            f"potentials must have shape (n, d), one row for each, got {potentials.shape}"
        )


def check_finite(potentials: np.ndarray) -> None:
    """Raise a ValueError that names the first value of `(n, d)` potentials that is not finite."""
    check_shape(potentials)
    finite = np.isfinite(potentials)
    if not finite.all():
        row, cell = np.argwhere(~finite)[0]
        raise ValueError(
            f"potential {row} is {potentials[row, cell]} in cell {cell} "
            f"({np.sum(~finite)} such cells in all): remove or repair these rows before training "
            "on them"
        )


_CHUNK = 4096  # rows; their cells, 2 MiB at d = 64, stay in the cache
_FAST_STRENGTH = 1e4  # cosh(sqrt(1e4)) = 1e43 is far from overflow, so no rescaling is needed


@jax.jit
def _fast_chunk(potential: Array) -> Array:
    d = potential.shape[-1]
    h = 1 / d

    def cross(solution: Solution, cell: tuple[Array, Array]) -> tuple[Solution, None]:
        strength, i = cell
        functions = _series(strength * (h * h))
        return _cross_cell(solution, strength, i * h, h, functions), None

    cells = potential.T
    start = Solution(jnp.zeros_like(cells[0]), jnp.ones_like(cells[0]))
    # Unrolled, the cells of a potential pass through registers in one loop over the rows.
    (w, p), _ = lax.scan(cross, start, (cells, jnp.arange(d, dtype=cells.dtype)), unroll=64)
    return w / p


def labels(potentials: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    """Scattering lengths of many step potentials in float64, for training sets.

    The same recursion as `scattering_length`, in chunks that fit the cache; where all cells of a
    chunk are narrow enough for the power series of their functions, the closed forms are left out.

    Args:
      potentials: `U` of n potentials in d equal cells.

    Returns:
      `a_0` in units of the range.

    Raises:
      ValueError: if the shape is not `(n, d)` or a value is not finite.
      RuntimeError: if JAX runs in single precision, which spoils the higher Born orders.
    """
    if jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise RuntimeError(
            "labels need double precision, single precision spoils their higher Born orders: "
            "start with JAX_ENABLE_X64=1 or call inside `with jax.enable_x64(True):`"
        )
    potentials = np.asarray(potentials, np.float64)
    check_shape(potentials)
    n, d = potentials.shape
    narrow = min(_SERIES_RADIUS * d**2, _FAST_STRENGTH)
    result = np.empty(n)
    for start in range(0, n, _CHUNK):
        chunk = potentials[start : start + _CHUNK]
        largest = max(chunk.max(), -chunk.min())
        if not np.isfinite(largest):
            check_finite(potentials)
        rows = len(chunk)
        if rows < _CHUNK:  # one shape, one compilation
            chunk = np.pad(chunk, ((0, _CHUNK - rows), (0, 0)))
        chunk_labels = _fast_chunk if largest <= narrow else scattering_length
        result[start : start + rows] = np.asarray(chunk_labels(chunk))[:rows]
    return result
