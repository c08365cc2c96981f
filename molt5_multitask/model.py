"""T5 as one NNX module, used through pure functions of its parameters.

    config = preset("t5-small")
    params = init(config, jax.random.key(0))          # a nested dict of arrays

    @jax.jit
    def logits(params, batch):
        model = bind(config, params)                  # inside the traced function
        return model.logits(model(batch))

Blocks are stacked: their arrays have a leading axis of layers. Rows may pack several examples:
`segments` are 0 at padding and 1, 2, ... at the positions of the examples, and nothing attends
across them. Positions enter through their differences only, so they need no reset.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from common.nn.attention import MASKED
from common.nn.layers import RMSNorm, dropout, dropout_masks, rms_norm
from common.nn.stack import make_stack, run_stack
from common.rng import Rngs
from common.task import Params
from molt5_multitask.blocks import DecoderBlock, Embedding, EncoderBlock, RelativeBias
from molt5_multitask.config import PAD, PRESETS, T5Config, preset
from molt5_multitask.incremental import Cache, StepLayer, step

__all__ = ["PRESETS", "T5", "Cache", "T5Config", "bind", "init", "preset", "shift_right"]


class Stack(nnx.Module):
    """Blocks, stacked over layers, with their shared position bias and the norm at the end."""

    def __init__(
        self,
        block: Callable[..., EncoderBlock | DecoderBlock],
        layers: int,
        config: T5Config,
        *,
        bidirectional: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.layers = config, layers
        self.blocks = make_stack(lambda rngs: block(config, rngs=rngs), layers, rngs=rngs)
        self.relative_bias = RelativeBias(config, bidirectional=bidirectional, rngs=rngs)
        self.final_norm = RMSNorm(config.d_model, eps=config.norm_eps)

    def __call__(
        self, x: Float[Array, "B L d"], key: Array | None, **context: Array
    ) -> Float[Array, "B L d"]:
        """Run all blocks; `context` goes to each of them."""
        config = self.config
        ends, keys = (
            (None, None)
            if key is None
            else (
                jax.random.fold_in(key, 0),
                jax.random.split(jax.random.fold_in(key, 1), self.layers),
            )
        )
        shape = (1 if config.dropout_shared else x.shape[1], config.d_model)
        first, last = dropout_masks(ends, config.dropout, len(x), shape, shape)
        bias = self.relative_bias(x.shape[1])
        x = run_stack(
            self.blocks,
            lambda block, x, key: block(x, key, bias=bias, **context),
            dropout(x, first, config.dropout),
            keys,
            layers=self.layers,
            scan=config.scan,
            remat=config.remat,
        )
        return dropout(self.final_norm(x), last, config.dropout)


class T5(nnx.Module):
    """The encoder-decoder. It computes in the type of its parameters; see `common.nn.layers`."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = Embedding(config.vocab_rows, config.d_model, rngs=rngs)
        self.encoder = Stack(
            EncoderBlock, config.encoder_layers, config, bidirectional=True, rngs=rngs
        )
        self.decoder = Stack(
            DecoderBlock, config.decoder_layers, config, bidirectional=False, rngs=rngs
        )
        self.lm_head = (
            None if config.tied else Embedding(config.vocab_rows, config.d_model, rngs=rngs)
        )

    @property
    def output_table(self) -> Float[Array, "V d"]:
        """The matrix that projects to the vocabulary; rows from `vocab_size` on are spare."""
        return (self.lm_head or self.embedding).table[...]

    def encode(
        self, inputs: Int[Array, "B L"], segments: Int[Array, "B L"], rngs: Rngs | None = None
    ) -> Float[Array, "B L d"]:
        """Encode rows of ids; without `rngs` there is no dropout."""
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        return self.encoder(self.embedding(inputs), _key(rngs, "encoder"), mask=mask)

    def decode(
        self,
        decoder_inputs: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        *,
        encoded: Float[Array, "B L d"],
        input_segments: Int[Array, "B L"],
        rngs: Rngs | None = None,
    ) -> Float[Array, "B T d"]:
        """Decode all positions at once, each from those before it (teacher forcing).

        Returns:
          The states that `logits` projects to the vocabulary.
        """
        length = segments.shape[1]
        same = segments[:, :, None] == segments[:, None, :]
        hidden = self.decoder(
            self.embedding(decoder_inputs),
            _key(rngs, "decoder"),
            encoded=encoded,
            mask=(same & np.tri(length, dtype=bool))[:, None],
            cross_mask=(segments[:, :, None] == input_segments[:, None, :])[:, None],
        )
        return self._scaled(hidden)

    def __call__(
        self, batch: Mapping[str, Int[Array, "B ..."]], rngs: Rngs | None = None
    ) -> Float[Array, "B T d"]:
        """Return the decoder's states for a training batch.

        Args:
          batch: `inputs` and `input_segments` (B, L), `targets` and `target_segments` (B, T).
          rngs: random streams of dropout; None for none.
        """
        encoded = self.encode(batch["inputs"], batch["input_segments"], rngs)
        return self.decode(
            shift_right(batch["targets"], batch["target_segments"]),
            batch["target_segments"],
            encoded=encoded,
            input_segments=batch["input_segments"],
            rngs=rngs,
        )

    def logits(self, hidden: Float[Array, "... d"]) -> Float[Array, "... V"]:
        """Project decoder states to float32 logits, of all `vocab_rows`; spare ones are -1e9."""
        table = self.output_table
        return self._without_spare(
            jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        )

    def step_layers(self) -> tuple[StepLayer, ...]:
        """Return the decoder's weights as `decode_step` uses them, by layer: make them once."""
        return tuple(StepLayer.of(block) for block in self._decoder_blocks())

    def init_cache(
        self,
        encoded: Float[Array, "B L d"],
        segments: Int[Array, "B L"],
        *,
        beams: int,
        max_tokens: int,
    ) -> Cache:
        """Make the cache for decoding `max_tokens` tokens at least, the start token included."""
        cross = [block.cross_attention.keys_values(encoded) for block in self._decoder_blocks()]
        return Cache.empty(cross, segments, beams=beams, tokens=max_tokens)

    def decode_step(
        self, layers: Sequence[StepLayer], cache: Cache, tokens: Int[Array, "B K"]
    ) -> tuple[Float[Array, "B K V"], Cache]:
        """Take one more token of each beam; the first is the start token, id 0.

        Args:
          layers: what `step_layers` returns.
          cache: what the tokens before have left.
          tokens: the tokens.

        Returns:
          Float32 logits of the next token, and the cache with this one in it.
        """
        batch, beams, length = cache.writers.shape
        positions, own = np.arange(length), np.arange(beams)
        # What a beam writes now is its own.
        writers = jnp.where(positions == cache.index, own[:, None], cache.writers)
        visible = (writers[..., None] == own) & (positions <= cache.index)[:, None]  # (B, K, T, K)
        visible = visible.reshape(batch, 1, beams, length * beams)
        distance_bias = self.decoder.relative_bias.at(-np.arange(length))
        back = jnp.maximum(cache.index - positions, 0)
        bias = jnp.repeat(distance_bias[:, back].astype(jnp.float32), beams, axis=1)
        bias = jnp.where(visible, bias[:, None], MASKED)
        cross_bias = jnp.where(cache.segments > 0, 0.0, MASKED)[:, None, None]
        x = jnp.moveaxis(self.embedding(tokens), -1, 0)
        keys, values = [], []
        for l, layer in enumerate(layers):
            x, new_keys, new_values = step(
                layer,
                x,
                cache.keys[l],
                cache.values[l],
                cache.index * beams,
                cross_keys=cache.cross_keys[l],
                cross_values=cache.cross_values[l],
                bias=bias,
                cross_bias=cross_bias,
                norm_eps=self.config.norm_eps,
            )
            keys.append(new_keys)
            values.append(new_values)
        scale = self.decoder.final_norm.scale[...][:, None, None]
        x = self._scaled(rms_norm(x, scale, eps=self.config.norm_eps, axis=0))
        logits = jnp.matmul(
            self.output_table, x.reshape(len(x), -1), preferred_element_type=jnp.float32
        )
        logits = self._without_spare(logits.T).reshape(batch, beams, -1)
        cache = dataclasses.replace(
            cache, index=cache.index + 1, writers=writers, keys=tuple(keys), values=tuple(values)
        )
        return logits, cache

    def _decoder_blocks(self) -> list[Any]:
        graph, stacked = nnx.split(self.decoder.blocks)
        layers = range(self.config.decoder_layers)
        return [nnx.merge(graph, jax.tree.map(lambda leaf, l=l: leaf[l], stacked)) for l in layers]

    def _without_spare(self, logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
        spare = np.arange(logits.shape[-1]) >= self.config.vocab_size
        return jnp.where(spare, MASKED, logits) if spare.any() else logits

    def _scaled(self, hidden: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        return hidden * self.config.d_model**-0.5 if self.config.scale_output else hidden


def init(config: T5Config, key: Array) -> Params:
    """Draw the parameters: a nested dict of float32 arrays."""
    _, state = nnx.split(T5(config, rngs=nnx.Rngs(params=key)))
    return nnx.to_pure_dict(state)


@functools.lru_cache
def _graph(config: T5Config) -> nnx.GraphDef[T5]:
    return nnx.graphdef(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))))


def bind(config: T5Config, params: Params) -> T5:
    """Return the model with these parameters; call it inside the function that is traced."""
    return nnx.merge(_graph(config), params)


def shift_right(targets: Int[Array, "B T"], segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Return the decoder's inputs: each example's targets one later, after the start token."""

    def shift(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]

    return jnp.where(shift(segments) == segments, shift(targets), PAD)


def _key(rngs: Rngs | None, stack: str) -> Array | None:
    return None if rngs is None else rngs(f"dropout/{stack}")
