"""Steps that are not finite, disks that fail, hangs: what the run does and what it writes down."""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from common import CheckpointConfig, LogConfig, OptimConfig, ParamGroup, StepConfig, train
from common.checkpoint import Checkpoints
from common.data import ArrayData
from common.data.arrays import WHOLE
from common.preempt import StopRequest
from common.writers import TensorBoardWriter
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
            def batch(this, step, part=WHOLE):
                found = dict(super().batch(step, part))
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


@pytest.mark.parametrize("nonfinite", ["skip", "stop"])
def test_the_last_part_of_a_window_is_checked_and_logged(nonfinite, tmp_path):
    log = LogConfig(every=8, tensorboard=False, progress=False)
    config = experiment(
        Poisoned(batch=10), step=StepConfig(nonfinite=nonfinite), log=log, workdir=str(tmp_path)
    )
    if nonfinite == "stop":
        with pytest.raises(FloatingPointError, match=r"step 10 \(batch 10\) was not finite"):
            train(config)
        assert saved_steps(tmp_path) == [4, 8]
        return
    train(config)
    logged = [row for row in lines(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in logged] == [8, 12]
    assert logged[-1]["train/skipped"] == 0.25


def test_a_short_run_of_which_nothing_is_finite_fails():
    config = experiment(Poisoned(batch=0), steps=1, log=LogConfig(every=100, progress=False))
    with pytest.raises(FloatingPointError, match="nor was any other step of its logging window"):
        train(config)


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

    def without(self, step, part=WHOLE):
        return original(self, step if step < before else step + batch + 1 - before, part)

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


WIDE = Toy(width=4096)  # a checkpoint of half a megabyte


def before_save(step: int, act, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `act` before the save of a step, once the save before it is complete."""
    original = Checkpoints.save

    def save(self, s, state):
        if s == step:
            while saved_steps(self._workdir)[-1:] != [step - 4]:
                time.sleep(0.01)
            act()
        original(self, s, state)

    monkeypatch.setattr(Checkpoints, "save", save)


@pytest.fixture
def no_large_files():
    """Limit files to 20 kB when called: what is written beyond fails in the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB that is filled when called."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs more rights")
    yield disk, lambda: (disk / "full").write_bytes(bytes(shutil.disk_usage(disk).free - 40_000))
    subprocess.run(["umount", str(disk)], check=True)


def check_failed_save(run: pathlib.Path, on_failure, fail, mend, reason, monkeypatch, caplog):
    checkpoint = CheckpointConfig(every=4, keep=1, on_failure=on_failure)
    config = experiment(WIDE, checkpoint=checkpoint, workdir=str(run))
    with monkeypatch.context() as patch:
        before_save(8, fail, patch)
        with pytest.raises(OSError, match=rf"could not be written to .*{reason}.*make room"):
            train(config)
    mend()
    assert saved_steps(run) == [4]  # the older one is there, although one is kept
    assert ("the run goes on" in caplog.text) == (on_failure == "continue")
    # A run that stops learns of the failure at the next save, if not at its end.
    assert lines(run)[-1]["step"] == 12
    assert_same_state(train(config).state, train(dataclasses.replace(config, workdir=None)).state)


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_save_that_fails_leaves_the_older_checkpoint(
    on_failure, no_large_files, tmp_path, monkeypatch, caplog
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    check_failed_save(
        tmp_path / "run",
        on_failure,
        no_large_files,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
        "File too large",
        monkeypatch,
        caplog,
    )


def test_events_on_a_full_disk_are_one_clear_error(no_large_files, tmp_path):
    writer, limits = TensorBoardWriter(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    no_large_files()
    with pytest.raises(OSError, match=r"cannot write .* \(File too large\): free space"):
        writer.write(1, {"loss" * 10_000: 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()


def test_several_processes_do_not_go_on_after_a_failed_save(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"on_failure.*is for one process.*take \"stop\""):
        Checkpoints(tmp_path, CheckpointConfig(on_failure="continue"))


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_stop_that_cannot_save_is_a_failure(on_failure, no_large_files, tmp_path, monkeypatch):
    batch = ArrayData.batch

    def stop_with_a_full_disk(self, step, part=WHOLE):
        if step == 8:
            while saved_steps(tmp_path) != [4]:
                time.sleep(0.01)
            no_large_files()
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step, part)

    monkeypatch.setattr(ArrayData, "batch", stop_with_a_full_disk)
    monkeypatch.setattr(StopRequest, "_requested", False)  # it would outlive the run
    checkpoint = CheckpointConfig(every=4, on_failure=on_failure)
    with pytest.raises(OSError, match=r"could not be written to .*File too large"):
        train(experiment(WIDE, checkpoint=checkpoint, workdir=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_full_disk_leaves_the_older_checkpoint(on_failure, small_disk, monkeypatch, caplog):
    disk, fill = small_disk
    check_failed_save(
        disk / "run",
        on_failure,
        fill,
        (disk / "full").unlink,
        "No space left",
        monkeypatch,
        caplog,
    )


@pytest.mark.slow
@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_folder_that_becomes_read_only_leaves_the_older_checkpoint(
    on_failure, tmp_path, monkeypatch, caplog
):
    folder = str(tmp_path / "run" / "checkpoints")

    def make_read_only():
        for options in (["--bind", folder], ["-o", "remount,ro,bind"]):
            mount = ["mount", *options, folder]
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                pytest.skip("mounting a folder read-only needs more rights")

    def mend():
        subprocess.run(["umount", folder], check=True)

    check_failed_save(
        tmp_path / "run",
        on_failure,
        make_read_only,
        mend,
        "Read-only file system",
        monkeypatch,
        caplog,
    )


HANGING = """
import sys, threading
from common import train
from common.checkpoint import Checkpoints
from common.data import ArrayData
from tests.common.toy import experiment

original = ArrayData.batch
def batch(self, step, part=slice(None)):
    if step == 5:
        threading.Event().wait()
    return original(self, step, part)
ArrayData.batch = batch
train(experiment(hang_timeout=10.0))
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
    assert "Timeout (0:00:10)!" in ended.stderr
    assert "in batch" in ended.stderr
    assert "in train" in ended.stderr
