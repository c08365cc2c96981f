"""T5-3B as `base_packed.py` trains the base model, for 128 chips and more.

Each block keeps its input only and is computed again in the backward pass; the mesh should split
the state, 34 GB in float32. What it needs of a v5e-256:

    python -m molt5_multitask.train aot configs/molt5_multitask/xl_packed.py \
        --topology v5e:16x16 --mesh.fsdp 64
"""

import dataclasses

from common import Experiment
from configs.molt5_multitask import base_packed
from molt5_multitask.training import MultitaskT5


def config() -> Experiment[MultitaskT5]:
    """Return the experiment."""
    base = base_packed.config("t5-3b")
    model = dataclasses.replace(base.task.model, remat="full")
    return dataclasses.replace(
        base,
        task=dataclasses.replace(base.task, model=model),
        batch_size=1024,
    )
