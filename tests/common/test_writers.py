"""Logs survive crashes and resumes; the manifest records every start."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from common.writers import (
    JsonlWriter,
    TensorBoardWriter,
    WandbWriter,
    make_writers,
    read_log,
    write_manifest,
)


def log(path, steps, *, resume_step=0):
    writer = JsonlWriter(path, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"train/loss": 1 / step, "train/grad_norm": np.float32(step)})
    writer.close()


# --- JSONL ----------------------------------------------------------------------------------------


def test_lines_are_json_and_exact(tmp_path):
    log(tmp_path / "new" / "metrics.jsonl", [3, 7])
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 3, "train/loss": 1 / 3, "train/grad_norm": 3.0},
        {"step": 7, "train/loss": 1 / 7, "train/grad_norm": 7.0},
    ]


def test_each_line_is_on_disk_at_once(tmp_path):
    writer = JsonlWriter(tmp_path / "log")
    writer.write(1, {"loss": 0.5})
    assert (tmp_path / "log").read_text() == '{"step": 1, "loss": 0.5}\n'
    writer.close()


def test_log_of_a_resumed_run_equals_that_of_an_uninterrupted_one(tmp_path):
    log(tmp_path / "whole", range(10, 110, 10))
    log(tmp_path / "resumed", range(10, 80, 10))
    log(tmp_path / "resumed", range(50, 110, 10), resume_step=40)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resumed", "whole"]


def test_a_run_that_begins_anew_drops_the_old_log(tmp_path):
    log(tmp_path / "log", [10, 20])
    log(tmp_path / "log", [5])
    assert [json.loads(line)["step"] for line in (tmp_path / "log").read_text().splitlines()] == [5]


def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path):
    path = tmp_path / "log"
    log(path, [1, 2])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "tra')
    with pytest.warns(UserWarning, match="torn last line of .*log: "):
        JsonlWriter(path, resume_step=2).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["garbage", "[1]", '{"loss": 1}', "3"])
def test_a_file_that_is_no_log_is_left_alone(tmp_path, line):
    path = tmp_path / "log"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .*log is not a JSON object with a step; move"):
        JsonlWriter(path, resume_step=5)
    assert path.read_text() == '{"step": 1}\n' + line + "\n"


def test_a_crash_while_dropping_lines_leaves_the_old_log(tmp_path, monkeypatch):
    path = tmp_path / "log"
    log(path, [1, 2, 3])
    whole = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        JsonlWriter(path, resume_step=1)
    assert path.read_bytes() == whole


def test_non_finite_numbers_are_valid_json(tmp_path):
    writer = JsonlWriter(tmp_path / "log")
    values = {"a": math.nan, "b": math.inf, "c": -math.inf}
    writer.write(1, values)
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "log").read_text(), parse_constant=refuse)
    assert record == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    np.testing.assert_equal({k: float(record[k]) for k in values}, values)


def test_a_scalar_called_step(tmp_path):
    writer = JsonlWriter(tmp_path / "log")
    with pytest.raises(ValueError, match='cannot be called "step"'):
        writer.write(1, {"step": 2.0})
    writer.close()


def test_the_log_is_read_back(tmp_path):
    assert read_log(tmp_path) == []
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write(2, {"a": 0.1, "b": math.inf})
    writer.write(4, {"a": 3})
    writer.close()
    assert read_log(tmp_path) == [(2, {"a": 0.1, "b": math.inf}), (4, {"a": 3.0})]
    (tmp_path / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"line 1 of .*metrics.jsonl is not that of a run's log"):
        read_log(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    writer = JsonlWriter(tmp_path / "log")
    writer.close()
    with open("/dev/full", "ab", buffering=0) as full:
        monkeypatch.setattr(writer._file, "_file", full)
        with pytest.raises(OSError, match=r"cannot write .*log \(No space left on device\): free"):
            writer.write(1, {"loss": 1.0})


def test_an_unusable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for open_it in (
        lambda: JsonlWriter(tmp_path / "file" / "metrics.jsonl"),
        lambda: TensorBoardWriter(tmp_path / "file" / "tensorboard"),
        lambda: write_manifest(tmp_path / "file" / "run", {}),
    ):
        with pytest.raises(OSError, match=r"cannot write .*file.*choose another workdir"):
            open_it()


# --- TensorBoard and Weights & Biases -------------------------------------------------------------


def read_events(folder):
    """Parse the event files: records of an 8-byte length, 4-byte check, data, 4-byte check."""
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_scalars_and_purge(tmp_path):
    writer = TensorBoardWriter(tmp_path, resume_step=40)
    writer.write(50, {"train/loss": 0.25})
    writer.close()
    events = list(read_events(tmp_path))
    starts = [e for e in events if e.HasField("session_log")]
    assert [e.step for e in starts] == [41]
    points = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert points == [(50, "train/loss", 0.25)]


def test_two_starts_within_a_second_keep_both_files(tmp_path):
    for step in (1, 2):
        writer = TensorBoardWriter(tmp_path)
        writer.write(step, {"train/loss": 0.25})
        writer.close()
    events = [e for e in read_events(tmp_path) if e.summary.value]
    assert sorted(e.step for e in events) == [1, 2]


def test_wandb_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'jax-three-papers\[wandb\]'"):
        WandbWriter(tmp_path, project="p", config={})


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def log(self, scalars, step):
            logged.append((step, scalars))

        def finish(self):
            logged.append("finished")

    def init(**settings):
        started.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        writer = WandbWriter(tmp_path, project="born", config={"steps": 3})
        writer.write(1, {"loss": 0.5})
        writer.close()
    assert started[0] == started[1]
    assert started[0]["project"] == "born"
    assert started[0]["config"] == {"steps": 3}
    assert logged == 2 * [(1, {"loss": 0.5}), "finished"]


def test_make_writers(tmp_path, monkeypatch):
    assert make_writers(None, config={}) == ()
    for tensorboard, expected in [(False, [JsonlWriter]), (True, [JsonlWriter, TensorBoardWriter])]:
        writers = make_writers(tmp_path, tensorboard=tensorboard, config={})
        assert [type(w) for w in writers] == expected
        for writer in writers:
            writer.close()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert make_writers(tmp_path / "other", config={}) == ()
    write_manifest(tmp_path / "other", {})
    assert not (tmp_path / "other").exists()


# --- manifest -------------------------------------------------------------------------------------


def test_manifest_records_each_start(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some_flag")
    write_manifest(tmp_path, {"steps": 5})
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume"])
    write_manifest(tmp_path, {"steps": 6})
    first, second = json.loads((tmp_path / "manifest.json").read_text())["starts"]
    assert first["config"] == {"steps": 5}
    assert second["config"] == {"steps": 6}
    assert second["command"] == ["train.py", "--resume"]
    assert first["xla_flags"] == "--some_flag"
    assert first["versions"]["jax"] == jax.__version__
    assert {"python", "jaxlib", "optax", "orbax-checkpoint", "numpy", "flax"} <= set(
        first["versions"]
    )
    assert first["platform"] == jax.default_backend()
    assert sum(first["devices"].values()) == jax.device_count()
    assert first["processes"] == 1


def test_manifest_names_the_commit_of_a_checkout(tmp_path):
    """In a checkout of its own: clean, then dirty, then no checkout at all."""
    source = pathlib.Path(sys.modules["common.writers"].__file__)
    copy = tmp_path / "repo" / "writers.py"
    copy.parent.mkdir()
    copy.write_bytes(source.read_bytes())
    spec = importlib.util.spec_from_file_location("writers_copy", copy)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = module._git_state

    def git(*arguments):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(
            command, cwd=copy.parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert state() == {}
    git("init", "-q")
    assert state() == {}  # a checkout, but not of this file
    git("add", "writers.py")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert state() == {"git": {"commit": commit, "dirty": False}}
    with copy.open("a") as file:
        file.write("# changed\n")
    assert state() == {"git": {"commit": commit, "dirty": True}}


def test_a_file_that_is_no_manifest_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest.json is not a run's manifest; move it away"):
        write_manifest(tmp_path, {})
    assert (tmp_path / "manifest.json").read_text() == "[]"
