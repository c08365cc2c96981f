"""Every shipped T5 config parses, shape-checks without compute, and trains two shrunken steps."""

import dataclasses
import pathlib

import numpy as np
import pytest

from common import CheckpointConfig, LogConfig, cli, train
from common.show import describe
from molt5_multitask.corpus import SyntheticCorpus

CONFIGS = sorted(
    path
    for path in (pathlib.Path(__file__).parents[2] / "configs" / "molt5_multitask").glob("*.py")
    if path.name != "__init__.py"
)
SMALL = SyntheticCorpus(molecules=40, reactions=40, procedures=40, vocabulary=300)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, monkeypatch):
    config = cli.resolve(path, [])
    assert config.workdir == f"runs/molt5_multitask/{path.stem}"
    with monkeypatch.context() as patch:
        for corpus in ("corpus.SyntheticCorpus", "data.files.FileCorpus"):
            patch.setattr(
                f"molt5_multitask.{corpus}.make", lambda self: pytest.fail("data was read")
            )
        assert "parameters: " in describe(config)

    model = dataclasses.replace(
        config.task.model,
        d_model=16,
        d_ff=16,
        heads=2,
        d_kv=8,
        encoder_layers=1,
        decoder_layers=1,
        vocab_size=300,
    )
    task = dataclasses.replace(
        config.task,
        model=model,
        corpus=SMALL,
        vocabulary=None,
        start_from=None,
        input_length=128,
        target_length=128,
        eval_rows=2,
        eval_batch=8,
    )
    small = dataclasses.replace(
        config,
        task=task,
        steps=2,
        batch_size=8,
        workdir=None,
        optim=dataclasses.replace(config.optim, warmup_steps=min(config.optim.warmup_steps, 1)),
        step=dataclasses.replace(config.step, accumulate=1, per_call=1),
        log=LogConfig(every=1, progress=False),
        checkpoint=CheckpointConfig(every=1),
    )
    result = train(small)
    assert np.isfinite(result.metrics["train/loss"])
    assert int(result.state.step) == 2
