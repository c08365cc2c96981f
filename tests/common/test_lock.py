"""A work folder has one writer; the lock of a dead one is taken over."""

import json
import os
import subprocess
import sys
import threading

import pytest

from common import lock, train
from common.lock import WorkdirLock
from tests.common.test_bucket import RUN, bucket
from tests.common.test_resume import lines
from tests.common.toy import experiment

__all__ = ["bucket"]


def leave(folder, **changes):
    """Leave a lock in the folder, as a process that was killed does."""
    found = WorkdirLock(folder)._own | {"beat": 0, "token": "another"} | changes
    (folder / "lock.json").write_text(json.dumps(found))


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)


def test_a_second_run_in_a_folder_is_refused_and_leaves_it_alone(tmp_path):
    train(experiment(steps=4, workdir=str(tmp_path)))
    log = lines(tmp_path)
    assert not (tmp_path / "lock.json").exists()
    with (
        WorkdirLock(tmp_path),
        pytest.raises(RuntimeError, match=rf"another run writes to .*process {os.getpid()} on"),
    ):
        train(experiment(steps=4, workdir=str(tmp_path), seed=1))
    assert lines(tmp_path) == log
    assert train(experiment(steps=4, workdir=str(tmp_path))).metrics


@pytest.mark.parametrize("changes", [{"pid": None}, {"began": "before"}], ids=["dead", "reused"])
def test_the_lock_of_a_dead_process_is_taken_over_at_once(changes, tmp_path, caplog):
    leave(tmp_path, **changes if "began" in changes else {"pid": dead_process()})
    with WorkdirLock(tmp_path) as own:
        own.check()
        assert json.loads((tmp_path / "lock.json").read_text())["token"] != "another"
    assert "is dead: its lock of" in caplog.text


def test_a_silent_lock_of_another_host_is_taken_over(impatient, tmp_path, caplog):
    leave(tmp_path, machine="elsewhere", host="elsewhere")
    with WorkdirLock(tmp_path):
        pass
    assert "on elsewhere holds" in caplog.text
    assert "is dead: its lock of" in caplog.text


def test_a_renewed_lock_of_another_host_is_respected(impatient, tmp_path):
    other = WorkdirLock(tmp_path)
    other._own |= {"machine": "elsewhere", "host": "elsewhere"}
    with (
        other,
        pytest.raises(RuntimeError, match=r"process .* on elsewhere"),
        WorkdirLock(tmp_path),
    ):
        pass


def test_a_run_whose_lock_was_taken_over_saves_no_more(impatient, tmp_path):
    with WorkdirLock(tmp_path) as own:
        leave(tmp_path)
        with pytest.raises(RuntimeError, match="another run has taken over"):
            own.check()
    assert (tmp_path / "lock.json").exists()  # it is that of the other


def test_of_many_starts_one_gets_the_lock(tmp_path):
    got, refused = [], []
    meet = threading.Barrier(8)

    def start():
        meet.wait()
        try:
            got.append(WorkdirLock(tmp_path).__enter__())
        except RuntimeError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(got), len(refused)) == (1, 7)
    got[0].__exit__(None, None, None)


def test_a_folder_whose_files_cannot_be_linked(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with WorkdirLock(tmp_path) as own:
        with pytest.raises(RuntimeError, match="another run writes to"):
            WorkdirLock(tmp_path).__enter__()
        own.check()
    assert not list(tmp_path.iterdir())


def test_a_folder_in_a_bucket(bucket):
    with WorkdirLock(RUN):
        with pytest.raises(RuntimeError, match="another run writes to gs://bucket/runs/a"):
            WorkdirLock(RUN).__enter__()
        assert bucket.exists(f"{RUN}/lock.json")
    assert not bucket.exists(f"{RUN}/lock.json")
