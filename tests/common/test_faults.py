"""Steps that are not finite, disks that fail, hangs: what the run does and what it writes down."""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from common import CheckpointConfig, OptimConfig, ParamGroup, StepConfig, train
from common.data import ArrayData
from tests.common.test_resume import assert_same_state, lines, saved_steps
from tests.common.toy import Toy, experiment

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisoned(Toy):
    """Toy task whose row 3 of one batch is not finite."""

    batch: int = 6
    """The batch."""

    def data(self, *, batch_size, seed):
        class Data(ArrayData):
            def batch(this, step):
                found = dict(super().batch(step))
                if step == self.batch:
                    found["x"] = found["x"].copy()
                    found["x"][3, 0] = np.nan
                return found

        inner = super().data(batch_size=batch_size, seed=seed)
        return Data(inner._arrays, batch_size=batch_size, seed=seed)


GROUPS = OptimConfig(
    name="adam",
    learning_rate=1e-2,
    groups=(ParamGroup(pattern=".*bias"), ParamGroup(pattern=".*kernel")),
)


def faults(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]


def test_a_fault_is_written_down_with_step_rows_and_parameters(tmp_path, caplog):
    result = train(experiment(Poisoned(), optim=GROUPS, workdir=str(tmp_path)))
    (found,) = faults(tmp_path)
    expected = Poisoned().data(batch_size=16, seed=0).rows(6)
    assert found == {
        "step": 6,
        "batch": 6,
        "loss": "not finite",
        "parameters": ["in/kernel", "out/bias", "out/kernel"],
        "groups": [".*bias", ".*kernel"],
        "rows": expected.tolist(),
        "inputs": [3],
    }
    assert "skipped: step 6 (batch 6) was not finite" in caplog.text
    assert np.isfinite(result.metrics["train/loss"])


def test_a_fault_stops_the_run_where_the_config_says_so(tmp_path):
    config = experiment(Poisoned(), step=StepConfig(nonfinite="stop"), workdir=str(tmp_path))
    with pytest.raises(FloatingPointError, match=r"step 6 \(batch 6\) was not finite: loss not"):
        train(config)
    assert saved_steps(tmp_path) == [4]


@pytest.mark.parametrize("batch", [1, 6])
def test_rolling_back_passes_over_the_data_up_to_the_fault(batch, tmp_path, caplog):
    rolled = experiment(
        Poisoned(batch=batch), step=StepConfig(nonfinite="roll_back"), workdir=str(tmp_path / "a")
    )
    result = train(rolled)
    assert "rolling back" in caplog.text
    before = batch // 4 * 4  # the checkpoint that was gone back to
    assert int(result.state.passed_over) == batch + 1 - before
    assert int(result.state.step) == 12

    # As if the batches between had never been: those before the checkpoint, then those after.
    original = ArrayData.batch

    def without(self, step):
        return original(self, step if step < before else step + batch + 1 - before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayData, "batch", without)
        clean = train(experiment(Poisoned(batch=-1), workdir=str(tmp_path / "b")))
    state = dataclasses.replace(result.state, passed_over=clean.state.passed_over)
    assert_same_state(state, clean.state)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_a_run_that_cannot_get_past_its_faults_stops(tmp_path):
    class Always(Poisoned):
        def data(self, *, batch_size, seed):
            x = np.full((100, 8), np.nan, np.float32)
            return ArrayData({"x": x, "y": x[:, 0]}, batch_size=batch_size, seed=seed)

    config = experiment(Always(), step=StepConfig(nonfinite="roll_back"), workdir=str(tmp_path))
    with pytest.raises(FloatingPointError, match="after going back 3 times"):
        train(config)


def full_from(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file grow beyond 20 kB from a step on: the writes of a save fail in the kernel."""
    original = ArrayData.batch
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def batch(self, s):
        if s == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        return original(self, s)

    monkeypatch.setattr(ArrayData, "batch", batch)


@pytest.fixture
def _no_limit_after():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WIDE = Toy(width=4096)


@pytest.mark.usefixtures("_no_limit_after")
@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_save_that_fails_leaves_the_older_checkpoint(on_failure, tmp_path, monkeypatch, caplog):
    checkpoint = CheckpointConfig(every=4, keep=1, on_failure=on_failure)
    config = experiment(WIDE, checkpoint=checkpoint, workdir=str(tmp_path))
    train(dataclasses.replace(config, steps=12, workdir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        full_from(7, patch)
        with pytest.raises(OSError, match=r"could not be written to .*File too large.*make room"):
            train(config)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, -1))
    assert saved_steps(tmp_path) == [4]
    last = lines(tmp_path)[-1]["step"]
    assert last == (12 if on_failure == "continue" else 10 if last == 10 else 8)
    assert ("the run goes on" in caplog.text) == (on_failure == "continue")
    resumed = train(config)
    assert int(resumed.state.step) == 12
    assert lines(tmp_path) == lines(tmp_path / "whole")


HANGING = """
import sys, threading
from common import train
from common.data import ArrayData
from tests.common.toy import experiment

original = ArrayData.batch
def batch(self, step):
    if step == 5:
        threading.Event().wait()
    return original(self, step)
ArrayData.batch = batch
train(experiment(hang_timeout=3.0))
"""


def test_a_hang_ends_with_the_stacks_of_all_threads():
    ended = subprocess.run(
        [sys.executable, "-c", HANGING],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "Timeout (0:00:03)!" in ended.stderr
    assert "in batch" in ended.stderr
    assert "in train" in ended.stderr
