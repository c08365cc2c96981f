"""What the training loop costs beside the compiled step, against a bare loop over the same step.

    python -m benchmarks.common.loop

The trainer is all of `common.train`: data made and sent by its background thread, metrics fetched
one call late, JSONL and TensorBoard, the account of time, progress; metrics are logged every 100
steps, one step in each compiled call. The peer is `state, _ = step(state, batch)` over batches that
lie on the device before the clock starts, with the very step that the trainer compiles. Both are
clocked in windows of steps, without the first and without checkpoints: the trainer whenever it asks
for the first batch of a window. Their runs alternate in one process. The step is a stack of square
matrices, trained by Adam: a tiny one, and one that takes about 20 ms.

Writes `loop.json` and `loop.md` beside this file.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from common import (
    ArrayData,
    CheckpointConfig,
    Experiment,
    LogConfig,
    Mean,
    OptimConfig,
    Task,
    report,
    train,
)
from common.data.arrays import WHOLE, Arrays, Part
from common.setup import prepare

TARGETS = {"tiny": "under 75 us a step", "20 ms": "under 2 %"}


class Clocked(ArrayData):
    """Data that read the clock whenever a window of steps begins, but for the first."""

    def __init__(self, *args: Any, window: int, stamps: list[float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._window, self._stamps = window, stamps

    def batch(self, step: int, part: Part = WHOLE) -> Arrays:
        """Return the rows of each array."""
        if step and step % self._window == 0:
            self._stamps.append(time.perf_counter())
        return super().batch(step, part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers(Task):
    """Regression by a stack of square matrices."""

    width: int
    """Side of the matrices."""
    depth: int
    """Number of matrices."""
    window: int
    """Steps in a window."""

    @functools.cached_property
    def stamps(self) -> list[float]:
        """The time at the beginning of each window."""
        return []

    def init(self, key: jax.Array) -> Any:
        """Draw the matrices."""
        shape = (self.depth, self.width, self.width)
        return {"kernel": self.width**-0.5 * jax.random.normal(key, shape, jnp.float32)}

    def loss(self, params: Any, batch: Any, rngs: Any) -> Any:  # noqa: ARG002
        """Return the squared error."""
        y = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), batch["x"], params["kernel"])[0]
        return {"loss": Mean.of((y[:, 0] - batch["y"]) ** 2)}

    def data(self, *, batch_size: int, seed: int) -> Clocked:
        """Make noise."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4096, self.width)).astype(np.float32)
        return Clocked(
            {"x": x, "y": x[:, 0]},
            batch_size=batch_size,
            seed=seed,
            window=self.window,
            stamps=self.stamps,
        )


def case(*, width: int, depth: int, window: int, windows: int) -> Experiment[Layers]:
    """Return the run of a stack."""
    steps = window * windows
    return Experiment(
        task=Layers(width=width, depth=depth, window=window),
        steps=steps,
        batch_size=256,
        optim=OptimConfig(name="adam"),
        checkpoint=CheckpointConfig(every=steps),
        log=LogConfig(every=min(100, window)),
    )


def run_trainer(experiment: Experiment[Layers]) -> list[float]:
    """Run `common.train`; return the seconds of a step in each window but the first."""
    task = experiment.task
    task.stamps.clear()
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
        train(dataclasses.replace(experiment, workdir=workdir))
    return (np.diff(task.stamps) / task.window).tolist()


def run_bare(experiment: Experiment[Layers]) -> list[float]:
    """Run the bare loop; return the seconds of a step in each window but the first."""
    setup, window = prepare(experiment), experiment.task.window
    batches = [
        jax.device_put({k: v[None] for k, v in setup.data.batch(i).items()}) for i in range(16)
    ]
    state, stamps = setup.init_state(), []
    for step in range(experiment.steps):
        state, _ = setup.train_step(state, batches[step % 16])
        if (step + 1) % window == 0:
            jax.block_until_ready(state.params)
            stamps.append(time.perf_counter())
    return (np.diff(stamps) / window).tolist()


def measure(experiment: Experiment[Layers], *, repeats: int) -> dict[str, Any]:
    """Run both in turn."""
    sides: dict[str, list[float]] = {"trainer": [], "bare": []}
    for _ in range(repeats):
        sides["trainer"] += run_trainer(experiment)
        sides["bare"] += run_bare(experiment)
    median = {name: statistics.median(times) for name, times in sides.items()}
    return {
        "width": experiment.task.width,
        "depth": experiment.task.depth,
        "median": median,
        "overhead_seconds": median["trainer"] - median["bare"],
        "overhead": median["trainer"] / median["bare"] - 1,
        "windows": sides,
    }


def row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of a case."""

    def times(side: str) -> str:
        us = 1e6 * np.array(found["windows"][side])
        return f"{np.median(us):.0f} [{us.min():.0f}, {us.max():.0f}]"

    return (
        name,
        times("trainer"),
        times("bare"),
        f"{1e6 * found['overhead_seconds']:+.0f}",
        f"{found['overhead']:+.1%}",
        TARGETS[name],
    )


def main(repeats: int = 5) -> None:
    """Measure, and write the results."""
    cases = {
        "tiny": case(width=16, depth=2, window=500, windows=6),
        "20 ms": case(width=512, depth=5, window=50, windows=7),
    }
    results = {}
    for name, experiment in cases.items():
        results[name] = measure(experiment, repeats=repeats)
        print(*row(name, results[name]), sep=" | ", flush=True)
    origin = report.provenance()
    here = pathlib.Path(__file__)
    document = {**origin, "repeats": repeats, "cases": results}
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    header = ("step", "trainer, us a step: median [range]", "bare loop", "overhead, us")
    parts = [
        "# The training loop against a bare loop over the same step",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"{repeats} runs of each, in turn. What is what: see `loop.py`.",
        report.table(
            (*header, "overhead", "target"), [row(name, found) for name, found in results.items()]
        ),
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
