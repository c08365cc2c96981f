"""Trains the toy task in a folder: `python -m tests.mp.script FOLDER [FIELD=VALUE ...]`.

What a test wants to go wrong is said by fields, too: `slow` seconds for each batch, `kill_at` and
`late_at` a step, on process 1.
"""

import ast
import os
import signal
import sys
import time

import jax

from common import CheckpointConfig, LogConfig, MeshConfig, distributed, train
from common.data import ArrayData
from tests.common.toy import Toy, experiment

RULES = ((".*kernel", ("fsdp", None)), (".*", ()))


def main(folder: str, *fields: str) -> None:
    given = {k: ast.literal_eval(v) for k, v in (field.split("=", 1) for field in fields)}
    slow, kill_at = given.pop("slow", 0.0), given.pop("kill_at", None)
    original = ArrayData.batch

    def batch(self, step):
        time.sleep(slow)
        if step == kill_at and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, step)

    ArrayData.batch = batch
    settings = {
        "task": Toy(rules=RULES, dropout=0.2, eval_every=given.pop("eval_every", 4)),
        "mesh": MeshConfig(**given.pop("mesh", {"fsdp": 2})),
        "checkpoint": CheckpointConfig(**{"every": 4, "keep": 3, **given.pop("checkpoint", {})}),
        "log": LogConfig(every=2, progress=False),
    }
    with distributed.joined():
        result = train(experiment(workdir=folder, **settings, **given))
        print(f"finished at step {int(result.state.step)} on {jax.device_count()} devices")


if __name__ == "__main__":
    main(*sys.argv[1:])
