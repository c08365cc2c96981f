"""Several processes train, save and restore as one does, and go on as another number of them."""

import json
import shutil

import pytest

from tests.common.test_resume import lines, saved_steps
from tests.mp import launch, script
from tests.mp.compare import assert_close

SCRIPT = ["-m", "tests.mp.script"]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_as_one_does(processes, alone, pair, tmp_path):
    """Evaluation has 50 rows in batches of 16 over 8 devices: no process runs out before others."""
    folder = pair
    if processes == 4:
        folder = tmp_path
        launch.succeed([*SCRIPT, folder], folder, processes=4, devices=2)
    assert_close(alone, folder)
    assert saved_steps(folder) == [24, 28, 30]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [start["processes"] for start in manifest["starts"]] == [processes]
    assert len(list((folder / "tensorboard").iterdir())) == 1


INTERLEAVED = """
import jax
import numpy as np

from common import Mean, MeshConfig, OnePass, distributed
from common.evaluate import evaluate, map_rows
from common.loop import _batches
from common.mesh import local_examples, make_mesh, place
from common.setup import prepare
from tests.common.toy import experiment

with distributed.joined():
    by_process = [[d for d in jax.devices() if d.process_index == p] for p in (0, 1)]
    devices = [device for pair in zip(*by_process) for device in pair]
    mesh = make_mesh(MeshConfig(), devices)
    own = local_examples(mesh, 16)
    assert len(own) == 8 and max(np.diff(own)) == 3, own
    whole = np.arange(32).reshape(16, 2)
    for given in (whole[own], whole):
        placed = place({"x": given}, mesh, count=16)["x"]
        assert placed.shape == (16, 2)
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
    setup = prepare(experiment(), devices)
    step = next(_batches(setup, 3, 0))["x"]
    np.testing.assert_array_equal(step[0], setup.data.batch(3)["x"][own])

    asked = []
    class Watched(OnePass):
        def take(self, rows):
            asked.append(rows)
            return super().take(rows)

    held_out = np.arange(20, dtype=np.float32)
    data = Watched({"x": held_out}, batch_size=12)  # two batches of 16, the second filled up
    mean = jax.jit(lambda params, batch: {"x": Mean.of(batch["x"], batch["weight"])})
    assert evaluate(mean, None, data, mesh) == {"x": 9.5}
    assert [len(rows) for rows in asked] == [8, 8]
    assert set(np.concatenate(asked)) <= {0, *own, *(16 + own[own < 4])}
    found = map_rows(jax.jit(lambda params, batch: batch["x"]), None, data, mesh)
    np.testing.assert_array_equal(found, held_out)
    print("each its own")
"""


def test_processes_make_their_own_examples_where_the_mesh_mixes_them(tmp_path):
    launch.succeed(["-c", INTERLEAVED], tmp_path)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """Two processes with four devices each that died between the steps 18 and 20."""
    folder = tmp_path_factory.mktemp("half")
    ends = launch.run([*SCRIPT, folder, "kill_at=19", "slow=0.2"], folder)
    assert all(end.status for end in ends)
    assert saved_steps(folder)[-1] == 16
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        (1, 8, {"fsdp": 2}),
        (1, 8, {"data": 2, "fsdp": 2, "tensor": 2}),
        (1, 1, {}),
        (4, 2, {"fsdp": 4}),
        (2, 4, {"data": 1, "fsdp": 8}),
        (2, 2, {}),
    ],
)
def test_training_goes_on_on_other_devices(processes, devices, mesh, half_done, alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    launch.succeed(
        [*SCRIPT, folder, f"mesh={mesh}"], tmp_path, processes=processes, devices=devices
    )
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    assert len(starts) == 2
    assert_close(alone, folder)
    before = [row for row in lines(half_done) if row["step"] <= 16]
    assert lines(folder)[: len(before)] == before  # it went on, and did not begin anew


SAVING = {
    "every": 100,
    "every_minutes": 1.5 / 60,
    "keep": 1,
    "keep_best": "test/loss",
    "best": "max",
}


@pytest.mark.slow
def test_processes_save_by_the_clock_and_keep_the_best_alike(alone, tmp_path):
    """By the clock of the first, whose time the others need not share."""
    folder = tmp_path / "run"
    launch.succeed([*SCRIPT, folder, f"checkpoint={SAVING}", "slow=0.3"], tmp_path)
    evaluated = {row["step"]: row["test/loss"] for row in lines(folder) if "test/loss" in row}
    best = max((s for s in evaluated if s < script.STEPS), key=evaluated.__getitem__)
    assert saved_steps(folder) == sorted({best, script.STEPS})
    assert_close(alone, folder)
    ends = launch.succeed([*SCRIPT, folder, f"checkpoint={SAVING}"], tmp_path)
    assert all("finished at step 30" in end.output for end in ends)


UNLIKE = """
import os, sys
from tests.mp import script

script.main(sys.argv[1], "seed=" + os.environ["JAX_PROCESS_ID"])
"""


def test_processes_with_unlike_configs_are_refused(tmp_path):
    ends = launch.run(["-c", UNLIKE, tmp_path / "run"], tmp_path)
    assert all(end.status not in (0, 143) for end in ends)
    assert "the config of process 1 differs from that of process 0" in ends[0].output


@pytest.mark.slow
def test_another_config_is_refused_by_all_and_a_named_difference_let_through(half_done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    ends = launch.run([*SCRIPT, folder, "seed=1"], tmp_path)
    assert all(end.status for end in ends)
    assert "seed: 0 -> 1" in ends[0].output
    named = "checkpoint={'accept_config_change': ('seed',)}"
    launch.succeed([*SCRIPT, folder, "seed=1", named], tmp_path)
    assert saved_steps(folder)[-1] == script.STEPS
