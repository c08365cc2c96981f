"""Training data of the molecule T5: mixed, packed batches as a function of seed and step."""

import functools
import math
import warnings
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from common.choices import check_choice
from common.data import Data
from common.data.arrays import WHOLE, Arrays, Part
from common.report import table
from molt5_multitask.data.augment import randomise
from molt5_multitask.data.mixing import Mixing, Mixture
from molt5_multitask.data.packing import lay_out, pack
from molt5_multitask.tasks import TASKS, Example, Seq2SeqTask
from molt5_multitask.tokenizer import Tokenizer

WINDOW = 4096
"""Examples that are packed together, about: more fill rows better, fewer start sooner."""
TRIALS = 8
"""Windows on which the number of examples is chosen."""


class MixedData(Data):
    """Batches of mixed tasks, several examples in a row (`packed`) or one.

    The mixed order is cut into windows of a fixed number of examples. Each is packed by itself
    into a fixed number of rows, a whole number of batches, so that any step can be made without the
    steps before it. The number of examples is chosen on trial windows such that they fit with four
    standard deviations to spare; an example that finds no room is left out, with a warning.
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
        self._window_rows, self._window_examples = batch_size, batch_size
        if packed:
            self._plan()
        self._window = functools.lru_cache(maxsize=2)(self._make_window)

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
        """Return the share of padding with one example a row, and as it is, in the first window."""
        found = {}
        for side, name in enumerate(("inputs", "targets")):
            segments = self._window(0)[f"{name[:-1]}_segments"]
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
        return self._window_examples * self._batch_size / self._window_rows

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
        window, place = divmod(step, self._window_rows // self._batch_size)
        rows = slice(place * self._batch_size, (place + 1) * self._batch_size)
        return {name: array[rows][part] for name, array in self._window(window).items()}

    def _pieces(self, start: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the token ids of sources and targets at positions of the mixed order."""
        task, row = self.mixture.positions(start, count)
        pairs = list(zip(task.tolist(), row.tolist(), strict=True))
        sources = [self._sources[t][r] for t, r in pairs]
        if self._augment:
            rng = np.random.default_rng((self._seed, 3, start))
            drawn = rng.random(count) < self._augment
            seeds = rng.integers(2**31, size=count)
            for i in np.flatnonzero(drawn).tolist():
                sources[i] = self._rewritten(*pairs[i], int(seeds[i]))
        return sources, [self._targets[t][r] for t, r in pairs]

    def _rewritten(self, task: int, row: int, seed: int) -> np.ndarray:
        """Return the source of an example with its molecules written in another order."""
        kind = self._tasks[task].input_kind
        example = self._examples[self._tasks[task].name][row]
        text = randomise(example.input, kind, seed)
        if text == example.input:
            return self._sources[task][row]
        encoded = self._tokenizer.encode_sources(self._tasks[task], [text], self.capacity[0])
        return self._sources[task][row] if encoded.cut[0] else encoded[0]

    def _plan(self) -> None:
        """Choose the rows and examples of a window."""

        def lengths(start: int, count: int) -> np.ndarray:
            return _lengths(*self._pieces(start, count))

        mean = (lengths(0, WINDOW) / np.array(self.capacity)).mean(0).max()
        rows = math.ceil(WINDOW * mean / self._batch_size) * self._batch_size
        count = int(rows / mean)
        # With rows enough for all: how many does a window need?
        needed = np.array(
            [pack(lengths(i * count, count), self.capacity, count).max() + 1 for i in range(TRIALS)]
        )
        spare = 4 * max(float(needed.std(ddof=1)), 0.25)
        self._window_rows = rows
        self._window_examples = max(1, int(count * (rows - spare) / needed.mean()))

    def _make_window(self, window: int) -> Arrays:
        sources, targets = self._pieces(window * self._window_examples, self._window_examples)
        rows = self._window_rows
        row_of = np.arange(rows)
        if self._packed:
            row_of = pack(_lengths(sources, targets), self.capacity, rows)
            if left := int((row_of < 0).sum()):
                warnings.warn(
                    f"{left} of {len(sources)} examples found no room in window {window} of packed"
                    " rows and are left out of this pass",
                    stacklevel=2,
                )
            # The first rows have the long examples, the last the short ones: mix them.
            order = np.random.default_rng((self._seed, 2, window)).permutation(rows)
            row_of = np.where(row_of < 0, -1, order[row_of])
        inputs, input_segments = lay_out(sources, row_of, rows, self.capacity[0])
        outputs, target_segments = lay_out(targets, row_of, rows, self.capacity[1])
        return {
            "inputs": inputs,
            "input_segments": input_segments,
            "targets": outputs,
            "target_segments": target_segments,
        }


def _lengths(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """Return int (examples, 2): tokens of each source and target."""
    return np.array([[len(s), len(t)] for s, t in zip(sources, targets, strict=True)])
