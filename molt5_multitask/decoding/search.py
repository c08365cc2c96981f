"""What a search is: it turns the logits of each step into the next token of each beam."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

LARGEST_BLOCK = 128
"""Most ids in the blocks in which the vocabulary is searched."""


class Hypotheses(NamedTuple):
    """Decoded texts of a batch, best first."""

    ids: Int[Array, "B N T"]
    """Generated ids without the start token; eos, if it was written, and padding after it."""
    scores: Float[Array, "B N"]
    """Sum of the tokens' log probabilities, eos included, by the search's length penalty."""


class SearchState(Protocol):
    """What a search keeps of a batch, for K beams of each example; a pytree."""

    @property
    def tokens(self) -> Int[Array, "B K"]:
        """The newest token of each beam, which the model takes next."""
        ...

    @property
    def parents(self) -> Int[Array, "B K"]:
        """The beam that each beam goes on from."""
        ...

    @property
    def done(self) -> Bool[Array, "B"]:
        """Examples that nothing can change any more."""
        ...


class Search(Protocol):
    """A way of decoding. Its methods are traced; the numbers of the class are static."""

    @property
    def width(self) -> int:
        """Beams of an example."""
        ...

    def start(
        self, numbers: Int[Array, "B"], *, length: int, unused: Bool[Array, "B"]
    ) -> SearchState:
        """Begin with the start token.

        Args:
          numbers: the number of each example, on which random draws depend.
          length: tokens to generate at most, eos included.
          unused: rows that hold no example.
        """
        ...

    def take(self, state: Any, logits: Float[Array, "B K V"]) -> SearchState:
        """Choose the next tokens."""
        ...

    def result(self, state: Any) -> Hypotheses:
        """Return what was found."""
        ...


class Continuations(NamedTuple):
    """The best ways to go on with the beams of an example by one token, best first."""

    scores: Float[Array, "B N"]
    """Sums of log probabilities."""
    beams: Int[Array, "B N"]
    """The beams that they go on from."""
    tokens: Int[Array, "B N"]
    """Their tokens."""


def best_continuations(
    logits: Float[Array, "B K V"], running: Float[Array, "B K"], count: int
) -> Continuations:
    """Return the best of all K * V sums `running + log_softmax(logits)`, taken in float32.

    The vocabulary is cut into blocks: no block beyond the best `count` by their largest entry can
    hold one of the best `count` entries, so that only these are looked into. (A top-k over all
    entries takes four times as long on a CPU.)
    """
    batch, beams, vocab = logits.shape
    size = max(n for n in range(1, LARGEST_BLOCK + 1) if vocab % n == 0)
    # The decoder has computed them with the vocabulary first, and XLA undoes its transposition.
    by_id = jnp.moveaxis(logits.reshape(-1, vocab), 1, 0).astype(jnp.float32)
    blocks = by_id.reshape(vocab // size, size, batch * beams)
    peaks = blocks.max(1)
    peak = peaks.max(0)
    normaliser = jnp.log(jnp.exp(by_id - peak).sum(0))
    running = running.reshape(-1)

    by_peak = ((peaks - peak) - normaliser + running).T.reshape(batch, -1)
    _, chosen = jax.lax.top_k(by_peak, min(count, by_peak.shape[1]))
    beam, block = jnp.divmod(chosen, vocab // size)

    def entries(blocks: Array, rows: Array, beam: Array, block: Array) -> Array:
        peak, normaliser, running = rows[:, beam, None]
        return (blocks[block, :, beam] - peak) - normaliser + running

    sums = jax.vmap(entries, in_axes=(2, 1, 0, 0))(
        blocks.reshape(*blocks.shape[:2], batch, beams),
        jnp.stack([peak, normaliser, running]).reshape(3, batch, beams),
        beam,
        block,
    )
    scores, at = jax.lax.top_k(sums.reshape(batch, -1), count)
    nth = at // size
    return Continuations(
        scores,
        jnp.take_along_axis(beam, nth, axis=1),
        jnp.take_along_axis(block, nth, axis=1) * size + at % size,
    )


def written(
    texts: Int[Array, "B K T"], position: Int[Array, ""], tokens: Int[Array, "B K"]
) -> Int[Array, "B K T"]:
    """Return the texts with a token at a position."""
    return jax.lax.dynamic_update_slice_in_dim(texts, tokens[..., None], position, axis=2)


def select(x: Array, rows: Int[Array, "B N"]) -> Array:
    """Return the entries `rows` of the second axis."""
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *[1] * (x.ndim - 2)), axis=1)
