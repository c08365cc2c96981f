"""Exact resume, fallback, refusal, and stopping by a signal (design invariants 1, 4 and 5)."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from common import (
    CheckpointConfig,
    LogConfig,
    MeshConfig,
    MetricsEvaluator,
    OptimConfig,
    Preempted,
    StepConfig,
    Task,
    train,
)
from common.checkpoint import Checkpoints, checksums
from common.data import ArrayData
from common.data.arrays import WHOLE
from common.mesh import make_mesh
from common.perf import Ledger
from common.setup import prepare
from common.state import TrainState
from common.writers import JsonlWriter
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


def signal_at(count: int, original):
    """Return a method that sends SIGTERM at its count-th call."""
    calls = itertools.count(1)

    def signalling(*args, **kwargs):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    return signalling


@pytest.mark.parametrize(
    ("owner", "method", "count"),
    [(JsonlWriter, "write", 8), (MetricsEvaluator, "__call__", 3)],
    ids=["in the last log", "in the final evaluation"],
)
def test_a_signal_at_the_very_end_stops_after_the_final_save(
    owner, method, count, tmp_path, monkeypatch
):
    whole = train(experiment(workdir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, signal_at(count, getattr(owner, method)))
        with pytest.raises(Preempted, match="stopped at step 12 of 12"):
            train(experiment(workdir=str(tmp_path / "parts")))
    resumed = train(experiment(workdir=str(tmp_path / "parts")))
    assert_same_state(whole.state, resumed.state)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_signal_that_is_too_late_for_a_run_stops_the_next(tmp_path, monkeypatch):
    config = experiment(workdir=str(tmp_path / "first"))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "__exit__", signal_at(1, Checkpoints.__exit__))
        train(config)
    with pytest.raises(Preempted, match="stopped at step 0 of 12"):
        train(experiment(workdir=str(tmp_path / "second")))
    train(experiment(workdir=str(tmp_path / "second")))  # the request has been answered
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "restore", signal_at(1, Checkpoints.restore))
        with pytest.raises(Preempted, match="stopped at step 12 of 12"):
            train(config)  # a complete run answers, too


def test_a_signal_while_data_do_not_come_is_honoured_at_once(tmp_path, monkeypatch):
    whole = train(experiment(workdir=str(tmp_path / "whole")))
    original, come = ArrayData.batch, threading.Event()

    def batch(self, step, part=WHOLE):
        if step == 6:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            come.wait(30)
        return original(self, step, part)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayData, "batch", batch)
        patch.setattr(sys.modules["common.data.prefetch"], "JOIN_SECONDS", 0.1)
        with pytest.raises(Preempted) as stopped:
            train(experiment(workdir=str(tmp_path / "parts")))
        assert not come.is_set()
        come.set()
    assert stopped_step(stopped.value) == 6
    assert saved_steps(tmp_path / "parts")[-1] == 6
    resumed = train(experiment(workdir=str(tmp_path / "parts")))
    assert_same_state(whole.state, resumed.state)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


@pytest.mark.parametrize("step", [6, 12])
def test_what_an_evaluator_raises_costs_no_step(step, tmp_path, monkeypatch):
    settings = {"task": Toy(eval_every=6), "checkpoint": CheckpointConfig(every=100)}
    whole = train(experiment(**settings, workdir=str(tmp_path / "whole")))
    original = MetricsEvaluator.__call__
    calls = itertools.count(6, 6)

    def broken(self, params, mesh):
        if next(calls) == step:
            raise KeyError("broken")
        return original(self, params, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsEvaluator, "__call__", broken)
        with pytest.raises(KeyError, match="broken"):
            train(experiment(**settings, workdir=str(tmp_path / "parts")))
    assert saved_steps(tmp_path / "parts")[-1] == step
    resumed = train(experiment(**settings, workdir=str(tmp_path / "parts")))
    assert_same_state(whole.state, resumed.state)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")  # evaluated, and once


def test_a_complete_run_is_not_repeated(tmp_path, monkeypatch):
    config = experiment(steps=11, workdir=str(tmp_path))  # the last window is a part
    first = train(config)
    log = lines(tmp_path)
    assert "train/loss" in first.metrics
    monkeypatch.setattr(MetricsEvaluator, "__call__", lambda *_: pytest.fail("evaluated again"))
    again = train(config)
    assert_same_state(first.state, again.state)
    assert lines(tmp_path) == log
    assert again.metrics == first.metrics


def test_the_speed_of_a_resumed_run_counts_its_own_steps(tmp_path, monkeypatch):
    settings = {"log": LogConfig(every=4, tensorboard=False, progress=False), "steps": 10}
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Preempted) as stopped:
            train(experiment(**settings, workdir=str(tmp_path)))
    start = int(re.search(r"step (\d+) of", str(stopped.value))[1])
    assert start % 4
    counted = []
    monkeypatch.setattr(
        Ledger, "completed", lambda _, steps, examples: counted.append((steps, examples))
    )
    train(experiment(**settings, workdir=str(tmp_path)))
    assert sum(steps for steps, _ in counted) == 10 - start
    assert all(examples == 16 * steps for steps, examples in counted)


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


def test_who_only_reads_leaves_the_save_of_another_process_alone(tmp_path):
    train(experiment(steps=4, workdir=str(tmp_path)))
    under_way = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    under_way.mkdir()
    with Checkpoints(tmp_path, CheckpointConfig(), read_only=True) as checkpoints:
        assert checkpoints.restore(prepare(experiment(steps=4)).abstract_state) is not None
    assert under_way.exists()
    with Checkpoints(tmp_path, CheckpointConfig()):
        end = time.monotonic() + 30  # it is removed by a thread
        while under_way.exists() and time.monotonic() < end:
            time.sleep(0.01)
    assert not under_way.exists()


def test_another_config_is_refused_with_its_diff(tmp_path):
    train(experiment(workdir=str(tmp_path)))
    other = experiment(workdir=str(tmp_path), optim=OptimConfig(name="adam", learning_rate=2e-2))
    with pytest.raises(ValueError, match=r"optim\.learning_rate: 0\.01 -> 0\.02"):
        train(other)
    with pytest.raises(ValueError, match=r"task\.width: 16 -> 8"):
        train(experiment(Toy(width=8), workdir=str(tmp_path)))
    accepted = CheckpointConfig(every=4, keep=3, accept_config_change=("optim.learning_rate",))
    train(experiment(workdir=str(tmp_path), optim=other.optim, checkpoint=accepted))


@pytest.mark.parametrize(
    ("size", "fate"), [(24, "96 to 143 .* are skipped"), (8, "48 to 95 .* are seen again")]
)
def test_another_batch_size_says_what_becomes_of_the_rows(size, fate, tmp_path, caplog):
    train(experiment(steps=6, workdir=str(tmp_path)))
    accepted = CheckpointConfig(every=4, accept_config_change=("batch_size", "steps"))
    train(experiment(workdir=str(tmp_path), batch_size=size, checkpoint=accepted))
    assert re.search(rf"batch_size was 16 up to step 6 and is {size} now: .* {fate}", caplog.text)


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_checkpoints_whose_config_is_lost_are_not_adopted(content, tmp_path):
    train(experiment(steps=4, workdir=str(tmp_path)))
    path = tmp_path / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json, which says .* (missing|not JSON); put it"):
        train(experiment(steps=4, workdir=str(tmp_path), seed=1))


def test_complex_parameters_are_saved_and_checked(tmp_path):
    class Waves(Toy):
        def init(self, key):
            params = super().init(key)
            return params | {"phase": jnp.exp(1j * params["out"]["kernel"][:, 0])}

        def predict(self, params, x, rngs=None):
            return super().predict(params, x, rngs) * jnp.abs(params["phase"]).mean()

    config = experiment(Waves(), steps=4, workdir=str(tmp_path))
    assert_same_state(train(config).state, train(config).state)


def test_the_best_checkpoint_is_kept(tmp_path, monkeypatch):
    losses = dict(zip(range(2, 26, 2), [5, 3, 4, 6, np.nan, 7, 8, 9, 2, 5, 6, 7], strict=True))

    def run(steps, **fields):
        step = iter(sorted(losses))
        for _ in range(len(lines(tmp_path)) and 6):
            next(step)
        monkeypatch.setattr(MetricsEvaluator, "__call__", lambda *_: {"loss": losses[next(step)]})
        kept = CheckpointConfig(
            keep=1, keep_best="test/loss", accept_config_change=("steps",), **fields
        )
        train(experiment(Toy(eval_every=2), steps=steps, checkpoint=kept, workdir=str(tmp_path)))
        return saved_steps(tmp_path)

    (tmp_path / "metrics.jsonl").touch()
    assert run(12) == [4, 12]
    assert run(16) == [4, 16]  # it is known to the next start
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "metrics.jsonl").touch()
    assert run(12, best="max") == [8, 12]  # 12 was better, which is known after its save
    with pytest.raises(ValueError, match=r"keep_best = 'loss' is no number of an evaluator.*test/"):
        train(experiment(checkpoint=CheckpointConfig(keep_best="loss")))


def test_saving_by_the_clock(tmp_path, monkeypatch):
    now = [0.0]
    due = Checkpoints.due

    def slow(self, step, **fields):
        now[0] += 20
        return due(self, step, **fields)

    monkeypatch.setattr(Checkpoints, "due", slow)
    monkeypatch.setattr("common.checkpoint.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    config = CheckpointConfig(every=1000, every_minutes=1, keep=9)
    train(experiment(Toy(eval_every=12), checkpoint=config, workdir=str(tmp_path)))
    assert saved_steps(tmp_path) == [
        2,
        6,
        10,
        12,
    ]  # looked at every two steps, where metrics are logged


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
