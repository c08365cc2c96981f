"""Speed of the trainer on the paper's network, against a bare `lax.scan` loop.

    python -m benchmarks.born_mlp.trainer

The run is iteration 1 of the quickstart: an ensemble of MLPs 16-64-64-1 at batch 256, trained by
Muon. The trainer is all of `common.train`: data made and sent by its background thread, 100 steps
in each compiled call, gradient norm, skipping of non-finite steps, metrics, log, progress bar. The
peer is what one would write by hand and nothing else: the same loss, optimizer and order of the
batches, which all lie on the device before the clock starts, and a jitted scan over 500 steps.

Both are clocked in windows of 500 steps, without the first, in which the trainer compiles (compile
times stand beside), and without checkpoints: the trainer whenever it asks for the first batch of a
window. Their runs alternate in one process. A window has a
wall time, and a processor time over all threads: this one hardly depends on what else the machine
does, and charges the trainer for its background thread even where that has a core of its own. The
parameters after 100 steps from the same start are compared beforehand.

Writes `trainer.json` and `trainer.md` beside this file.
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
import optax
import tyro
from jaxtyping import Float

from born_mlp.fit import ResidualFit
from common import CheckpointConfig, Experiment, OptimConfig, report, train
from common.data import Data, stack_steps
from common.data.arrays import WHOLE, Arrays, Part
from common.optim import make_optimizer
from common.perf import enable_compile_cache
from common.setup import prepare
from configs.born_mlp import quickstart

WINDOW = 500
CASES = ((4, "muon"), (8, "muon"), (1, "muon"), (1, "adam"))
"""Members and optimizer; the first is the quickstart's."""

Windows = Float[np.ndarray, "windows 2"]
"""Wall and processor seconds of each window."""


@dataclasses.dataclass(kw_only=True)
class Stopwatch:
    """Reads the clocks."""

    stamps: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """Wall and processor time at the end of each window."""

    def read(self) -> None:
        """Read the clocks."""
        self.stamps.append((time.perf_counter(), time.process_time()))

    def windows(self) -> Windows:
        """Return the windows from the second on."""
        return np.diff(self.stamps, axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(ResidualFit):
    """The task without evaluators, whose data read a stopwatch when a window begins."""

    @functools.cached_property
    def stopwatch(self) -> Stopwatch:
        """The stopwatch of all runs of this task."""
        return Stopwatch()

    def evaluators(self) -> tuple[()]:
        """Return none: what is evaluated is saved."""
        return ()

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Return the task's data, clocked."""
        data = super().data(batch_size=batch_size, seed=seed)
        batch = data.batch

        def clocked(step: int, part: Part = WHOLE) -> Arrays:
            if step and step % WINDOW == 0:
                self.stopwatch.read()
            return batch(step, part)

        data.batch = clocked  # type: ignore[method-assign]
        return data


def case(*, members: int, optimizer: str, steps: int) -> Experiment[Any]:
    """Return the run of the paper's network with some other ensemble or optimizer."""
    base = quickstart.config().regimes["signed"].iterations[0]
    fields = {f.name: getattr(base.task, f.name) for f in dataclasses.fields(base.task)}
    return dataclasses.replace(
        base,
        task=Fit(**(fields | {"members": members})),
        optim=base.optim if optimizer == "muon" else OptimConfig(name="adam", warmup_steps=400),
        steps=steps,
        checkpoint=CheckpointConfig(every=steps),
        log=dataclasses.replace(base.log, every=WINDOW),
    )


def run_trainer(experiment: Experiment[Any]) -> tuple[Windows, float]:
    """Run `common.train`; return its windows, and the seconds until its first call was compiled."""
    stopwatch = experiment.task.stopwatch
    stopwatch.stamps.clear()
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
        result = train(dataclasses.replace(experiment, workdir=workdir))
    return stopwatch.windows(), result.metrics["perf/seconds_compile"]


class BareLoop:
    """The peer: a jitted scan over batches that are already on the device."""

    def __init__(self, experiment: Experiment[Any], *, window: int = WINDOW) -> None:
        setup = prepare(experiment)
        task = experiment.task
        self._start = jax.device_get(setup.init_state().params)
        self._optimizer = make_optimizer(experiment.optim, self._start, steps=experiment.steps)
        self._batches = [
            jax.device_put(dict(stack_steps(setup.data, first, window)))
            for first in range(0, experiment.steps, window)
        ]

        def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
            error = (task.predict(params, batch["x"]).T - batch["y"]) * batch["weight"]
            return jnp.sum(error**2) / len(error)

        def step(carry: Any, batch: dict[str, jax.Array]) -> tuple[Any, None]:
            params, opt_state = carry
            grads = jax.grad(loss)(params, batch)
            updates, opt_state = self._optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        loop = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[0])
        begin = time.perf_counter()
        self._loop = loop.lower(self._carry(), self._batches[0]).compile()
        self.compile_seconds = time.perf_counter() - begin

    def _carry(self) -> Any:
        params = jax.tree.map(jnp.asarray, self._start)
        return params, self._optimizer.init(params)

    def run(self) -> tuple[Windows, Any]:
        """Run all steps; return the windows and the final parameters."""
        carry, stopwatch = self._carry(), Stopwatch()
        for batches in self._batches:
            carry = self._loop(carry, batches)
            jax.block_until_ready(carry)
            stopwatch.read()
        return stopwatch.windows(), jax.device_get(carry[0])


