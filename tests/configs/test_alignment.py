"""Every shipped alignment config parses, shape-checks, and trains two shrunken steps."""

import dataclasses
import pathlib

import numpy as np
import pytest

from alignment.classifier import Classifier
from alignment.student import Student
from common import CheckpointConfig, LogConfig, cli, train
from common.show import describe
from tests.alignment import student_toy

CONFIGS = sorted(
    path
    for path in (pathlib.Path(__file__).parents[2] / "configs" / "alignment").glob("*.py")
    if path.name != "__init__.py"
)
SMALL = {"image_size": 16, "patch": 8, "width": 16, "mlp": 16, "layers": 1, "heads": 2}


trained = set()
"""Shrunken runs: those of several families are alike."""


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return student_toy.write_data(tmp_path_factory.mktemp("data"), train=64)


def shrunken_task(task, data_set):
    changes = {"projection": 8} if task.model.projection else {}
    model = dataclasses.replace(task.model, **SMALL, **changes)
    if isinstance(task, Classifier):
        return dataclasses.replace(
            task, model=model, images=data_set.images, test_images=None, classes=100
        )
    return dataclasses.replace(
        task,
        model=model,
        data_set=data_set,
        start_from=None,
        head=8,
        judged=None,
        eval_samplings=(),
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, data_set, monkeypatch):
    config = cli.resolve(path, [])
    assert config.workdir == f"runs/alignment/{path.stem}"
    for run in cli.experiments(config).values():
        with monkeypatch.context() as patch:
            for place in (
                "student.open_images",
                "triplets.batches.open_images",
                "files.read_arrays",
            ):
                patch.setattr(f"alignment.{place}", lambda *_, **__: pytest.fail("data was read"))
            assert "parameters: " in describe(run)
        assert isinstance(run.task, (Student, Classifier))
        small = dataclasses.replace(
            run,
            task=shrunken_task(run.task, data_set),
            steps=2,
            batch_size=8,
            workdir=None,
            optim=dataclasses.replace(run.optim, warmup_steps=min(run.optim.warmup_steps, 1)),
            step=dataclasses.replace(run.step, accumulate=1, per_call=1),
            log=LogConfig(every=1, progress=False),
            checkpoint=CheckpointConfig(every=1),
        )
        if str(small) in trained:
            continue
        trained.add(str(small))
        result = train(small)
        assert np.isfinite(result.metrics["train/loss"])
        assert int(result.state.step) == 2


def test_the_control_is_one_field():
    path = next(p for p in CONFIGS if p.stem == "siglip_b16")
    config = cli.resolve(path, ["--task.data_set.labels", "untransformed"])
    assert config.task.data_set.train.as_posix().endswith(
        "untransformed/train_cluster_border_500.npz"
    )
