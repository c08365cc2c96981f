"""Linear maps, RMS normalisation and dropout.

Layers compute in the type of what they are given; a precision policy is a cast of the parameters
(`common.step.StepConfig.compute_dtype`). What needs float32 takes it by itself.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float


class Linear(nnx.Module):
    """The map `y = x . kernel (+ bias)` from axes of shape `inputs` to axes of shape `outputs`.

    kernel `(*inputs, *outputs)`, bias `(*outputs,)`; so a projection to attention heads is
    `Linear((d,), (heads, d_head))`, and the one back `Linear((heads, d_head), (d,))`.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        stddev: float,
        bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the kernel from `N(0, stddev^2)`; a bias is zero."""
        self.axes = len(inputs)
        shape = (*inputs, *outputs)
        self.kernel = nnx.Param(stddev * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(tuple(outputs), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Map `(..., *inputs)` to `(..., *outputs)`."""
        kernel = self.kernel[...]
        fan_in = math.prod(kernel.shape[: self.axes])
        # One plain matrix product: what XLA's backends are best at.
        flat = x.reshape(*x.shape[: x.ndim - self.axes], fan_in) @ kernel.reshape(fan_in, -1)
        y = flat.reshape(*flat.shape[:-1], *kernel.shape[self.axes :])
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    """Division by the root mean square of the last axis, times a scale (arXiv:1910.07467)."""

    def __init__(self, features: int, *, eps: float) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalise, with the statistics in float32."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


def dropout(
    x: Float[Array, "..."], rate: float, key: Array | None, *, shared_axes: Sequence[int] = ()
) -> Float[Array, "..."]:
    """Set entries to zero with probability `rate` and divide the others by `1 - rate`.

    Args:
      x: any array.
      rate: probability, rounded to a multiple of 2^-16.
      key: typed key; None returns `x` (no dropout).
      shared_axes: axes along which one draw is shared.
    """
    if key is None or rate == 0:
        return x
    shape = list(x.shape)
    for axis in shared_axes:
        shape[axis] = 1
    # 16 random bits an entry are enough, and half the cost of the usual 32.
    dropped = round(rate * 2**16)
    keep = jax.random.bits(key, tuple(shape), jnp.uint16) >= dropped
    return jnp.where(keep, x * (2**16 / (2**16 - dropped)), 0).astype(x.dtype)


def split_key(key: Array | None, parts: int) -> Sequence[Array | None]:
    """Split a key that may be absent into that many keys, or absences."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))
