"""Trains the toy task in a folder: `python -m tests.mp.script FOLDER [FIELD=VALUE ...]`.

What a test wants to go wrong is said by fields, too. It happens on the last process, once.
"""

import ast
import os
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np

from common import (
    CheckpointConfig,
    LogConfig,
    MeshConfig,
    MetricsEvaluator,
    Preempted,
    StepConfig,
    distributed,
    train,
)
from common.checkpoint import Checkpoints
from common.data import ArrayData
from common.data.arrays import WHOLE
from tests.common.toy import Toy, experiment

RULES = ((".*kernel", ("fsdp", None)), (".*", ()))
STEPS = 30
PHASES = {"compile": (Toy, "loss"), "eval": (MetricsEvaluator, "__call__"),
          "save": (Checkpoints, "save"), "step": (ArrayData, "batch")}  # fmt: skip


def before(phase: str, act) -> None:
    """Call `act(count)` before the count-th time that the phase is entered."""
    owner, name = PHASES[phase]
    original, count = getattr(owner, name), iter(range(10**6))

    def method(self, *args, **kwargs):
        act(next(count))
        return original(self, *args, **kwargs)

    setattr(owner, name, method)


def is_last() -> bool:
    return jax.process_index() == jax.process_count() - 1


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def go_wrong(
    folder: str,
    *,
    slow: float = 0.0,
    term_in: str | None = None,
    kill_at: int | None = None,
    kill_in_save: float | None = None,
    late_start: float = 0.0,
    sleep_at: int | None = None,
    poison: int | None = None,
) -> None:
    """Arrange for what is to go wrong.

    Args:
      slow: seconds for each batch.
      term_in: phase in which SIGTERM comes.
      kill_at: batch at which SIGKILL comes.
      kill_in_save: seconds after the start of the second save at which SIGKILL comes.
      late_start: seconds by which the first step is late.
      sleep_at: batch that never comes.
      poison: batch whose inputs are not finite, on every process.
    """

    def each_batch(count: int) -> None:
        time.sleep(slow)
        if not is_last():
            return
        if count == kill_at:
            send(signal.SIGKILL)
        if count == sleep_at:
            threading.Event().wait()

    before("step", each_batch)
    if poison is not None:
        original_batch = ArrayData.batch

        def batch(self, step, part=WHOLE):
            found = dict(original_batch(self, step, part))
            return found | {"x": found["x"] * np.float32(np.nan)} if step == poison else found

        ArrayData.batch = batch
    if late_start:
        original = distributed.barrier

        def barrier(name, **options):
            time.sleep(late_start if is_last() else 0)
            original(name, **options)

        distributed.barrier = barrier
    if term_in is not None:
        at = 5 if term_in == "step" else 0
        before(term_in, lambda n: send(signal.SIGTERM) if n == at and is_last() else None)
    if kill_in_save is not None:
        done = pathlib.Path(folder) / "killed"

        def kill_soon(count: int) -> None:
            if count == 1 and is_last() and not done.exists():
                done.touch()
                threading.Timer(kill_in_save, send, (signal.SIGKILL,)).start()

        before("save", kill_soon)


def main(folder: str, *fields: str) -> None:
    given = {k: ast.literal_eval(v) for k, v in (field.split("=", 1) for field in fields)}
    wrong = go_wrong.__kwdefaults__.keys() & given.keys()
    go_wrong(folder, **{key: given.pop(key) for key in wrong})
    settings = {
        "steps": STEPS,
        "task": Toy(rules=RULES, dropout=0.2, eval_every=6),
        "mesh": MeshConfig(**given.pop("mesh", {"fsdp": 2})),
        "step": StepConfig(**given.pop("step", {})),
        "checkpoint": CheckpointConfig(**{"every": 4, "keep": 3, **given.pop("checkpoint", {})}),
        "log": LogConfig(every=2, progress=False),
    }
    with distributed.joined():
        try:
            result = train(experiment(workdir=folder, **settings, **given))
        except Preempted as stopped:
            print(stopped)
            raise
        print(f"finished at step {int(result.state.step)} on {jax.device_count()} devices")


if __name__ == "__main__":
    main(*sys.argv[1:])
