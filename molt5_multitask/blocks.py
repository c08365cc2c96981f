"""The layers of a T5: embedding, relative position bias, the two kinds of block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from common.nn.attention import MultiHeadAttention, dot_product_attention
from common.nn.layers import Keep, RMSNorm, dropout, dropout_masks
from common.nn.mlp import MLP
from molt5_multitask.config import T5Config


class Embedding(nnx.Module):
    """A table with one row for each id."""

    def __init__(self, rows: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.table = nnx.Param(jax.random.normal(rngs.params(), (rows, features), jnp.float32))

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... d"]:
        """Look up the rows."""
        return jnp.take(self.table[...], ids, axis=0)


def position_buckets(
    distances: Int[np.ndarray, "..."], *, buckets: int, max_distance: int, bidirectional: bool
) -> Int[np.ndarray, "..."]:
    """Return the bucket of each `distance = key position - query position`.

    Half of the buckets of a direction hold one distance each; the other half widen geometrically
    up to `max_distance`, from where the last one takes all. Both directions have their own buckets,
    or keys after the query share bucket 0.
    """
    offset = np.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        offset = np.where(distances > 0, buckets, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = buckets // 2
    # Counting edges, with a margin for rounding, keeps distances that lie on an edge beyond it.
    edges = exact * (max_distance / exact) ** (np.arange(1, buckets - exact) / (buckets - exact))
    wide = exact + np.searchsorted(edges - 1e-6, distances, side="right")
    return offset + np.where(distances < exact, distances, wide)


class RelativeBias(nnx.Module):
    """Attention bias by head and bucket of the relative position."""

    def __init__(self, config: T5Config, *, bidirectional: bool, rngs: nnx.Rngs) -> None:
        self.bucket = functools.partial(
            position_buckets,
            buckets=config.buckets,
            max_distance=config.max_distance,
            bidirectional=bidirectional,
        )
        shape = (config.buckets, config.heads)
        normal = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.table = nnx.Param(config.d_model**-0.5 * normal)

    def at(self, distances: Int[np.ndarray, "..."]) -> Float[Array, "H ..."]:
        """Return the bias at each distance, key position - query position."""
        return jnp.moveaxis(self.table[...][self.bucket(distances)], -1, 0)

    def __call__(self, length: int) -> Float[Array, "1 H L L"]:
        """Return the bias between all positions of a row."""
        positions = np.arange(length)
        return self.at(positions[None, :] - positions[:, None])[None]


def _feed_forward(config: T5Config, *, rngs: nnx.Rngs) -> MLP:
    gated = config.feed_forward == "gated-gelu"
    return MLP(
        config.d_model,
        config.d_ff,
        activation="gelu_tanh" if gated else "relu",
        gated=gated,
        stddev=config.d_model**-0.5,
        out_stddev=config.d_ff**-0.5,
        dropout_rate=config.dropout,
        rngs=rngs,
    )


def _attention(config: T5Config, *, rngs: nnx.Rngs) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.d_model,
        heads=config.heads,
        d_head=config.d_kv,
        query_stddev=(config.d_model * config.d_kv) ** -0.5,
        stddev=config.d_model**-0.5,
        out_stddev=(config.heads * config.d_kv) ** -0.5,
        rngs=rngs,
    )


def _norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.d_model, eps=config.norm_eps)


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each normalised before and added to the stream."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.attention_norm = _norm(config)
        self.attention = _attention(config, rngs=rngs)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = _feed_forward(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L d"],
        key: Array | None,
        *,
        bias: Float[Array, "1 H L L"],
        mask: Bool[Array, "B 1 L L"],
    ) -> Float[Array, "B L d"]:
        """Transform the stream; `key` draws the dropout."""
        config, length = self.config, x.shape[1]
        asking = 1 if config.dropout_shared else length
        stream = (asking, config.d_model)
        keep = dropout_masks(
            key,
            config.dropout,
            len(x),
            (config.heads, asking, length),
            stream,
            (asking, config.d_ff),
            stream,
        )
        y = self.attention_norm(x)
        y = _attend(self.attention, y, y, keep[0], config, bias=bias, mask=mask)
        x = x + dropout(y, keep[1], config.dropout)
        y = self.feed_forward(self.feed_forward_norm(x), keep[2])
        return x + dropout(y, keep[3], config.dropout)


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the encoder's result, and feed-forward."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.self_attention_norm = _norm(config)
        self.self_attention = _attention(config, rngs=rngs)
        self.cross_attention_norm = _norm(config)
        self.cross_attention = _attention(config, rngs=rngs)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = _feed_forward(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T d"],
        key: Array | None,
        *,
        encoded: Float[Array, "B L d"],
        bias: Float[Array, "1 H T T"],
        mask: Bool[Array, "B 1 T T"],
        cross_mask: Bool[Array, "B 1 T L"],
    ) -> Float[Array, "B T d"]:
        """Transform the stream; `key` draws the dropout."""
        config, length = self.config, x.shape[1]
        asking = 1 if config.dropout_shared else length
        stream = (asking, config.d_model)
        keep = dropout_masks(
            key,
            config.dropout,
            len(x),
            (config.heads, asking, length),
            stream,
            (config.heads, asking, encoded.shape[1]),
            stream,
            (asking, config.d_ff),
            stream,
        )
        y = self.self_attention_norm(x)
        y = _attend(self.self_attention, y, y, keep[0], config, bias=bias, mask=mask)
        x = x + dropout(y, keep[1], config.dropout)
        y = self.cross_attention_norm(x)
        y = _attend(self.cross_attention, y, encoded, keep[2], config, mask=cross_mask)
        x = x + dropout(y, keep[3], config.dropout)
        y = self.feed_forward(self.feed_forward_norm(x), keep[4])
        return x + dropout(y, keep[5], config.dropout)


def _attend(
    attention: MultiHeadAttention,
    x: Float[Array, "B Q d"],
    memory: Float[Array, "B K d"],
    keep: Keep,
    config: T5Config,
    *,
    mask: Bool[Array, "B 1 Q K"],
    bias: Float[Array, "1 H Q K"] | None = None,
) -> Float[Array, "B Q d"]:
    keys, values = attention.keys_values(memory)
    heads = dot_product_attention(
        attention.queries(x),
        keys,
        values,
        bias=bias,
        mask=mask,
        keep=keep,
        dropout_rate=config.dropout,
    )
    return attention.merge(heads)
