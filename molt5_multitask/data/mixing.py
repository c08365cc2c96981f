"""Which task and which of its examples stands at each position of the endless training order.

Addressable anywhere: position p is a function of the seed alone, so that a resumed run reads on
without replaying. Tasks are mixed in blocks of a fixed composition, in a fresh order each; within a
task, each epoch is a fresh permutation of its examples.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from common.choices import check_choice
from common.data import EpochOrder

BLOCK = 2**16
"""Positions of a block: shares are whole multiples of 1 / BLOCK."""

Strategy = Literal["proportional", "equal", "temperature"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How often each task is drawn."""

    strategy: Strategy = "proportional"
    """proportional: every example equally often, as in plain concatenation. equal: every task
    equally often, by repeating the examples of small ones, as in the paper. temperature: in
    proportion to (examples of the task) ** (1 / temperature)."""
    temperature: float = 2.0
    """Of the strategy temperature: 1 is proportional, infinity is equal."""
    weights: Mapping[str, float] | None = None
    """Relative weight of each task by name; takes the place of the strategy."""

    def shares(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return the share of each task, summing to one.

        Args:
          counts: number of examples of each task.

        Raises:
          ValueError: for a task without examples, an unknown strategy, weights that do not name
            exactly the tasks, or are not positive.
        """
        if empty := [name for name, count in counts.items() if not count]:
            raise ValueError(f"task {empty[0]} has no examples; drop it or give it data")
        if self.weights is not None:
            if set(self.weights) != set(counts):
                raise ValueError(
                    f"mixing weights name the tasks {sorted(self.weights)}, the data has"
                    f" {sorted(counts)}"
                )
            raw = {name: float(self.weights[name]) for name in counts}
        else:
            check_choice("mixing strategy", self.strategy, ("proportional", "equal", "temperature"))
            if self.temperature <= 0:
                raise ValueError(f"mixing temperature must be positive, got {self.temperature}")
            power = {"proportional": 1.0, "equal": 0.0, "temperature": 1 / self.temperature}
            raw = {name: count ** power[self.strategy] for name, count in counts.items()}
        if bad := [name for name, weight in raw.items() if not 0 < weight < np.inf]:
            raise ValueError(f"mixing weight of {bad[0]} is {raw[bad[0]]}; it must be positive")
        total = sum(raw.values())
        return {name: weight / total for name, weight in raw.items()}


class Positions(NamedTuple):
    """What stands at consecutive positions of the training order."""

    task: np.ndarray
    """int (positions,): number of the task."""
    row: np.ndarray
    """int (positions,): number of the example within its task."""


class Mixture:
    """The endless mixed order of the examples of several tasks."""

    def __init__(self, counts: Mapping[str, int], mixing: Mixing, *, seed: int) -> None:
        """Fix the order for tasks with the given numbers of examples."""
        self.tasks = tuple(counts)
        self.shares = mixing.shares(counts)
        self._counts = np.array(list(counts.values()))
        self._seed = seed
        self._quota = _largest_remainder(np.array(list(self.shares.values())), BLOCK)
        self._orders = [
            EpochOrder(count, seed=_task_seed(seed, name)) for name, count in counts.items()
        ]
        # Two blocks at most meet in a batch, and batches are read in order.
        self._block = functools.lru_cache(maxsize=2)(self._make_block)

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the task at each position of a block, and how many of that task come before."""
        tasks = np.repeat(np.arange(len(self.tasks), dtype=np.int16), self._quota)
        np.random.default_rng((self._seed, 0, block)).shuffle(tasks)
        before = np.empty(BLOCK, np.int32)
        for i, quota in enumerate(self._quota):
            before[tasks == i] = np.arange(quota)
        return tasks, before

    def positions(self, start: int, count: int) -> Positions:
        """Return what stands at positions `start` to `start + count`."""
        task, row = np.empty(count, np.int16), np.empty(count, np.int64)
        done = 0
        while done < count:
            block, offset = divmod(start + done, BLOCK)
            tasks, before = (array[offset : offset + count - done] for array in self._block(block))
            piece = slice(done, done + len(tasks))
            task[piece] = tasks
            for i in np.unique(tasks):
                mine = tasks == i
                first = block * int(self._quota[i]) + int(before[mine][0])
                row[piece][mine] = self._orders[i].rows(first, int(mine.sum()))
            done += len(tasks)
        return Positions(task, row)

    def passes(self, positions: int) -> dict[str, float]:
        """Return the mean number of passes over each task's examples after so many positions."""
        drawn = positions * self._quota / BLOCK / self._counts
        return dict(zip(self.tasks, drawn.tolist(), strict=True))


def _task_seed(seed: int, task: str) -> int:
    """Derive the seed of a task's order from its name: adding a task shifts no other."""
    words = np.random.SeedSequence((seed, 1, zlib.crc32(task.encode()))).generate_state(2)
    return int(words[0]) << 32 | int(words[1])


def _largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Split `total` into whole numbers next to `shares`, at least one each."""
    quota = np.maximum(np.floor(shares * total).astype(np.int64), 1)
    short = total - int(quota.sum())
    if short < 0:  # Tasks that were lifted to one take it from the largest.
        quota[np.argmax(quota)] += short
    else:
        quota[np.argsort(quota - shares * total, kind="stable")[:short]] += 1
    return quota
