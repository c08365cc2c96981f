"""Several processes train, save and restore as one does."""

import json
import pathlib

import jax
import numpy as np
import pytest

from common import MeshConfig
from common.checkpoint import Checkpoints
from common.setup import prepare
from tests.common.test_resume import lines, saved_steps
from tests.common.toy import Toy, experiment
from tests.mp import launch, script


def final_state(folder: pathlib.Path):
    """The newest checkpoint, on the devices of this process."""
    task = Toy(rules=script.RULES, dropout=0.2)
    config = experiment(task, mesh=MeshConfig(fsdp=2))
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        return jax.device_get(checkpoints.restore(prepare(config).abstract_state))


def assert_close(a: pathlib.Path, b: pathlib.Path) -> None:
    for x, y in zip(jax.tree.leaves(final_state(a)), jax.tree.leaves(final_state(b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)
    assert [sorted(row) for row in lines(a)] == [sorted(row) for row in lines(b)]
    for x, y in zip(lines(a), lines(b), strict=True):
        np.testing.assert_allclose(list(x.values()), list(y.values()), rtol=2e-5)


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> pathlib.Path:
    """A run of one process with eight devices."""
    folder = tmp_path_factory.mktemp("alone")
    (ended,) = launch.run(["-m", "tests.mp.script", folder], folder, processes=1, devices=8)
    assert ended.status == 0, ended.output
    return folder


@pytest.mark.parametrize(
    "processes", [2, pytest.param(4, marks=pytest.mark.slow)], ids="{} processes".format
)
def test_processes_train_as_one_does(processes, alone, tmp_path):
    ends = launch.run(
        ["-m", "tests.mp.script", tmp_path],
        tmp_path,
        processes=processes,
        devices=8 // processes,
    )
    assert [e.status for e in ends] == [0] * processes, "\n".join(e.output for e in ends)
    assert all("finished at step 12 on 8 devices" in e.output for e in ends)
    assert_close(alone, tmp_path)
    assert saved_steps(tmp_path) == [4, 8, 12]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [start["processes"] for start in manifest["starts"]] == [processes]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