def difference(experiment: Experiment[Any]) -> float:
    """Return the relative L2 distance of trainer's and peer's parameters after one call."""
    per_call = experiment.step.per_call
    short = dataclasses.replace(
        experiment,
        steps=per_call,
        checkpoint=CheckpointConfig(every=per_call),
        log=dataclasses.replace(experiment.log, every=per_call),
        optim=dataclasses.replace(experiment.optim, warmup_steps=0),
    )
    setup = prepare(short)
    state = setup.init_state()
    batches = jax.device_put(dict(stack_steps(setup.data, 0, per_call)))
    state, _ = setup.train_step(state, batches)
    bare = BareLoop(short, window=per_call).run()[1]
    a, b = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(params))])
        for params in (state.params, bare)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def measure(experiment: Experiment[Any], *, repeats: int) -> dict[str, Any]:
    """Run trainer and peer in turn; return seconds a step of every window, medians and ratios."""
    distance = difference(experiment)
    bare = BareLoop(experiment)
    trainer, peer, compiling = [], [], []
    for _ in range(repeats):
        windows, seconds = run_trainer(experiment)
        trainer.append(windows / WINDOW)
        compiling.append(seconds)
        peer.append(bare.run()[0] / WINDOW)
    found: dict[str, Any] = {
        "members": experiment.task.members,
        "optimizer": experiment.optim.name,
        "trainer_compile": compiling[0],  # the later runs find it in the cache
        "bare_compile": bare.compile_seconds,
        "difference": distance,
    }
    for i, clock in enumerate(("wall", "processor")):
        t, b = (np.concatenate(runs)[:, i].tolist() for runs in (trainer, peer))
        found[clock] = {
            "trainer": statistics.median(t),
            "bare": statistics.median(b),
            "overhead": statistics.median(t) / statistics.median(b) - 1,
            "overhead of the fastest": min(t) / min(b) - 1,
            "trainer_windows": t,
            "bare_windows": b,
        }
    return found


HEADER = (
    "members",
    "optimizer",
    "clock",
    "trainer, us/step: median [range]",
    "bare scan, us/step: median [range]",
    "overhead of the median",
    "of the fastest window",
    "compile, s: trainer / bare",
    "parameters differ by",
)


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the two rows of one case."""

    def times(clock: str, name: str) -> str:
        us = 1e6 * np.array(found[clock][f"{name}_windows"])
        return f"{np.median(us):.0f} [{us.min():.0f}, {us.max():.0f}]"

    return [
        (
            str(found["members"]),
            found["optimizer"],
            clock,
            times(clock, "trainer"),
            times(clock, "bare"),
            f"{found[clock]['overhead']:+.1%}",
            f"{found[clock]['overhead of the fastest']:+.1%}",
            f"{found['trainer_compile']:.1f} / {found['bare_compile']:.1f}",
            f"{found['difference']:.0e}",
        )
        for clock in ("wall", "processor")
    ]


def main(steps: int = 3000, repeats: int = 3) -> None:
    """Measure, and write the results."""
    results = []
    with tempfile.TemporaryDirectory() as cache:
        enable_compile_cache(cache)
        for members, optimizer in CASES:
            experiment = case(members=members, optimizer=optimizer, steps=steps)
            results.append(measure(experiment, repeats=repeats))
            for row in rows(results[-1]):
                print(*row, sep=" | ", flush=True)
    origin = report.provenance()
    document = {**origin, "steps": steps, "repeats": repeats, "cases": results}
    here = pathlib.Path(__file__)
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    parts = [
        "# The trainer against a bare `lax.scan` loop",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"Network 16-64-64-1, batch 256; {repeats} runs of {steps} steps each, in turn, clocked in "
        f"windows of {WINDOW} steps. The last column is the relative L2 distance of the parameters "
        "after 100 steps from the same start. What is what: see `trainer.py`.",
        report.table(HEADER, [row for found in results for row in rows(found)]),
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    tyro.cli(main)
