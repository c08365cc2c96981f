"""Training data of the molecule T5: mixed, packed batches as a function of seed and step."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from common.choices import check_choice
from common.data import Data
from common.data.arrays import WHOLE, Arrays, Part
from common.report import table
from molt5_multitask.data.augment import randomise
from molt5_multitask.data.mixing import Mixing, Mixture
from molt5_multitask.data.packing import deal, lay_out, pack, ranges
from molt5_multitask.tasks import TASKS, Example, Seq2SeqTask
from molt5_multitask.tokenizer import Encoded, Tokenizer

GROUP_ROWS = 256
"""Rows that are packed together: the time for an example grows with their number."""
GROUPS = 32
"""Groups of a window, at most as many as one pass over the data fills. More fill the rows better:
the number of tokens in a large window varies less."""
TRIALS = 8
"""Groups on which the number of examples is chosen."""


class MixedData(Data):
    """Batches of mixed tasks, several examples in a row (`packed`) or one.

    The mixed order is cut into windows of a fixed number of examples, and the examples of a window
    are dealt to groups of like lengths. Each group is packed by itself into `GROUP_ROWS` rows, and
    the rows of all groups, one after another, are cut into batches. So any step can be made without
    the steps before it, the rows do not depend on the batch size, and a process packs only the
    groups that its part of a batch touches. The number of examples is chosen on trial groups such
    that they fit with four standard deviations to spare; an example that finds no room is left out,
    with a warning.
    """

    def __init__(
        self,
        examples: Mapping[str, Sequence[Example]],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        input_length: int = 512,
        target_length: int = 512,
        packed: bool = True,
        mixing: Mixing = Mixing(),  # noqa: B008
        augment: float = 0.0,
        tasks: Mapping[str, Seq2SeqTask] = TASKS,
    ) -> None:
        """Encode all examples and plan the windows.

        Args:
          examples: the examples of each task, by its name.
          tokenizer: the vocabulary.
          batch_size: rows of a batch.
          seed: of the order.
          input_length: tokens of a row of inputs; a longer source is cut and counted.
          target_length: tokens of a row of targets; a longer target is cut and counted.
          packed: put several examples into a row.
          mixing: how often each task is drawn.
          augment: share of the inputs that are molecules or reactions to be written in a random
            order of their atoms, anew at each draw; where that is too long, as they are.
          tasks: the tasks by name, with their prompts.

        Raises:
          ValueError: for a task without examples or an unknown one, and a prompt that does not fit.
        """
        for name in examples:
            check_choice("task", name, tasks)
        if not 0 <= augment <= 1:
            raise ValueError(f"augment = {augment} is a share: it must lie in [0, 1]")
        self.capacity = (input_length, target_length)
        self._batch_size, self._seed, self._packed = batch_size, seed, packed
        self._augment, self._tokenizer = augment, tokenizer
        self._examples = examples
        self._tasks = [tasks[name] for name in examples]
        self.mixture = Mixture({n: len(rows) for n, rows in examples.items()}, mixing, seed=seed)
        self._sources = [
            tokenizer.encode_sources(tasks[name], [e.input for e in rows], input_length)
            for name, rows in examples.items()
        ]
        self._targets = [
            tokenizer.encode_many([e.target for e in rows], target_length)
            for rows in examples.values()
        ]
        self._groups, self._window_examples = self._plan() if packed else (1, GROUP_ROWS)
        # Batches are read in order: the group and the window in which one ends begin the next.
        self._window = functools.lru_cache(maxsize=2)(self._make_window)
        self._group = functools.lru_cache(maxsize=2)(self._make_group)

    @property
    def cut(self) -> dict[str, tuple[int, int]]:
        """Number of sources and of targets of each task that were cut because too long."""
        return {
            name: (int((source.cut > 0).sum()), int((target.cut > 0).sum()))
            for name, source, target in zip(
                self._examples, self._sources, self._targets, strict=True
            )
        }

    def padding(self) -> dict[str, tuple[float, float]]:
        """Return the share of padding with one example a row, and as it is, in the first group."""
        found = {}
        for side, name in enumerate(("inputs", "targets")):
            segments = self._group(0)[f"{name[:-1]}_segments"]
            real = np.count_nonzero(segments)
            examples = segments.max(1).sum()
            before = 1 - real / (examples * self.capacity[side])
            found[name] = (float(before), float(1 - real / segments.size))
        return found

    def summary(self) -> str:
        """Describe the data as a Markdown table, and its padding in a sentence."""
        rows = []
        for i, (name, share) in enumerate(self.mixture.shares.items()):
            cut = [int((side[i].cut > 0).sum()) for side in (self._sources, self._targets)]
            unknown = int(self._targets[i].unknown.sum())
            numbers = (len(self._targets[i]), *cut, unknown)
            rows.append([name, f"{share:.1%}", *(f"{number:,}" for number in numbers)])
        header = ["task", "share", "examples", "sources cut", "targets cut"]
        padding = ", ".join(
            f"{name} {before:.1%} -> {after:.1%}"
            for name, (before, after) in self.padding().items()
        )
        in_row = self.examples_per_step / self._batch_size
        return (
            table([*header, "targets with unknown characters"], rows)
            + f"\n\npadding of {padding}; {in_row:.1f} examples a row"
        )

    @property
    def examples_per_step(self) -> float:
        """Mean number of examples in a batch."""
        return self._window_examples * self._batch_size / (self._groups * GROUP_ROWS)

    def passes(self, step: int) -> dict[str, float]:
        """Return the number of passes over each task after so many steps."""
        return self.mixture.passes(round(step * self.examples_per_step))

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch."""
        names = ("input", "target")
        return {
            name: jax.ShapeDtypeStruct((self._batch_size, length), np.int32)
            for side, length in zip(names, self.capacity, strict=True)
            for name in (f"{side}s", f"{side}_segments")
        }

    def batch(self, step: int, part: Part = WHOLE) -> Arrays:
        """Return `inputs`, `targets` (rows, length) and their `_segments`."""
        rows = step * self._batch_size + np.arange(self._batch_size)[part]
        group, place = np.divmod(rows, GROUP_ROWS)
        found = {
            name: np.empty((len(rows), *spec.shape[1:]), spec.dtype)
            for name, spec in self.spec().items()
        }
        for number in np.unique(group).tolist():
            mine = group == number
            for name, array in self._group(number).items():
                found[name][mine] = array[place[mine]]
        return found

    def _draw(self, start: int, count: int) -> "_Drawn":
        """Return what stands at positions of the mixed order."""
        task, row = self.mixture.positions(start, count)
        sources = _Texts(self._sources, task, row)
        if self._augment:
            sources = self._rewritten(sources, np.random.default_rng((self._seed, 3, start)))
        return _Drawn(sources, _Texts(self._targets, task, row))

    def _rewritten(self, sources: "_Texts", rng: np.random.Generator) -> "_Texts":
        """Have the molecules of some sources written in another order, where that is not longer."""
        drawn = rng.random(len(sources.row)) < self._augment
        seeds = rng.integers(2**31, size=len(sources.row))
        parts, part, row = list(sources.parts), sources.part.copy(), sources.row.copy()
        for number, task in enumerate(self._tasks):
            if task.input_kind not in ("smiles", "reaction"):
                continue
            (mine,) = np.nonzero(drawn & (sources.part == number))
            examples = [self._examples[task.name][r] for r in row[mine].tolist()]
            texts = [
                randomise(example.input, task.input_kind, seed)
                for example, seed in zip(examples, seeds[mine].tolist(), strict=True)
            ]
            encoded = self._tokenizer.encode_sources(task, texts, self.capacity[0])
            (fits,) = np.nonzero(encoded.cut == 0)
            part[mine[fits]], row[mine[fits]] = len(parts), fits
            parts.append(encoded)
        return _Texts(parts, part, row)

    def _plan(self) -> tuple[int, int]:
        """Choose the groups and the examples of a window."""
        shares = self._draw(0, 4096).lengths() / np.array(self.capacity)
        side = shares.mean(0).argmax()
        count = GROUP_ROWS / shares.mean(0)[side]  # examples of a group, if all its rows were full
        groups = int(np.clip(sum(map(len, self._targets)) / count, 1, GROUPS))
        lengths = self._draw(0, int(count * groups)).lengths()
        group_of = deal(lengths, groups)
        # With rows enough for all: how many does a group need?
        needed = []
        for group in range(min(groups, TRIALS)):
            mine = lengths[group_of == group]
            needed.append(pack(mine, self.capacity, len(mine)).max() + 1)
        # Windows differ in their tokens, and the groups of a window in how well they are packed.
        tokens = shares.std(0)[side] * np.sqrt(count * groups) / groups
        spare = 4 * np.hypot(tokens, max(float(np.std(needed)), 0.25))
        examples = count * groups * (GROUP_ROWS - spare) / np.mean(needed)
        return groups, max(1, int(examples))

    def _make_window(self, window: int) -> "tuple[_Drawn, Int[np.ndarray, 'n']]":
        """Return the examples of a window, and the group of each."""
        drawn = self._draw(window * self._window_examples, self._window_examples)
        return drawn, deal(drawn.lengths(), self._groups)

    def _make_group(self, number: int) -> Arrays:
        """Return the rows of a group."""
        window, group = divmod(number, self._groups)
        drawn, group_of = self._window(window)
        drawn = drawn.only(np.flatnonzero(group_of == group))
        lengths = drawn.lengths()
        row_of = np.arange(GROUP_ROWS)
        if self._packed:
            row_of = pack(lengths, self.capacity, GROUP_ROWS)
            if left := int((row_of < 0).sum()):
                warnings.warn(
                    f"{left} of {len(row_of)} examples found no room in group {number} of packed"
                    " rows and are left out of this pass",
                    stacklevel=2,
                )
            # The first rows have the long examples, the last the short ones: mix them.
            order = np.random.default_rng((self._seed, 2, number)).permutation(GROUP_ROWS)
            row_of = np.where(row_of < 0, -1, order[row_of])
        arrays: dict[str, np.ndarray] = {}
        for side, name in enumerate(("input", "target")):
            ids, segments = lay_out(
                drawn[side].tokens(), lengths[:, side], row_of, GROUP_ROWS, self.capacity[side]
            )
            arrays |= {f"{name}s": ids, f"{name}_segments": segments}
        return arrays


