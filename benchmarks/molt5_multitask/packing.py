"""Padding of batches on real lengths, before and after packing, and what packing costs.

    python -m benchmarks.molt5_multitask.packing

Data: USPTO-50k (Liu, training split) and the ChEBI-20 validation split, both in both directions,
and the toy split of paragraph2actions, with the T5 vocabulary, mixed in proportion and equally.
Compared are ways to fill batches of 32 rows, over the same stream of examples:

- padded to a fixed length, as the published trainer does;
- padded to the longest of the batch, and of batches of like length (sorted within 4,096 examples);
- packed: several examples in a row (`MixedData`).

The first and the last keep one shape, so that a training step compiles once.

Then training steps are timed: a T5 of 256 features and 3 + 3 layers with the T5 vocabulary, in
float32 with AdamW, 8 rows a batch. Rows padded to the longest of the batch have lengths rounded up
to multiples of 64, whose steps are timed once each and counted as often as they occur.

Last, making packed batches is timed, for global batches of several sizes and hosts of several
numbers.

Writes `packing.json` and `packing.md` beside this file.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import tyro
from jax import Array

from common import ArrayData, Data, Experiment, OptimConfig, Task
from common.data.arrays import stack_steps
from common.metrics import Metrics
from common.report import provenance, table
from common.rng import Rngs
from common.setup import prepare
from common.task import Batch, Params
from molt5_multitask.data.batches import MixedData
from molt5_multitask.data.mixing import Mixing, Strategy
from molt5_multitask.data.readers import MoleculeCaptions, PairedLines, SpacedReactions, read
from molt5_multitask.losses import LossConfig, sequence_loss
from molt5_multitask.model import T5Config, bind, init, preset
from molt5_multitask.tasks import Example
from molt5_multitask.tokenizer import Tokenizer

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
ROWS = 32
STEP_ROWS = 8
BATCHES = (256, 1024, 2048, 8192)
HOSTS = (1, 8, 64)
LENGTHS = ((512, 512), (512, 384), (256, 256))
STRATEGIES: tuple[Strategy, ...] = ("proportional", "equal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure packing."""

    data: pathlib.Path = pathlib.Path("../shared/data/molt5_multitask")
    """Folder with `uspto50k_liu`, `chebi20`, `paragraph2actions` and `tokenizer`."""
    examples: int = 16_384
    """Examples of the mixed stream that are looked at."""
    repeats: int = 5
    """Timings of each part."""
    steps: int = 64
    """Batches of padded rows whose shapes are looked at for the time of training steps."""


def load(folder: pathlib.Path) -> dict[str, list[Example]]:
    """Read the data, by task."""
    liu, actions = folder / "uspto50k_liu", folder / "paragraph2actions"
    examples, _ = read(
        [
            SpacedReactions(
                products=str(liu / "train_sources.gz"), reactants=str(liu / "train_targets.gz")
            ),
            MoleculeCaptions(path=str(folder / "chebi20" / "validation.txt")),
            PairedLines(
                inputs=str(actions / "src-train.txt"), targets=str(actions / "tgt-train.txt")
            ),
        ]
    )
    return examples


