"""Observers of the synthetic world: their odd-one-out choices follow its hierarchy, with noise.

An observer finds two things the more similar the more levels they share,

    s_ij = sharpness * (w_superordinate [same superordinate] + w_basic [same basic]
                        + w_subordinate [same subordinate]),

and picks the most similar pair of three with probability `softmax(s)`, or, when not attending
(probability `lapse`), any.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from alignment.judgments import PAIRS, Triplets
from alignment.world.world import LEVELS, World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observers:
    """A population of observers."""

    count: int = 20
    """Observers; triplets are dealt out to them in turn."""
    superordinate: float = 3.0
    """Similarity that sharing the superordinate class gives."""
    basic: float = 1.5
    """Similarity that sharing the basic class adds."""
    subordinate: float = 1.0
    """Similarity that sharing the subordinate class adds."""
    spread: float = 0.3
    """Standard deviation of the logarithm of the observers' sharpness, whose median is 1."""
    lapse: float = 0.05
    """Probability of a choice at random."""
    seed: int = 0
    """Seed of the observers and their choices."""

    def probabilities(
        self, world: World, labels: Int[np.ndarray, "n"], triplets: Triplets
    ) -> Float[np.ndarray, "m 3"]:
        """Return the probability of each pair to be picked by the observer of each triplet."""
        similarity = np.zeros((len(triplets), len(PAIRS)))
        for level in LEVELS:
            found = world.level_of(labels, level)[triplets]
            same = np.stack([found[:, a] == found[:, b] for a, b in PAIRS], -1)
            similarity += getattr(self, level) * same
        rng = np.random.default_rng((self.seed, 0))
        sharpness = np.exp(self.spread * rng.normal(size=self.count))
        logits = sharpness[np.arange(len(triplets)) % self.count, None] * similarity
        odds = np.exp(logits)
        return (1 - self.lapse) * odds / odds.sum(-1, keepdims=True) + self.lapse / 3

    def choose(self, world: World, labels: Int[np.ndarray, "n"], triplets: Triplets) -> Triplets:
        """Return the triplets with the pair that was picked first, and the odd one last."""
        p = self.probabilities(world, labels, triplets)
        rng = np.random.default_rng((self.seed, 1))
        pair = (rng.uniform(size=(len(p), 1)) > np.cumsum(p, -1)[:, :2]).sum(-1)
        order = np.array([(a, b, 3 - a - b) for a, b in PAIRS])[pair]
        return np.take_along_axis(triplets, order, axis=1)

    def judge(self, world: World, labels: Int[np.ndarray, "n"], count: int) -> Triplets:
        """Show `count` random triplets of different images, and return the choices."""
        rng = np.random.default_rng((self.seed, 2))
        rows = np.zeros((count, 3), np.int64)
        while (same := _repeats(rows)).any():
            rows[same] = rng.integers(0, len(labels), (int(same.sum()), 3))
        return self.choose(world, labels, rows.astype(np.int32))


def _repeats(rows: Int[np.ndarray, "m 3"]) -> np.ndarray:
    a, b, c = rows.T
    return (a == b) | (a == c) | (b == c)
