"""Decoding one position at a time: the cache, and a decoder block for one more position.

A step multiplies all weights with few columns, one for each beam. XLA's CPU backend does that up to
four times faster with the weights on the left, rows of outputs: they are turned once, when the
cache is made, and features stand before beams here. Keys lie with their positions last and values
with their positions first, so that the products with them need no rearrangement either.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from common.nn.attention import dot_product_attention
from common.nn.layers import Linear, rms_norm
from molt5_multitask.blocks import DecoderBlock

POSITION_MULTIPLE = 16
"""The cache holds a multiple of so many positions: products over other sizes are slow on CPUs."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepLayer:
    """The weights of a decoder block as a step uses them, `(outputs, inputs)`."""

    self_norm: Float[Array, "d"]
    """Scale of the norm before self-attention."""
    query_key_value: Float[Array, "QKV d"]
    """Projections of self-attention, one after another: three times HD outputs."""
    self_out: Float[Array, "d HD"]
    """Projection back."""
    cross_norm: Float[Array, "d"]
    """Scale of the norm before cross-attention."""
    cross_query: Float[Array, "HD d"]
    """Projection of the queries of cross-attention."""
    cross_out: Float[Array, "d HD"]
    """Projection back."""
    feed_forward_norm: Float[Array, "d"]
    """Scale of the norm before the feed-forward."""
    wi: Float[Array, "F d"]
    """First map of the feed-forward; with a gate, `gate` and then `wi`."""
    wo: Float[Array, "d f"]
    """Second map of the feed-forward."""

    @classmethod
    def of(cls, block: DecoderBlock) -> "StepLayer":
        """Turn the weights of a block."""
        attention, cross, forward = block.self_attention, block.cross_attention, block.feed_forward
        inner = (forward.wi,) if forward.gate is None else (forward.gate, forward.wi)
        return cls(
            self_norm=block.self_attention_norm.scale[...],
            query_key_value=_turned(attention.query, attention.key, attention.value),
            self_out=_turned(attention.out),
            cross_norm=block.cross_attention_norm.scale[...],
            cross_query=_turned(cross.query),
            cross_out=_turned(cross.out),
            feed_forward_norm=block.feed_forward_norm.scale[...],
            wi=_turned(*inner),
            wo=_turned(forward.wo),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """What decoding step by step keeps, for K beams of each of B examples and at most T tokens.

    A beam's history may have been written by other beams. Instead of moving keys and values when
    beams are reordered, `writers` says whose they are, and attention looks there.
    """

    index: Int[Array, ""]
    """Tokens taken so far."""
    writers: Int[Array, "B K T"]
    """The beam that wrote position t of beam k's history."""
    keys: tuple[Float[Array, "B H D TK"], ...]
    """Self-attention keys by layer; position t as written by beam k is at t * K + k."""
    values: tuple[Float[Array, "B H TK D"], ...]
    """Self-attention values by layer."""
    cross_keys: tuple[Float[Array, "B H D L"], ...]
    """Keys of the encoder's result by layer, once for all beams of an example."""
    cross_values: tuple[Float[Array, "B H L D"], ...]
    """Values of the encoder's result by layer."""
    segments: Int[Array, "B L"]
    """1 where the encoder's result is of the example, 0 at padding."""

    @classmethod
    def empty(
        cls,
        cross: Sequence[tuple[Float[Array, "B H L D"], Float[Array, "B H L D"]]],
        segments: Int[Array, "B L"],
        *,
        beams: int,
        tokens: int,
    ) -> "Cache":
        """Make a cache for `tokens` tokens from the cross-attention keys and values by layer."""
        keys, values = zip(*cross, strict=True)
        batch, heads, _, size = keys[0].shape
        dtype = keys[0].dtype
        return cls(
            index=jnp.zeros((), jnp.int32),
            writers=jnp.zeros((batch, beams, 0), jnp.int32),
            keys=tuple(jnp.zeros((batch, heads, size, 0), dtype) for _ in cross),
            values=tuple(jnp.zeros((batch, heads, 0, size), dtype) for _ in cross),
            cross_keys=tuple(k.swapaxes(2, 3) for k in keys),
            cross_values=values,
            segments=segments,
        ).grow(tokens)

    @property
    def tokens(self) -> int:
        """Tokens that there is room for."""
        return self.writers.shape[-1]

    def grow(self, tokens: int) -> "Cache":
        """Make room for `tokens` tokens at least."""
        beams = self.writers.shape[1]
        more = tokens + -tokens % POSITION_MULTIPLE - self.tokens

        def pad(x: Array, axis: int, by: int) -> Array:
            return jnp.pad(x, [(0, by if a == axis else 0) for a in range(x.ndim)])

        return dataclasses.replace(
            self,
            writers=pad(self.writers, 2, more),
            keys=tuple(pad(x, 3, more * beams) for x in self.keys),
            values=tuple(pad(x, 2, more * beams) for x in self.values),
        )

    def reorder(self, beams: Int[Array, "B K"]) -> "Cache":
        """Let beam k go on with the history of beam `beams[:, k]`."""
        writers = jnp.take_along_axis(self.writers, beams[:, :, None], axis=1)
        return dataclasses.replace(self, writers=writers)


def step(
    layer: StepLayer,
    x: Float[Array, "d B K"],
    keys: Float[Array, "B H D S"],
    values: Float[Array, "B H S D"],
    start: Int[Array, ""],
    *,
    cross_keys: Float[Array, "B H D L"],
    cross_values: Float[Array, "B H L D"],
    bias: Float[Array, "B H K S"],
    cross_bias: Float[Array, "B 1 1 L"],
    norm_eps: float,
) -> tuple[Float[Array, "d B K"], Float[Array, "B H D S"], Float[Array, "B H S D"]]:
    """Transform the newest position of K beams.

    Args:
      layer: the block.
      x: the stream.
      keys: those of all earlier positions, whatever beam wrote them; S = T * K.
      values: the same.
      start: where to write the new ones.
      cross_keys: those of the encoder's result.
      cross_values: the same.
      bias: added to the scores, -1e9 where a beam must not look.
      cross_bias: the same for cross-attention.
      norm_eps: `T5Config.norm_eps`.

    Returns:
      The stream after the block, and keys and values with the new ones.
    """
    _, heads, size, _ = keys.shape

    def normed(x: Array, scale: Array) -> Array:
        return rms_norm(x, scale[:, None, None], eps=norm_eps, axis=0)

    y = _times(layer.query_key_value, normed(x, layer.self_norm))
    query, key, value = y.reshape(3, heads, size, *x.shape[1:]).transpose(0, 3, 1, 4, 2)
    keys = jax.lax.dynamic_update_slice_in_dim(keys, key.swapaxes(2, 3), start, axis=3)
    values = jax.lax.dynamic_update_slice_in_dim(values, value, start, axis=2)
    x = x + _times(layer.self_out, _attend(query, keys, values, bias))
    y = _times(layer.cross_query, normed(x, layer.cross_norm))
    query = y.reshape(heads, size, *x.shape[1:]).transpose(2, 0, 3, 1)
    y = _attend(query, cross_keys, cross_values, cross_bias)
    x = x + _times(layer.cross_out, y)
    y = _times(layer.wi, normed(x, layer.feed_forward_norm))
    if layer.wi.shape[0] == layer.wo.shape[1]:
        y = jax.nn.relu(y)
    else:
        gate, y = jnp.split(y, 2)
        y = jax.nn.gelu(gate, approximate=True) * y
    return x + _times(layer.wo, y), keys, values


def _turned(*linears: Linear) -> Float[Array, "outputs inputs"]:
    """Return the kernels as one matrix, outputs of all of them first."""
    kernels = [linear.kernel[...] for linear in linears]
    fan_in = math.prod(kernels[0].shape[: linears[0].axes])
    return jnp.concatenate([kernel.reshape(fan_in, -1).T for kernel in kernels])


def _times(weights: Float[Array, "n m"], x: Float[Array, "m B K"]) -> Float[Array, "n B K"]:
    return (weights @ x.reshape(len(x), -1)).reshape(len(weights), *x.shape[1:])


def _attend(
    query: Float[Array, "B H K D"],
    keys: Float[Array, "B H D S"],
    values: Float[Array, "B H S D"],
    bias: Float[Array, "#B #H #K S"],
) -> Float[Array, "HD B K"]:
    y = dot_product_attention(query, keys.swapaxes(2, 3), values, bias=bias)
    batch, heads, beams, size = y.shape
    return y.transpose(1, 3, 0, 2).reshape(heads * size, batch, beams)
