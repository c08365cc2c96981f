"""Minimises many smooth functions at once by L-BFGS."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

MEMORY = 10
"""Steps that the inverse Hessian is estimated from."""
HALVINGS = 25
"""Times, at most, that a step is halved."""
DESCENT = 1e-4
"""Part of the decrease promised by the slope that a step must bring (Armijo)."""
ROUNDING = 3e-7
"""Relative increase of a value that may be rounding, in float32."""

ValueAndGrad = Callable[[Float[Array, "g p"]], tuple[Float[Array, "g"], Float[Array, "g p"]]]


class _State(NamedTuple):
    x: Float[Array, "g p"]
    value: Float[Array, "g"]
    grad: Float[Array, "g p"]
    steps: Float[Array, "memory g p"]
    """The last steps, newest first."""
    changes: Float[Array, "memory g p"]
    """The changes of the gradient that came with them."""
    inverse: Float[Array, "memory g"]
    """1 / (step . change); 0 where there is none."""
    done: Bool[Array, "g"]
    iteration: Array


def minimize(
    value_and_grad: ValueAndGrad,
    start: Float[Array, "g p"],
    *,
    iterations: int | Array,
    tolerance: float | Array,
) -> Float[Array, "g p"]:
    """Minimise g functions of p variables, each by itself (Nocedal and Wright 2006, algorithm 7.5).

    The functions should be convex: steps are halved until they descend, and curvature is not
    looked for. To be called under `jit`; compiles a fifth as long as a general line search does.

    Args:
      value_and_grad: values and gradients of all functions.
      start: where each begins.
      iterations: steps at most.
      tolerance: a function is done when no derivative is larger, or no step descends.

    Returns:
      The minima; NaN for a function that is not finite at the start.
    """

    def unfinished(state: _State) -> Array:
        return jnp.any(~state.done) & (state.iteration < iterations)

    def step(state: _State) -> _State:
        direction = -_inverse_hessian_times(state.grad, state)
        x, value, grad, descended = _search(value_and_grad, state, direction)
        moved = ~state.done & descended
        x, value, grad = (
            jnp.where(moved.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in ((x, state.x), (value, state.value), (grad, state.grad))
        )
        s, y = x - state.x, grad - state.grad
        product = _dot(s, y)
        inverse = jnp.where(product > 0, 1 / jnp.where(product > 0, product, 1), 0)
        newest = (s, state.steps), (y, state.changes), (inverse, state.inverse)
        steps, changes, inverses = (jnp.concatenate([a[None], b[:-1]]) for a, b in newest)
        done = state.done | ~descended | (jnp.max(jnp.abs(grad), 1) < tolerance)
        return _State(x, value, grad, steps, changes, inverses, done, state.iteration + 1)

    value, grad = value_and_grad(start)
    nothing = jnp.zeros((MEMORY, *start.shape), start.dtype)
    done = jnp.max(jnp.abs(grad), 1) < tolerance
    first = _State(
        start, value, grad, nothing, nothing, nothing[..., 0], done, jnp.zeros((), jnp.int32)
    )
    found = lax.while_loop(unfinished, step, first).x
    return jnp.where(jnp.isfinite(value)[:, None], found, jnp.nan)


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, 1)


def _inverse_hessian_times(vector: Float[Array, "g p"], state: _State) -> Float[Array, "g p"]:
    """Return the two-loop recursion's product; without any step yet, a vector of length one."""

    def back(q: Array, pair: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        s, y, inverse = pair
        a = inverse * _dot(s, q)
        return q - a[:, None] * y, a

    def forth(q: Array, pair: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        s, y, inverse, a = pair
        return q + (a - inverse * _dot(y, q))[:, None] * s, None

    pairs = state.steps, state.changes, state.inverse
    q, a = lax.scan(back, vector, pairs)
    square = _dot(state.changes[0], state.changes[0])
    known = state.inverse[0] > 0
    curvature = jnp.where(known, state.inverse[0] * square, jnp.linalg.norm(vector, axis=1))
    q = q / jnp.where(curvature > 0, curvature, 1)[:, None]
    return lax.scan(forth, q, (*pairs, a), reverse=True)[0]


def _search(
    value_and_grad: ValueAndGrad, state: _State, direction: Float[Array, "g p"]
) -> tuple[Array, Array, Array, Array]:
    """Halve the step until it descends; return where it ends, and whether it does descend."""
    slope = _dot(state.grad, direction)

    def seeking(carry: tuple) -> Array:
        _, _, _, _, found, tries = carry
        return jnp.any(~found & ~state.done) & (tries <= HALVINGS)

    def attempt(carry: tuple) -> tuple:
        size, x, value, grad, found, tries = carry
        x = jnp.where(found[:, None], x, state.x + size[:, None] * direction)
        value, grad = value_and_grad(x)
        enough = state.value + DESCENT * size * slope + ROUNDING * jnp.abs(state.value)
        found = value <= enough
        return jnp.where(found, size, size / 2), x, value, grad, found, tries + 1

    size, found = jnp.ones_like(slope), jnp.zeros_like(slope, bool)
    start = size, state.x, state.value, state.grad, found, jnp.zeros((), jnp.int32)
    _, x, value, grad, found, _ = lax.while_loop(seeking, attempt, start)
    return x, value, grad, found
