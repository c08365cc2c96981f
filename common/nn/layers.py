"""Linear maps, normalisations and dropout.

Layers compute in the type of what they are given; a precision policy is a cast of the parameters
(`common.step.StepConfig.compute_dtype`). What needs float32 takes it by itself.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from common.xla import written_to_memory

AnyArray = Array | np.ndarray
"""What a model takes from its caller: NumPy arrays, too."""


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
        batch = x.shape[: x.ndim - self.axes]
        # One plain matrix product: what XLA's backends are best at.
        flat = _whole_gradient(x.reshape(-1, fan_in) @ kernel.reshape(fan_in, -1))
        y = flat.reshape(*batch, *kernel.shape[self.axes :])
        return y if self.bias is None else y + self.bias[...]


@jax.custom_vjp
def _whole_gradient(y: Array) -> Array:
    """Return y, whose gradient is written to memory before anything is computed from it.

    XLA's CPU backend fuses what makes the gradient into the product with the transposed input, as a
    walk across its columns, which is slow.
    """
    return y


_whole_gradient.defvjp(lambda y: (y, None), lambda _, gradient: (written_to_memory(gradient),))


def rms_norm(
    x: Float[Array, "..."], scale: Float[Array, "..."], *, eps: float, axis: int = -1
) -> Float[Array, "..."]:
    """Divide by the root mean square over an axis and scale, with the statistics in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=axis, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Division by the root mean square of the last axis, times a scale (arXiv:1910.07467)."""

    def __init__(self, features: int, *, eps: float) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalise."""
        return rms_norm(x, self.scale[...], eps=self.eps)


class LayerNorm(nnx.Module):
    """Normalisation of the last axis to mean 0 and variance 1, then an affine map of each entry."""

    def __init__(self, features: int, *, eps: float) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalise, with the statistics in float32 (arXiv:1607.06450)."""
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


Keep = Bool[Array, "B ..."] | None
"""Which entries survive dropout; None where there is none."""


def dropout_masks(
    key: Array | None, rate: float, batch: int, *shapes: Sequence[int]
) -> Sequence[Keep]:
    """Draw which entries survive dropout, for several arrays at once.

    One draw compiles and runs faster than many: 16 random bits an entry, two entries a number.

    Args:
      key: typed key; None draws nothing.
      rate: probability of being dropped, rounded to a multiple of 2^-16.
      batch: examples, the leading axis of all arrays.
      *shapes: the arrays' other axes; where one is 1, all entries along that axis share a draw.

    Returns:
      A mask `(batch, *shape)` for each of the shapes, or None for each without key or rate.
    """
    if key is None or rate == 0:
        return [None] * len(shapes)
    sizes = [math.prod(shape) for shape in shapes]
    bits = jax.random.bits(key, (batch, -(-sum(sizes) // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(bits, jnp.uint16).reshape(batch, -1)
    parts = jnp.split(bits[:, : sum(sizes)], np.cumsum(sizes)[:-1], axis=1)
    return [
        (part >= _dropped(rate)).reshape(batch, *shape)
        for part, shape in zip(parts, shapes, strict=True)
    ]


def dropout(x: Float[Array, "B ..."], keep: Keep, rate: float) -> Float[Array, "B ..."]:
    """Set entries to zero where they do not survive, and divide the others by `1 - rate`."""
    if keep is None:
        return x
    return jnp.where(keep, x * (2**16 / (2**16 - _dropped(rate))), 0).astype(x.dtype)


def _dropped(rate: float) -> int:
    return round(rate * 2**16)
