"""A shipped config from its start to the export.

    python -m tests.configs.rehearsal CONFIG [--field VALUE ...]

runs in a folder of its own, on as many devices as a pod has. The config is shape-checked as it is,
with its evaluators; then it is shrunk in width, layers and length, and run as its project's command
runs it. The first start is killed once its first training run has saved and evaluated in its
middle; the second start goes on from there to the end.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import jax

from common import Experiment, LogConfig, cli
from common.data.arrays import WHOLE
from common.show import describe

CALLS = 4
"""Calls of the training step in each shrunken run."""


def in_calls(run: Experiment[Any]) -> Experiment[Any]:
    """Return a run of four calls that saves and evaluates after every second one."""
    call = min(run.step.per_call, 4)
    task = dataclasses.replace(run.task, eval_every=CALLS // 2 * call)
    return dataclasses.replace(
        run,
        task=task,
        steps=CALLS * call,
        step=dataclasses.replace(run.step, per_call=call),
        optim=dataclasses.replace(run.optim, warmup_steps=min(run.optim.warmup_steps, call)),
        log=LogConfig(every=call, progress=False),
        checkpoint=dataclasses.replace(run.checkpoint, every=CALLS // 2 * call),
    )


def middle(run: Experiment[Any]) -> int:
    """The step after which a run is killed."""
    return run.steps // 2


def evaluated(folder: pathlib.Path) -> dict[int, set[str]]:
    """The names of what was evaluated after each step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        row["step"]: names
        for row in rows
        if (names := {k for k in row if k != "step" and not k.startswith(("train/", "perf/"))})
    }


def is_half_done(run: Experiment[Any]) -> bool:
    """Whether the run has saved and evaluated in its middle."""
    folder, step = pathlib.Path(str(run.workdir)), middle(run)
    saved = (folder / "checkpoints" / str(step)).is_dir()
    return saved and step in evaluated(folder)


def die_in(run: Experiment[Any]) -> None:
    """Let no batch come after the middle of a run, and kill this process there."""
    task = type(run.task)
    original = task.data

    def data(self: Any, **kwargs: Any) -> Any:
        found = original(self, **kwargs)
        batch = found.batch

        def waiting(step: int, part: Any = WHOLE) -> Any:
            if step >= middle(run):
                threading.Event().wait()
            return batch(step, part)

        found.batch = waiting
        return found

    def watch() -> None:
        while not is_half_done(run):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    task.data = data  # type: ignore[method-assign]
    threading.Thread(target=watch, daemon=True).start()


def main(path: str, *flags: str) -> None:
    project = importlib.import_module(f"tests.configs.{pathlib.Path(path).parent.name}")
    jax.config.update("jax_enable_x64", project.__name__.endswith("born_mlp"))
    project.write_data(pathlib.Path.cwd())
    config = cli.resolve(pathlib.Path(path), ["--workdir", "run", *flags])
    for text in {describe(run) for run in cli.experiments(config).values()}:
        print(text.splitlines()[0])
    config = project.shrink(config)
    first = next(iter(cli.experiments(config).values()))
    if not pathlib.Path("run").exists():
        die_in(first)
    project.run(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
