"""The base model as we would train it today, on the data of `text_chem_t5_small.py`.

Packed rows, the loss on target tokens only, bfloat16 activations, warm-up and clipping. Parameters
and optimizer are split over the `fsdp` axis where the mesh has one.
"""

import dataclasses

from common import Experiment, StepConfig
from configs.molt5_multitask import text_chem_t5_small
from molt5_multitask.losses import LossConfig
from molt5_multitask.training import MultitaskT5


def config(size: str = "t5-base") -> Experiment[MultitaskT5]:
    """Return the experiment."""
    paper = text_chem_t5_small.config(size)
    model = dataclasses.replace(paper.task.model, vocab_multiple=128, dropout_shared=True)
    return dataclasses.replace(
        paper,
        task=dataclasses.replace(
            paper.task, model=model, packed=True, loss_config=LossConfig(), eval_batch=32
        ),
        batch_size=256,
        steps=50_000,
        step=StepConfig(compute_dtype="bfloat16"),
        optim=dataclasses.replace(paper.optim, warmup_steps=1000, clip_norm=1.0),
        checkpoint=dataclasses.replace(paper.checkpoint, every=5000),
    )
