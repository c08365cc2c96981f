"""The paper's setting for the small model, on the reader's own copy of its data.

`data/train.jsonl` and `data/valid.jsonl` hold the authors' form, `{"source": ..., "target": ...}`
with the prompts in the sources; most of the paper's data is commercial and cannot be shipped. The
start is the public `t5-small`, by its name on the hub or from a folder. As published: AdamW with a
constant 6e-4 and weight decay 0.01 on all parameters, no clipping, float32, rows of 512 tokens
without packing, a batch of 32 on each device, and a loss that counts padding.
"""

from common import CheckpointConfig, Experiment, LogConfig, OptimConfig, StepConfig
from molt5_multitask.data.files import FileCorpus
from molt5_multitask.data.mixing import Mixing
from molt5_multitask.data.readers import PromptedJsonl
from molt5_multitask.losses import LossConfig
from molt5_multitask.model import preset
from molt5_multitask.training import MultitaskT5


def config(size: str = "t5-small") -> Experiment[MultitaskT5]:
    """Return the experiment."""
    return Experiment(
        task=MultitaskT5(
            model=preset(size),
            corpus=FileCorpus(
                train=(PromptedJsonl(path="data/train.jsonl"),),
                held_out=(PromptedJsonl(path="data/valid.jsonl"),),
            ),
            vocabulary=size,
            start_from=size,
            packed=False,
            mixing=Mixing(strategy="equal"),
            loss_config=LossConfig(on_padding=True),
            eval_every=20_000,
            eval_rows=800,
            eval_batch=8,
        ),
        # One epoch of 11.5 million pairs at a batch of 32 on one device; set both for yours.
        steps=360_000,
        batch_size=32,
        step=StepConfig(accumulate=4),
        optim=OptimConfig(name="adamw", learning_rate=6e-4, schedule="constant", weight_decay=0.01),
        checkpoint=CheckpointConfig(every=20_000),
        log=LogConfig(every=100),
    )
