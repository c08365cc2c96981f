"""Where a teacher's targets come from: choices that people made, or those that VICE expects."""

import abc
import dataclasses
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from alignment.judgments import PAIRS, Triplets

Rows = Int[np.ndarray, "m"]
Targets = Float[np.ndarray, "t 3"]


class Choices(abc.ABC):
    """Triplets with a target probability for each of their pairs."""

    @abc.abstractmethod
    def among(self, objects: Bool[np.ndarray, "n"]) -> Self:
        """Return the choices between these objects alone."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, count: int, objects: Rows) -> tuple[Triplets, Targets]:
        """Draw `count` triplets of these objects, and their targets float32 (count, 3)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenChoices(Choices):
    """A list of triplets, such as human judgments, each with its targets."""

    triplets: Triplets
    """int32 (N, 3)."""
    targets: Float[np.ndarray, "N 3"]
    """float32; pairs in the order (0, 1), (0, 2), (1, 2)."""
    objects: int
    """Number of objects."""

    @classmethod
    def hard(cls, triplets: Triplets, objects: int) -> Self:
        """Return choices with all the probability on the pair that was chosen."""
        targets = np.zeros(triplets.shape, np.float32)
        targets[:, 0] = 1
        return cls(triplets=triplets, targets=targets, objects=objects)

    def among(self, objects: Bool[np.ndarray, "n"]) -> Self:
        """Return the triplets whose objects are all among these."""
        inside = objects[self.triplets].all(1)
        return dataclasses.replace(
            self, triplets=self.triplets[inside], targets=self.targets[inside]
        )

    def draw(self, rng: np.random.Generator, count: int, objects: Rows) -> tuple[Triplets, Targets]:
        """Take triplets of the list that lie within `objects`; each once, if there are enough."""
        rows = np.arange(len(self.triplets))
        if len(objects) < self.objects:
            inside = np.zeros(self.objects, bool)
            inside[objects] = True
            rows = np.flatnonzero(inside[self.triplets].all(1))
        if not len(rows):
            raise ValueError(
                f"none of {len(self.triplets)} triplets lies within {len(objects)} objects drawn "
                f"from {self.objects}: set objects_per_step higher, or to None"
            )
        rows = np.resize(rng.permutation(rows), count)
        return self.triplets[rows], self.targets[rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedChoices(Choices):
    """All triplets, with the choices that embeddings expect: the mean of their probabilities."""

    similarities: Float[np.ndarray, "embeddings n n"]
    """float32; dot products of each embedding's objects."""

    @classmethod
    def of(cls, *embeddings: Float[np.ndarray, "n d"], temperature: float = 1.0) -> Self:
        """Return the choices by one or more embeddings; a temperature above 1 evens them out."""
        products = [e @ e.T / temperature for e in embeddings]
        return cls(similarities=np.stack(products).astype(np.float32))

    def among(self, objects: Bool[np.ndarray, "n"]) -> Self:  # noqa: ARG002
        """Return the same: a triplet is drawn from given objects anyway."""
        return self

    def draw(self, rng: np.random.Generator, count: int, objects: Rows) -> tuple[Triplets, Targets]:
        """Draw three different objects, uniformly."""
        m = len(objects)
        first = rng.integers(m, size=count)
        second = (first + rng.integers(1, m, size=count)) % m
        low, high = np.minimum(first, second), np.maximum(first, second)
        third = rng.integers(m - 2, size=count)
        third += third >= low  # skip the two that are taken
        third += third >= high
        triplets = objects[np.stack([first, second, third], 1)].astype(np.int32)
        return triplets, self.probabilities(triplets)

    def probabilities(self, triplets: Triplets) -> Targets:
        """Return the targets of triplets."""
        a, b = np.array(PAIRS).T
        logits = self.similarities[:, triplets[:, a], triplets[:, b]]
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        return (odds / odds.sum(-1, keepdims=True)).mean(0)
