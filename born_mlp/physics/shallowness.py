"""How far a potential is from the unitary limit: poles in the coupling, and bound states.

`u'(1; g U)` is an entire function of the coupling g whose zeros are the poles of `a_0(g U)`: they
solve `u'' = -g U u`, `u(0) = u'(1) = 0`, a problem with a positive operator on the left and a real
weight on the right, so all of them are real and `1/g` runs through the eigenvalues of
`G^(1/2) U G^(1/2)`, `G(x, x') = min(x, x')`. The largest eigenvalue is the shallowness lambda: at
`lambda = 1` the first bound state appears. The Born series converges if the eigenvalue of largest
modulus is inside the unit circle; for a repulsive potential that one is negative.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from born_mlp.physics.scattering import check_finite, solve

_MAX_ITERATIONS = 400  # a dozen is usual; more only for weak attraction in strong repulsion


def bargmann_bound(potential: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """The integral of `x max(U, 0)`, an upper bound of lambda and of the number of bound states."""
    d = potential.shape[-1]
    return jnp.maximum(potential, 0) @ ((jnp.arange(d, dtype=potential.dtype) + 0.5) / d**2)


@jax.jit
def shallowness(potential: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Largest eigenvalue lambda of `G^(1/2) U G^(1/2)`: `1/lambda` is the first attractive pole.

    Ostrowski's square-root iteration, `g += f / sqrt(f'^2 - f f'')`, finds the smallest positive
    zero of `f(g) = u'(1; g U)`: on functions with real zeros only it never steps over one, and it
    converges with third order. Exact up to rounding; not differentiable.

    Args:
      potential: `U`, constant in each of d equal cells; any leading batch axes.

    Returns:
      lambda, below 1 before the first bound state; 0 where no cell attracts. Where the iteration
      is cut off, with attraction below some 1e-6 of the repulsion, an upper bound.
    """
    size = jnp.max(jnp.abs(potential), axis=-1)
    size = jnp.where(size > 0, size, 1.0)
    shape = potential / size[..., None]  # squares of couplings must not underflow

    def slope(g: Array) -> Array:
        return solve(g[..., None] * shape).p[-1]

    def with_derivative(f: Callable[[Array], Any], g: Array) -> tuple[Any, Any]:
        return jax.jvp(f, (g,), (jnp.ones_like(g),))

    tolerance = 8 * jnp.finfo(shape.dtype).eps

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        g, searching, iteration = state
        (f, f1), (_, f2) = with_derivative(lambda g: with_derivative(slope, g), g)
        # f starts at 1; a sign change means that rounding carried g over the zero just found.
        step = jnp.maximum(f, 0) / jnp.sqrt(f1**2 - f * f2)
        return (
            jnp.where(searching, g + step, g),
            searching & (step > tolerance * g),
            iteration + 1,
        )

    attracts = ~(jnp.max(shape, axis=-1) <= 0)  # NaN must stay NaN
    g, _, _ = lax.while_loop(
        lambda state: jnp.any(state[1]) & (state[2] < _MAX_ITERATIONS),
        advance,
        (jnp.zeros(attracts.shape, shape.dtype), attracts, jnp.zeros((), int)),
    )
    bound = bargmann_bound(potential)
    return jnp.where(attracts, jnp.minimum(size / jnp.where(attracts, g, 1.0), bound), 0.0)


def convergence_radius(potential: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Coupling `|g|` of the nearest pole: the Born series of `g U` converges below it.

    Infinite for `U = 0`. `1 / convergence_radius` is the ratio of successive Born terms of high
    order.
    """
    return 1 / jnp.maximum(shallowness(potential), shallowness(-potential))


@jax.jit
def bound_states(potential: Float[Array, "*batch d"]) -> Int[Array, "*batch"]:
    """Number of S-wave bound states: the nodes of the zero-energy wave function at `x > 0`.

    Counted in every cell and on the straight line outside, which has one more node if it heads for
    the axis.
    """
    d = potential.shape[-1]
    w, p = solve(potential)
    x = jnp.arange(1, d + 1, dtype=potential.dtype).reshape(-1, *[1] * (w.ndim - 1)) / d
    u = x * p - w
    negative = jnp.concatenate([jnp.zeros_like(u[:1], dtype=bool), u < 0])
    crossed = (negative[1:] != negative[:-1]).astype(int)
    # A cell of phase k h holds floor(k h / pi) nodes or one more; the signs at its ends decide.
    strength = jnp.moveaxis(potential, -1, 0)
    half_turns = jnp.floor(jnp.sqrt(jnp.maximum(strength, 0)) / (d * jnp.pi)).astype(int)
    inside = half_turns + (half_turns + crossed) % 2
    outside = (p[-1] < 0) != negative[-1]
    return jnp.sum(inside, axis=0) + outside


def require_shallow(potentials: Float[np.ndarray, "n d"], *, limit: float = 1.0) -> None:
    """Refuse potentials at or beyond the first pole, for data sets that promise shallow ones.

    Args:
      potentials: `U` of n potentials in d equal cells.
      limit: largest lambda that is let through, not included.

    Raises:
      ValueError: naming the first offender, its lambda and what to do.
    """
    potentials = np.asarray(potentials)
    check_finite(potentials)
    candidates = np.flatnonzero(np.asarray(bargmann_bound(jnp.asarray(potentials))) >= limit)
    values = np.asarray(shallowness(potentials[candidates]))
    offenders = np.flatnonzero(~(values < limit))
    if len(offenders):
        row, value = candidates[offenders[0]], values[offenders[0]]
        raise ValueError(
            f"potential {row} has lambda = {value:.4g}, but this data set promises shallow "
            f"potentials with lambda < {limit:g} (the first bound state appears at 1); "
            f"{len(offenders)} of {len(potentials)} potentials break the promise, the largest "
            f"lambda is {values.max():.4g}: lower the amplitude of the sampler by more than that "
            f"factor over {limit:g}, or drop these rows"
        )
