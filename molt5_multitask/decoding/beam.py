"""Beam search, with the sequences and scores of transformers' `generate`."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from common.choices import check_choice
from molt5_multitask.config import EOS
from molt5_multitask.decoding.search import Hypotheses, best_continuations, select, written


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamState:
    """The running beams of a batch, and the pool of finished hypotheses."""

    count: Int[Array, ""]
    """Tokens generated so far."""
    tokens: Int[Array, "B K"]
    """The newest token of each beam."""
    parents: Int[Array, "B K"]
    """The beam that each beam goes on from."""
    running: Float[Array, "B K"]
    """Sum of log probabilities of each beam, best first; -inf where there is none."""
    texts: Int[Array, "B K T"]
    """What each beam has written."""
    pool_scores: Float[Array, "B K"]
    """Scores of the finished hypotheses, best first; -inf in empty places."""
    pool: Int[Array, "B K T"]
    """The finished hypotheses."""
    done: Bool[Array, "B"]
    """Examples whose pool is final."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Beam search; with one beam it is greedy decoding.

    A hypothesis finishes with eos or at the maximum length, and its score is its sum of log
    probabilities by `tokens ** length_penalty`. Each step looks at the best 2K continuations of the
    K beams: the best K that do not finish run on, and those that finish enter the pool if they are
    among the first K.
    """

    beams: int = 1
    """Beams; 1 is greedy decoding, which the length penalty and early stopping do not change."""
    best: int = 1
    """Hypotheses to return of each input."""
    length_penalty: float = 1.0
    """Exponent of the length by which the sum of log probabilities is divided: above 1 favours
    long hypotheses, 0 is the plain sum."""
    early_stopping: bool | Literal["never"] = False
    """When an example is done. True: once there are as many finished hypotheses as beams. False:
    once, moreover, the best running beam, at its present length, scores no more than the worst of
    them. never: once no beam could even at the maximum length."""

    def __post_init__(self) -> None:
        check_choice("early_stopping", str(self.early_stopping), ("True", "False", "never"))
        if not 1 <= self.best <= self.beams:
            raise ValueError(
                f"best = {self.best} must lie between 1 and the number of beams, {self.beams}"
            )

    @property
    def width(self) -> int:
        """Beams of an example."""
        return self.beams

    def start(
        self, numbers: Int[Array, "B"], *, length: int, unused: Bool[Array, "B"]
    ) -> BeamState:
        """Begin with one beam."""
        shape = (len(numbers), self.beams)
        first = np.where(np.arange(self.beams) == 0, 0.0, -np.inf).astype(np.float32)
        return BeamState(
            count=jnp.zeros((), jnp.int32),
            tokens=jnp.zeros(shape, jnp.int32),
            parents=jnp.zeros(shape, jnp.int32),
            running=jnp.broadcast_to(first, shape),
            texts=jnp.zeros((*shape, length), jnp.int32),
            pool_scores=jnp.full(shape, -jnp.inf, jnp.float32),
            pool=jnp.zeros((*shape, length), jnp.int32),
            done=unused,
        )

    def take(self, state: BeamState, logits: Float[Array, "B K V"]) -> BeamState:
        """Choose the next tokens.

        Raises:
          ValueError: where the vocabulary has less than 2K ids.
        """
        k, length, vocab = self.beams, state.texts.shape[-1], logits.shape[-1]
        if 2 * k > vocab:
            raise ValueError(f"{k} beams need a vocabulary of {2 * k} ids, and there are {vocab}")
        divisors = jnp.asarray(np.arange(1, length + 1) ** float(self.length_penalty), jnp.float32)
        divisor = divisors[state.count]
        found = best_continuations(logits, state.running, 2 * k)
        ends = (found.tokens == EOS) | (state.count + 1 == length)

        # Masked and reduced where one would slice: a sliced top-k is compiled to a whole sort.
        enters = ends & (np.arange(2 * k) < k) & ~state.done[:, None]
        entering = jnp.where(enters, found.scores / divisor, -jnp.inf)
        pool_scores, places = jax.lax.top_k(
            jnp.concatenate([state.pool_scores, entering], axis=1), k
        )
        texts = written(select(state.texts, found.beams), state.count, found.tokens)
        pool = select(jnp.concatenate([state.pool, texts], axis=1), places)

        running, on = jax.lax.top_k(jnp.where(ends, -jnp.inf, found.scores), k)
        worst = pool_scores.min(1)
        done = worst > -jnp.inf
        if self.early_stopping is not True and k > 1:
            longest = self.early_stopping == "never" and self.length_penalty > 0
            best_possible = running.max(1) / (divisors[-1] if longest else divisor)
            done &= best_possible <= worst
        return BeamState(
            count=state.count + 1,
            tokens=select(found.tokens, on),
            parents=select(found.beams, on),
            running=running,
            texts=select(texts, on),
            pool_scores=pool_scores,
            pool=pool,
            done=state.done | done,
        )

    def result(self, state: BeamState) -> Hypotheses:
        """Return the best of the pool."""
        return Hypotheses(state.pool[:, : self.best], state.pool_scores[:, : self.best])
