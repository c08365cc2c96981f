"""Exact resume, fallback, refusal, and stopping by a signal (design invariants 1, 4 and 5)."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from common import (
    CheckpointConfig,
    MeshConfig,
    MetricsEvaluator,
    OptimConfig,
    Preempted,
    StepConfig,
    Task,
    train,
)
from common.checkpoint import Checkpoints, checksums
from common.data.arrays import WHOLE
from common.mesh import make_mesh
from common.state import TrainState
from tests.common.toy import Toy, experiment


def lines(workdir: pathlib.Path) -> list[dict]:
    """The logged metrics, without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    return [row for row in kept if len(row) > 1]


def assert_same_state(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def saved_steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def stopped_step(stopped: Preempted) -> int:
    return int(re.search(r"stopped at step (\d+) of 12", str(stopped))[1])


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, task: type[Task] = Toy) -> None:
    """Send SIGTERM to this process when the data of a step are asked for."""
    original = task.data

    def data(self, **kwargs):
        inner = original(self, **kwargs)
        batch = inner.batch

        def signalling(s, part=WHOLE):
            if s == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return batch(s, part)

        inner.batch = signalling
        return inner

    monkeypatch.setattr(task, "data", data)


SETTINGS = {
    "adam": {},
    "ema, dropout, accumulation": {
        "task": Toy(dropout=0.2),
        "step": StepConfig(ema_decay=0.9, accumulate=2),
    },
    "muon on fsdp": {
        "task": Toy(rules=((".*kernel", ("fsdp", None)), (".*", ())), eval_every=6),
        "optim": OptimConfig(name="muon", learning_rate=1e-2, warmup_steps=2),
        "mesh": MeshConfig(data=1, fsdp=8),
    },
    "two steps a call": {"step": StepConfig(per_call=2)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("stop", [5, 8])
def test_a_stopped_run_resumes_bitwise(settings, stop, tmp_path, monkeypatch):
    whole = train(experiment(**settings, workdir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(Preempted) as stopped:
            train(experiment(**settings, workdir=str(tmp_path / "parts")))
    assert stopped.value.code == 143
    assert stopped_step(stopped.value) in saved_steps(tmp_path / "parts")
    resumed = train(experiment(**settings, workdir=str(tmp_path / "parts")))
    assert_same_state(whole.state, resumed.state)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


@pytest.mark.parametrize(
    ("owner", "method", "stops_at"),
    [(Toy, "loss", 0), (MetricsEvaluator, "__call__", 4), (Checkpoints, "save", 4)],
    ids=["while compiling", "while evaluating", "while saving"],
)
def test_a_signal_is_honoured_whenever_it_comes(owner, method, stops_at, tmp_path, monkeypatch):
    whole = train(experiment(workdir=str(tmp_path / "whole")))
    original = getattr(owner, method)

    def signalling(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, signalling)
        with pytest.raises(Preempted) as stopped:
            train(experiment(workdir=str(tmp_path / "parts")))
    assert stopped_step(stopped.value) == stops_at
    assert saved_steps(tmp_path / "parts")[-1:] == ([stops_at] if stops_at else [])
    resumed = train(experiment(workdir=str(tmp_path / "parts")))
    assert_same_state(whole.state, resumed.state)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_complete_run_is_not_repeated(tmp_path):
    config = experiment(workdir=str(tmp_path))
    first = train(config)
    log = lines(tmp_path)
    again = train(config)
    assert_same_state(first.state, again.state)
    assert lines(tmp_path) == log
    assert again.metrics["test/loss"] == first.metrics["test/loss"]


def lose_arrays(checkpoint: pathlib.Path) -> None:
    for data in list(checkpoint.rglob("d")):
        shutil.rmtree(data)


def flip_bits(checkpoint: pathlib.Path) -> None:
    """Flip one bit of each file of arrays."""
    for path in [p for p in checkpoint.rglob("*") if p.is_file() and p.parent.name == "d"]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


def truncate_files(checkpoint: pathlib.Path) -> None:
    for path in [p for p in checkpoint.rglob("*") if p.is_file() and p.parent.name == "d"]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("tear", [lose_arrays, truncate_files, flip_bits])
def test_a_torn_newest_checkpoint_is_passed_over(tear, tmp_path, caplog):
    whole = train(experiment(workdir=str(tmp_path)))
    assert saved_steps(tmp_path) == [4, 8, 12]
    tear(tmp_path / "checkpoints" / "12")
    resumed = train(experiment(workdir=str(tmp_path)))
    assert "step 12 cannot be read, passed over" in caplog.text
    assert_same_state(whole.state, resumed.state)
    # The torn one has been replaced: the next start needs no fallback.
    caplog.clear()
    train(experiment(workdir=str(tmp_path)))
    assert "passed over" not in caplog.text


def test_checksums_are_alike_on_one_device_and_on_several():
    rng = np.random.default_rng(0)
    state = {
        "scalar": np.int32(-3),
        "odd": rng.normal(size=(8, 13)).astype(np.float32),
        "half": rng.normal(size=37).astype(jnp.bfloat16),
        "flags": rng.random(21) < 0.5,
    }
    expected = []
    for name in sorted(state):
        raw = np.asarray(state[name])
        words = np.frombuffer(raw.tobytes(), f"u{raw.dtype.itemsize}").astype(np.uint64)
        expected.append(int(words.sum() % 2**32))
    alone = jax.device_put(state, jax.devices()[0])
    mesh = make_mesh(MeshConfig())
    spread = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    spread["odd"] = jax.device_put(state["odd"], NamedSharding(mesh, PartitionSpec("data")))
    for placed in (alone, spread):
        assert checksums(placed).tolist() == expected


def test_a_flipped_bit_of_a_large_array_is_found(tmp_path):
    config = experiment(Toy(width=4096), steps=4, workdir=str(tmp_path))
    train(config)
    largest = max((tmp_path / "checkpoints").rglob("d/*"), key=os.path.getsize)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"step 4: not what was written: \S+kernel"):
        train(config)


def test_no_run_starts_anew_over_unreadable_checkpoints(tmp_path):
    train(experiment(workdir=str(tmp_path)))
    lose_arrays(tmp_path / "checkpoints")
    with pytest.raises(RuntimeError, match=r"none of the checkpoints .* can be read"):
        train(experiment(workdir=str(tmp_path)))


def test_another_config_is_refused_with_its_diff(tmp_path):
    train(experiment(workdir=str(tmp_path)))
    other = experiment(workdir=str(tmp_path), optim=OptimConfig(name="adam", learning_rate=2e-2))
    with pytest.raises(ValueError, match=r"optim\.learning_rate: 0\.01 -> 0\.02"):
        train(other)
    with pytest.raises(ValueError, match=r"task\.width: 16 -> 8"):
        train(experiment(Toy(width=8), workdir=str(tmp_path)))
    accepted = CheckpointConfig(every=4, keep=3, accept_config_change=("optim.learning_rate",))
    train(experiment(workdir=str(tmp_path), optim=other.optim, checkpoint=accepted))


@pytest.mark.parametrize("before", [MeshConfig(), MeshConfig(data=2, fsdp=4)])
@pytest.mark.parametrize("after", [MeshConfig(data=4, tensor=2), MeshConfig(data=1, fsdp=8)])
def test_a_checkpoint_opens_on_another_mesh(before, after, tmp_path, monkeypatch):
    rules = ((".*kernel", ("fsdp", None)), (".*", ()))
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(Preempted):
            train(experiment(Toy(rules=rules), workdir=str(tmp_path), mesh=before))
    resumed = train(experiment(Toy(rules=rules), workdir=str(tmp_path), mesh=after))
    whole = train(experiment(Toy(rules=rules)))
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)
    assert dict(resumed.params["in"]["kernel"].sharding.mesh.shape)["fsdp"] == after.fsdp


KILLED = """
import os, signal, sys
from common import train
from common.data import ArrayData
from tests.common.toy import experiment

original = ArrayData.batch
def batch(self, step, part=slice(None)):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, step, part)
ArrayData.batch = batch
train(experiment(workdir=sys.argv[1]))
"""


def test_a_killed_run_loses_at_most_one_save_interval(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    whole = train(experiment(workdir=str(tmp_path / "whole")))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "parts"), "11"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = train(experiment(workdir=str(tmp_path / "parts")))
    assert_same_state(whole.state, resumed.state)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_clear_error(
    tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.v1.training.Checkpointer.save_async", full)
        with pytest.raises(OSError, match=r"could not be written to .*No space left.*make room"):
            train(experiment(workdir=str(tmp_path)))