def stream_lengths(data: MixedData, count: int) -> np.ndarray:
    """Return int (examples, 2): tokens of sources and targets in the order of training."""
    batches = [data.batch(step) for step in range(count // ROWS)]
    sides = [
        np.concatenate([(b[f"{side}_segments"] > 0).sum(1) for b in batches])
        for side in ("input", "target")
    ]
    return np.stack(sides, 1)


def padded(lengths: np.ndarray, batches: np.ndarray, capacity: Sequence[int] | None) -> list[float]:
    """Return padding of inputs and targets, and positions for each useful token.

    Args:
      lengths: int (examples, 2).
      batches: int (batches, ROWS), the examples of each batch.
      capacity: length of the rows; None takes the longest of the batch.
    """
    grouped = lengths[batches]
    longest = grouped.max(1) if capacity is None else np.tile(capacity, (len(batches), 1))
    positions = (longest * ROWS).sum(0)
    useful = grouped.sum((0, 1))
    return [*(1 - useful / positions), positions.sum() / useful.sum(), 1.0]


def packed(data: MixedData, count: int) -> list[float]:
    """Return the same of packed rows, and the examples in a row."""
    steps = round(count / data.examples_per_step)
    useful, examples = np.zeros(2), 0
    for step in range(steps):
        batch = data.batch(step)
        segments = batch["input_segments"], batch["target_segments"]
        useful += [np.count_nonzero(s) for s in segments]
        examples += int(segments[0].max(1).sum())
    positions = np.array(data.capacity) * ROWS * steps
    return [*(1 - useful / positions), positions.sum() / useful.sum(), examples / (steps * ROWS)]


def training_data(
    examples: Mapping[str, Sequence[Example]],
    tokenizer: Tokenizer,
    lengths: tuple[int, int],
    *,
    rows: int,
    packed: bool,
    strategy: Strategy,
) -> MixedData:
    """Return the training data of one way to fill rows."""
    return MixedData(
        examples,
        tokenizer,
        batch_size=rows,
        seed=0,
        input_length=lengths[0],
        target_length=lengths[1],
        packed=packed,
        mixing=Mixing(strategy=strategy),
    )


def compare(
    examples: Mapping[str, Sequence[Example]], tokenizer: Tokenizer, strategy: Strategy, count: int
) -> list[list[str]]:
    """Return the rows of the table for one way of mixing."""

    data = functools.partial(training_data, examples, tokenizer, rows=ROWS, strategy=strategy)
    lengths = stream_lengths(data((512, 512), packed=False), count)
    in_order = np.arange(len(lengths)).reshape(-1, ROWS)
    by_length = [
        np.argsort(part.sum(1), kind="stable") for part in np.split(lengths, count // 4096)
    ]
    sorted_batches = np.concatenate([i * 4096 + o for i, o in enumerate(by_length)])
    found = {
        "one a row, 512 + 512": padded(lengths, in_order, (512, 512)),
        "one a row, longest of the batch": padded(lengths, in_order, None),
        "one a row, batches of like length": padded(
            lengths, sorted_batches.reshape(-1, ROWS), None
        ),
    }
    cut = {}
    for pair in LENGTHS:
        name = f"packed, {pair[0]} + {pair[1]}"
        mixed = data(pair, packed=True)
        found[name] = packed(mixed, count)
        cut[name] = sum(map(sum, mixed.cut.values()))
    base = found["one a row, 512 + 512"][2]
    return [
        [
            strategy,
            name,
            f"{100 * inputs:.1f} %",
            f"{100 * targets:.1f} %",
            f"{share:.2f}",
            f"{base / share:.1f}",
            f"{in_row:.1f}",
            f"{cut.get(name, cut['packed, 512 + 512']):,}",
        ]
        for name, (inputs, targets, share, in_row) in found.items()
    ]


def costs(
    examples: Mapping[str, Sequence[Example]], tokenizer: Tokenizer, repeats: int
) -> list[list[str]]:
    """Return the processor time of making a batch, on one host and on one of several."""
    found = []
    for size in BATCHES:
        data = training_data(
            examples, tokenizer, (512, 512), rows=size, packed=True, strategy="proportional"
        )
        milliseconds = []
        for hosts in HOSTS:
            own = slice(size // hosts)
            data.batch(0, own)
            steps = max(repeats, 4096 // size)
            begin = time.process_time()
            for step in range(1, steps + 1):
                data.batch(step, own)
            milliseconds.append(1e3 * (time.process_time() - begin) / steps)
        each = 1e3 * milliseconds[0] / data.examples_per_step
        found.append(
            [f"{size:,}", f"{data.examples_per_step:,.0f}", f"{each:.1f}"]
            + [f"{value:.1f}" for value in milliseconds]
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step(Task):
    """A training task of one batch shape."""

    lengths: tuple[int, int]
    """Length of input and target rows."""

    @property
    def model(self) -> T5Config:
        """The architecture."""
        layers = {"encoder_layers": 3, "decoder_layers": 3}
        return preset("t5-small", d_model=256, d_ff=1024, heads=4, dropout=0.0, **layers)

    def init(self, key: Array) -> Params:
        """Draw the parameters."""
        return init(self.model, key)

    def loss(self, params: Params, batch: Batch, rngs: Rngs) -> Metrics:
        """Return the loss."""
        return {"loss": sequence_loss(bind(self.model, params), batch, LossConfig(), rngs)}

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Return full rows: what is in them makes no difference to the time."""
        rng = np.random.default_rng(seed)
        return ArrayData(
            {
                name: array
                for side, length in zip(("input", "target"), self.lengths, strict=True)
                for name, array in (
                    (f"{side}s", rng.integers(3, 32000, (batch_size, length), np.int32)),
                    (f"{side}_segments", np.ones((batch_size, length), np.int32)),
                )
            },
            batch_size=batch_size,
            seed=seed,
        )


def step_seconds(lengths: tuple[int, int], repeats: int) -> float:
    """Return the median wall seconds of a training step."""
    optim = OptimConfig(learning_rate=1e-3)
    setup = prepare(
        Experiment(task=Step(lengths=lengths), steps=100, batch_size=STEP_ROWS, optim=optim)
    )
    state, batch = setup.init_state(), stack_steps(setup.data, 0, 1)
    seconds = []
    for _ in range(repeats + 1):  # the first one compiles
        start = time.perf_counter()
        state, window = setup.train_step(state, batch)
        jax.block_until_ready(window)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def speeds(
    examples: Mapping[str, Sequence[Example]], tokenizer: Tokenizer, arguments: Arguments
) -> list[list[str]]:
    """Return useful tokens a second of training steps on batches filled in three ways."""

    data = functools.partial(
        training_data, examples, tokenizer, rows=STEP_ROWS, strategy="proportional"
    )
    one_a_row = data((512, 512), packed=False)
    batches = [one_a_row.batch(step) for step in range(arguments.steps)]
    sides = ("input_segments", "target_segments")
    useful = sum(int((b[side] > 0).sum()) for b in batches for side in sides)
    longest = [tuple(int((b[side] > 0).sum(1).max()) for side in sides) for b in batches]
    shapes = collections.Counter((-(-a // 64) * 64, -(-b // 64) * 64) for a, b in longest)
    timed = {shape: step_seconds(shape, arguments.repeats) for shape in shapes}
    capacity = (512, 384)
    several = data(capacity, packed=True)
    packed_useful = sum(
        int((several.batch(step)[side] > 0).sum()) for step in range(16) for side in sides
    )
    rates = {
        "one a row, 512 + 512": useful
        / (arguments.steps * step_seconds((512, 512), arguments.repeats)),
        "one a row, longest of the batch": useful
        / sum(count * timed[shape] for shape, count in shapes.items()),
        "packed, 512 + 384": packed_useful / (16 * step_seconds(capacity, arguments.repeats)),
    }
    compiled = {"one a row, longest of the batch": len(shapes)}
    base = rates["one a row, 512 + 512"]
    return [
        [name, f"{rate:,.0f}", f"{rate / base:.1f}", str(compiled.get(name, 1))]
        for name, rate in rates.items()
    ]


def main() -> None:
    """Measure, and write the tables."""
    arguments = tyro.cli(Arguments)
    examples = load(arguments.data)
    tokenizer = Tokenizer.load(arguments.data / "tokenizer")
    shares = [
        row
        for strategy in STRATEGIES
        for row in compare(examples, tokenizer, strategy, arguments.examples)
    ]
    time_rows = costs(examples, tokenizer, arguments.repeats)
    speed_rows = speeds(examples, tokenizer, arguments)
    about = provenance()
    OUTPUT.write_text(
        json.dumps({**about, "padding": shares, "speeds": speed_rows, "costs": time_rows}, indent=1)
        + "\n"
    )
    head = [
        "# Packing on real lengths",
        f"{about['machine']}; {about['date']}; {about['versions']}.",
        f"    {about['command']}",
        ", ".join(f"{name} {len(rows):,}" for name, rows in examples.items())
        + f" examples; {arguments.examples:,} of the mixed stream, {ROWS} rows a batch.",
        "Positions are those of encoder and decoder together: what a step computes on. The gain is"
        " against one example a row of 512 + 512.",
        table(
            [
                "mixing",
                "rows",
                "padding, inputs",
                "padding, targets",
                "positions per useful token",
                "gain",
                "examples a row",
                "texts cut, all data",
            ],
            shares,
        ),
        f"Training steps of {STEP_ROWS} rows, mixed in proportion, medians of {arguments.repeats}:",
        table(["rows", "useful tokens a second", "gain", "programs compiled"], speed_rows),
        "Making a batch of rows of 512 + 512, processor time of one core: microseconds an example, "
        "and milliseconds a batch of a host that makes all of its rows, or its share of them.",
        table(
            ["rows", "examples", "us an example", *(f"ms, 1 of {hosts} hosts" for hosts in HOSTS)],
            time_rows,
        ),
    ]
    OUTPUT.with_suffix(".md").write_text("\n\n".join(head) + "\n")


if __name__ == "__main__":
    main()
