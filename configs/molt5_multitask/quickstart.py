"""All five tasks on the synthetic corpus, with a T5 that learns them in minutes on two cores."""

from common import CheckpointConfig, Experiment, LogConfig, OptimConfig
from molt5_multitask.corpus import SyntheticCorpus
from molt5_multitask.losses import LossConfig
from molt5_multitask.model import preset
from molt5_multitask.training import MultitaskT5


def config() -> Experiment[MultitaskT5]:
    """Return the experiment."""
    corpus = SyntheticCorpus()
    return Experiment(
        task=MultitaskT5(
            model=preset(
                "t5-tiny",
                d_model=128,
                d_ff=256,
                heads=4,
                d_kv=32,
                vocab_size=corpus.vocabulary,
                dropout=0.0,
                scan=False,
            ),
            corpus=corpus,
            input_length=256,
            target_length=192,
            loss_config=LossConfig(chunk=None),
            eval_every=250,
            eval_rows=64,
        ),
        steps=1000,
        batch_size=8,
        optim=OptimConfig(
            name="adamw", learning_rate=2e-3, weight_decay=0.0, warmup_steps=200, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=100, tensorboard=False),
    )
