"""Every shipped Born config parses, shape-checks without compute, and trains two shrunken steps."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from common import CheckpointConfig, LogConfig, cli, train
from common.show import describe

LONG = ("cells64", "studies")
"""Shapes like those of `paper`, or many of them."""
CONFIGS = sorted(
    path
    for path in (pathlib.Path(__file__).parents[2] / "configs" / "born_mlp").glob("*.py")
    if path.name != "__init__.py"
)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in CONFIGS
    ],
)
def test_config(path, monkeypatch):
    config = cli.resolve(path, [])
    assert config.workdir == f"runs/born_mlp/{path.stem}"
    runs = cli.experiments(config)
    assert runs

    with monkeypatch.context() as patch:
        patch.setattr(
            "born_mlp.samples.labels", lambda x: pytest.fail("a shape check labelled samples")
        )
        tables = {describe(run) for run in runs.values()}
    assert all("parameters: " in table for table in tables)

    shrunken = set()
    for run in runs.values():
        count = 64
        source = dataclasses.replace(
            run.task.source,
            count=count,
            sampler=dataclasses.replace(run.task.source.sampler, cells=4),
        )
        task = dataclasses.replace(
            run.task, source=source, hidden=(8,) * len(run.task.hidden), members=2, eval_every=2
        )
        lower = tuple(np.zeros((2, *(4,) * m)) for m in range(1, task.order))
        small = dataclasses.replace(
            run,
            task=dataclasses.replace(task, lower=lower),
            steps=2,
            batch_size=16,
            workdir=None,
            optim=dataclasses.replace(run.optim, warmup_steps=1),
            step=dataclasses.replace(run.step, per_call=1),
            log=LogConfig(every=1, progress=False),
            checkpoint=CheckpointConfig(every=1),
        )
        if str(small) in shrunken:  # regimes that differ only in what was shrunk
            continue
        shrunken.add(str(small))
        result = train(small)
        assert np.isfinite(result.metrics["train/loss"])
        assert int(result.state.step) == 2
