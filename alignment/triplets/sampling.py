"""Random triplets of images, by rules about their groups, which are clusters or classes."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int

from common.choices import check_choice

Sampling = Literal[
    "cluster_border", "within_cluster", "class_border", "within_class", "between_class"
]
"""Where the images of a triplet come from: `border`, two of one group and one of another; `within`,
three of one group; `between`, three of three groups."""
SAMPLINGS: tuple[Sampling, ...] = (
    "cluster_border",
    "within_cluster",
    "class_border",
    "within_class",
    "between_class",
)
Weighting = Literal["uniform", "size"]
"""How likely a group is: all alike, or in proportion to its images."""


def of_clusters(sampling: Sampling) -> bool:
    """Whether the groups are clusters; otherwise they are classes."""
    return "cluster" in sampling


class Sampler:
    """Draws triplets of row numbers: seeded, without a repeated image, the same in any blocks.

    The images of a group are drawn without replacement; triplets are drawn with it.
    """

    def __init__(
        self,
        groups: Int[np.ndarray, "n"],
        sampling: Sampling,
        *,
        seed: int,
        weighting: Weighting = "uniform",
    ) -> None:
        """Look at the groups' sizes.

        Args:
          groups: group of each image; negative is none, and such images are not drawn.
          sampling: the rule.
          seed: seed of all draws.
          weighting: how a group is chosen.

        Raises:
          ValueError: where the groups are too few or too small for the rule.
        """
        check_choice("sampling", sampling, SAMPLINGS)
        self._rule = sampling.replace("cluster", "group").replace("class", "group")
        self._seed, self._by_size = seed, weighting == "size"
        # Images in the order of their groups: an image is a group and a place within it.
        self._order = np.argsort(groups, kind="stable")[np.count_nonzero(groups < 0) :]
        _, self._starts, self._sizes = np.unique(
            groups[self._order], return_index=True, return_counts=True
        )
        needed = {"group_border": 2, "within_group": 3, "between_group": 1}[self._rule]
        self._eligible = np.flatnonzero(self._sizes >= needed)
        groups_needed = {"group_border": 2, "within_group": 1, "between_group": 3}[self._rule]
        if len(self._sizes) < groups_needed or not len(self._eligible):
            raise ValueError(
                f"{sampling} needs {groups_needed} groups or more, one of them at least of "
                f"{needed} images; there are {len(self._sizes)} groups, the largest of "
                f"{self._sizes.max(initial=0)}"
            )
        self._cumulative = np.cumsum(self._sizes[self._eligible])

    @property
    def skipped_groups(self) -> int:
        """Number of groups too small to give the images that the rule takes from one group."""
        return len(self._sizes) - len(self._eligible)

    def block(self, index: int, count: int) -> Int[np.ndarray, "count 3"]:
        """Draw block `index` of `count` triplets, int32: a function of the seed and the index.

        For `border` the first two are of one group.
        """
        generator = np.random.default_rng((self._seed, index))
        match self._rule:
            case "group_border":
                return self._border(generator, count)
            case "within_group":
                return self._within(generator, count)
            case _:
                return self._between(generator, count)

    def _choose_groups(self, generator: np.random.Generator, count: int) -> np.ndarray:
        if not self._by_size:
            return self._eligible[_below(generator, np.full(count, len(self._eligible)))]
        draws = _below(generator, np.full(count, self._cumulative[-1]))
        return self._eligible[np.searchsorted(self._cumulative, draws, side="right")]

    def _rows(self, groups: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self._order[self._starts[groups] + places].astype(np.int32)

    def _border(self, generator: np.random.Generator, count: int) -> np.ndarray:
        group = self._choose_groups(generator, count)
        size = self._sizes[group]
        first = _below(generator, size)
        second = _below(generator, size - 1)
        second += second >= first
        if self._by_size:  # any image but those of the group
            other = _below(generator, len(self._order) - size)
            other += np.where(other >= self._starts[group], size, 0)
            third = self._order[other].astype(np.int32)
        else:
            other = _below(generator, np.full(count, len(self._sizes) - 1))
            other += other >= group
            third = self._rows(other, _below(generator, self._sizes[other]))
        return np.stack([self._rows(group, first), self._rows(group, second), third], 1)

    def _within(self, generator: np.random.Generator, count: int) -> np.ndarray:
        group = self._choose_groups(generator, count)
        places = _three_of(generator, self._sizes[group])
        return np.stack([self._rows(group, place) for place in places], 1)

    def _between(self, generator: np.random.Generator, count: int) -> np.ndarray:
        if not self._by_size:
            groups = np.stack(_three_of(generator, np.full(count, len(self._sizes))))
            return self._rows(groups, _below(generator, self._sizes[groups])).T
        # Three images at random, until they are of three groups.
        found = np.empty((count, 3), np.int32)
        open_rows = np.arange(count)
        while open_rows.size:
            draws = _below(generator, np.full((len(open_rows), 3), len(self._order)))
            a, b, c = np.searchsorted(self._starts, draws, side="right").T
            good = (a != b) & (a != c) & (b != c)
            found[open_rows[good]] = self._order[draws[good]]
            open_rows = open_rows[~good]
        return found


def _below(generator: np.random.Generator, bounds: np.ndarray) -> np.ndarray:
    """Draw integers, each below its bound."""
    return (generator.random(bounds.shape) * bounds).astype(np.int64)


def _three_of(generator: np.random.Generator, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Draw three different integers, each below the size."""
    a, b, c = (_below(generator, sizes - taken) for taken in range(3))
    b += b >= a
    low, high = np.minimum(a, b), np.maximum(a, b)
    c += c >= low
    c += c >= high
    return a, b, c


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How triplets are drawn."""

    sampling: Sampling = "cluster_border"
    """cluster_border or class_border: two of one group, one of another; within_cluster or
    within_class: three of one group; between_class: three of three groups."""
    weighting: Weighting = "uniform"
    """Choose groups uniformly, or by their size. The paper's choice is not known."""
    seed: int = 0
    """Seed of all draws."""
