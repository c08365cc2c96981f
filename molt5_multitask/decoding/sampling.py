"""Sampling from the model's distribution, or from its most probable part."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from molt5_multitask.config import EOS, PAD
from molt5_multitask.decoding.search import Hypotheses, select, written


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingState:
    """The samples of a batch."""

    count: Int[Array, ""]
    """Tokens generated so far."""
    keys: Array
    """Typed random key of each sample, (B, K)."""
    tokens: Int[Array, "B K"]
    """The newest token of each sample."""
    texts: Int[Array, "B K T"]
    """What each sample has written."""
    sums: Float[Array, "B K"]
    """Log probability of each sample so far, under the unchanged distribution."""
    lengths: Int[Array, "B K"]
    """Tokens of each sample so far, eos included."""
    ended: Bool[Array, "B K"]
    """Samples that have written eos."""

    @property
    def parents(self) -> Int[Array, "B K"]:
        """Each sample goes on from itself."""
        return jnp.broadcast_to(jnp.arange(self.tokens.shape[1]), self.tokens.shape)

    @property
    def done(self) -> Bool[Array, "B"]:
        """Examples of which all samples have ended."""
        return self.ended.all(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Independent samples, returned with their mean log probability by token, the largest first.

    The draws of an input depend on the seed and its number only, not on what it is batched with.
    """

    samples: int = 1
    """Samples of each input."""
    temperature: float = 1.0
    """What the logits are divided by: below 1 sharpens the distribution."""
    top_k: int | None = None
    """Draw from this many most probable tokens only; None from all."""
    top_p: float = 1.0
    """Draw from the fewest most probable tokens that have this probability together, of those that
    top_k leaves."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples = {self.samples} must be positive")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature = {self.temperature} must be positive; for the most probable token "
                "at each step, decode with one beam"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k} must be positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must lie in (0, 1]")

    @property
    def width(self) -> int:
        """Samples of an example."""
        return self.samples

    def start(
        self, numbers: Int[Array, "B"], *, length: int, unused: Bool[Array, "B"]
    ) -> SamplingState:
        """Begin with the start token."""
        shape = (len(numbers), self.samples)
        seed = jax.random.key(self.seed)

        def keys(number: Int[Array, ""]) -> Array:
            return jax.random.split(jax.random.fold_in(seed, number), self.samples)

        return SamplingState(
            count=jnp.zeros((), jnp.int32),
            keys=jax.vmap(keys)(numbers),
            tokens=jnp.zeros(shape, jnp.int32),
            texts=jnp.zeros((*shape, length), jnp.int32),
            sums=jnp.zeros(shape, jnp.float32),
            lengths=jnp.zeros(shape, jnp.int32),
            ended=jnp.broadcast_to(unused[:, None], shape),
        )

    def take(self, state: SamplingState, logits: Float[Array, "B K V"]) -> SamplingState:
        """Draw the next tokens."""

        def draw(key: Array, logits: Float[Array, "V"]) -> Int[Array, ""]:
            return jax.random.categorical(jax.random.fold_in(key, state.count), logits)

        drawn = jax.vmap(jax.vmap(draw))(state.keys, self.restrict(logits))
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], -1)[..., 0]
        tokens = jnp.where(state.ended, PAD, drawn).astype(jnp.int32)
        return SamplingState(
            count=state.count + 1,
            keys=state.keys,
            tokens=tokens,
            texts=written(state.texts, state.count, tokens),
            sums=state.sums + jnp.where(state.ended, 0, log_probs),
            lengths=state.lengths + ~state.ended,
            ended=state.ended | (tokens == EOS),
        )

    def restrict(self, logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
        """Apply the temperature, and set the logits of all tokens not to be drawn to -inf.

        Of several equal logits at the edge all are kept.
        """
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            falling = jnp.sort(logits, axis=-1, descending=True)
            probabilities = jax.nn.softmax(falling)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            kept = jnp.sum(before < self.top_p, axis=-1, keepdims=True)
            least = jnp.take_along_axis(falling, kept - 1, axis=-1)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits

    def result(self, state: SamplingState) -> Hypotheses:
        """Return the samples."""
        scores, order = jax.lax.top_k(state.sums / jnp.maximum(state.lengths, 1), self.samples)
        return Hypotheses(select(state.texts, order), scores)