class _Texts(NamedTuple):
    """Some texts of several encoded parts."""

    parts: Sequence[Encoded]
    """The parts."""
    part: Int[np.ndarray, "n"]
    """Number of the part of each text."""
    row: Int[np.ndarray, "n"]
    """Its number in that part."""

    def only(self, index: Int[np.ndarray, "m"]) -> "_Texts":
        """Return some of them."""
        return self._replace(part=self.part[index], row=self.row[index])

    def lengths(self) -> Int[np.ndarray, "n"]:
        """Return the tokens of each."""
        found = np.empty(len(self.row), np.int64)
        for number in np.unique(self.part).tolist():
            mine = self.part == number
            _, found[mine] = self.parts[number].spans(self.row[mine])
        return found

    def tokens(self) -> Int[np.ndarray, "t"]:
        """Return the token ids of all, one text after another."""
        sizes = self.lengths()
        starts = np.cumsum(sizes) - sizes
        found = np.empty(int(sizes.sum()), np.int32)
        for number in np.unique(self.part).tolist():
            mine = self.part == number
            encoded = self.parts[number]
            found[ranges(starts[mine], sizes[mine])] = encoded.ids[
                ranges(*encoded.spans(self.row[mine]))
            ]
        return found


class _Drawn(NamedTuple):
    """Some examples."""

    sources: _Texts
    """What is asked."""
    targets: _Texts
    """What is answered."""

    def only(self, index: Int[np.ndarray, "m"]) -> "_Drawn":
        """Return some of them."""
        return _Drawn(self.sources.only(index), self.targets.only(index))

    def lengths(self) -> Int[np.ndarray, "n 2"]:
        """Return the tokens of each source and target."""
        return np.stack([self.sources.lengths(), self.targets.lengths()], 1)
