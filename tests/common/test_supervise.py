"""The supervisor: what it starts again, and what it does not."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from common import train
from common.supervise import supervise
from tests.common.toy import experiment


def starts(folder: pathlib.Path) -> int:
    return len((folder / "starts").read_text().splitlines())


def command(folder: pathlib.Path, script: str) -> list[str]:
    return ["sh", "-c", f"echo start >> {folder}/starts; {script}"]


@pytest.mark.parametrize(
    ("script", "status", "count"),
    [
        ("exit 0", 0, 1),
        ("exit 2", 2, 1),  # a mistake on the command line
        ("exit 143", 143, 1),  # asked to stop, and saved
        ("exit 3", 3, 4),
        ("kill -9 $$", 137, 4),
        ("test -e DONE || { touch DONE; exit 1; }", 0, 2),
    ],
)
def test_failures_are_started_again_up_to_a_limit(script, status, count, tmp_path, capfd):
    script = script.replace("DONE", str(tmp_path / "done"))
    assert supervise(command(tmp_path, script), restarts=3, backoff=0.01) == status
    assert starts(tmp_path) == count
    assert ("given up after 3 restarts" in capfd.readouterr().err) == (count == 4)


@pytest.mark.parametrize(("told", "status", "count"), [("$N", 0, 6), ("5", 1, 3)])
def test_only_failures_from_one_checkpoint_are_counted(told, status, count, tmp_path):
    script = f"N=$(wc -l < {tmp_path}/starts); echo {told} > $SUPERVISE_START; test $N -ge 6"
    assert supervise(command(tmp_path, script), restarts=2, backoff=0.01) == status
    assert starts(tmp_path) == count


def test_a_run_says_from_which_checkpoint_it_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERVISE_START", str(tmp_path / "told"))
    for step in (0, 12):
        train(experiment(workdir=str(tmp_path / "run")))
        assert (tmp_path / "told").read_text() == f"{tmp_path}/run/checkpoints {step}"


def test_the_supervisor_works_without_docstrings():
    command = [sys.executable, "-OO", "-m", "common.supervise", "--", "true"]
    assert subprocess.run(command, check=False).returncode == 0


def test_one_failure_ends_the_others_which_know_of_each_other(tmp_path):
    script = (
        f"echo $JAX_PROCESS_ID/$JAX_NUM_PROCESSES >> {tmp_path}/who;"
        "test $JAX_PROCESS_ID = 0 && exec sleep 60; sleep 0.2; exit 5"
    )
    began = time.monotonic()
    status = supervise(command(tmp_path, script), processes=2, restarts=1, backoff=0.01)
    assert status == 5
    assert time.monotonic() - began < 20
    assert sorted((tmp_path / "who").read_text().split()) == ["0/2", "0/2", "1/2", "1/2"]


def test_a_signal_is_passed_on_and_nothing_started_again(tmp_path):
    script = "trap 'exit 143' TERM; while true; do sleep 0.05; done"

    def stop():
        while not (tmp_path / "starts").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert supervise(command(tmp_path, script)) == 143
    assert starts(tmp_path) == 1


def test_a_signal_that_comes_during_a_start_is_passed_on(monkeypatch):
    start = subprocess.Popen

    def asked_meanwhile(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", asked_meanwhile)
    assert supervise(["sleep", "60"]) == 143
