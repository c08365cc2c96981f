"""Processes that are killed, asked to stop, late, missing or dead, and torn checkpoints."""

import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.common.test_resume import flip_bits, lose_arrays, saved_steps, truncate_files
from tests.mp import launch, script
from tests.mp.compare import assert_close, assert_same

SCRIPT = ["-m", "tests.mp.script"]


def children(pid: int) -> list[int]:
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def supervised(folder: pathlib.Path, *fields: str, restarts: int = 10) -> subprocess.Popen:
    """Two processes under a supervisor."""
    options = ["--processes", "2", "--backoff", "0.1", "--restarts", restarts]
    command = [sys.executable, *SCRIPT, str(folder), *fields]
    return launch.spawn(
        ["-m", "common.supervise", *map(str, options), "--", *command],
        0,
        1,
        0,
        folder.with_suffix(".log"),
        devices=4,
    )


def kill_at_random(supervisor: subprocess.Popen, kills: int, seed: int) -> int:
    """Kill one process or both, `kills` times, each within seconds of a start."""
    rng = random.Random(seed)
    made = 0
    while made < kills and supervisor.poll() is None:
        time.sleep(rng.uniform(1.0, 8.0))
        running = children(supervisor.pid)
        if len(running) == 2:
            for pid in running if rng.random() < 0.5 else [rng.choice(running)]:
                launch.kill(pid)
            made += 1
    return made


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(3, 0), *(pytest.param(5, seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))],
)
def test_killed_processes_end_with_the_same_bits(kills, seed, pair, tmp_path):
    folder = tmp_path / "run"
    supervisor = supervised(folder, "slow=0.4")
    assert kill_at_random(supervisor, kills, seed) == kills
    status, log = supervisor.wait(120), folder.with_suffix(".log").read_text(errors="replace")
    assert status == 0, log
    assert log.count("supervise: status") >= kills, log
    assert_same(pair, folder)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_supervisor_for_each_process_is_enough(killed, pair, tmp_path):
    """As on a pod: none of them knows of the others."""
    folder, port = tmp_path / "run", launch.free_port()
    command = [sys.executable, *SCRIPT, str(folder), "slow=0.3"]
    logs = [tmp_path / f"supervisor_{i}.log" for i in range(2)]
    supervisors = [
        launch.spawn(["-m", "common.supervise", "--", *command], i, 2, port, logs[i])
        for i in range(2)
    ]
    while saved_steps(folder)[-1:] != [8] if (folder / "checkpoints").exists() else True:
        time.sleep(0.1)
    launch.kill(children(supervisors[killed].pid)[0])
    statuses = [supervisor.wait(120) for supervisor in supervisors]
    assert statuses == [0, 0], "\n".join(log.read_text(errors="replace") for log in logs)
    assert_same(pair, folder)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03, 0.1])
def test_a_process_killed_in_mid_save_ends_with_the_same_bits(delay, pair, tmp_path):
    folder = tmp_path / "run"
    supervisor = supervised(folder, f"kill_in_save={delay}")
    status, log = supervisor.wait(120), folder.with_suffix(".log").read_text(errors="replace")
    assert status == 0, log
    assert (folder / "killed").exists()
    assert "restart 1 of 10" in log
    assert_same(pair, folder)


SLOW_PHASES = [pytest.param(p, marks=pytest.mark.slow) for p in ("compile", "eval", "save")]


@pytest.mark.parametrize("phase", ["step", *SLOW_PHASES])
def test_one_signal_stops_all_at_the_same_step(phase, pair, tmp_path):
    folder = tmp_path / "run"
    ends = launch.run([*SCRIPT, folder, f"term_in={phase!r}", "slow=0.2"], tmp_path)
    assert [end.status for end in ends] == [143, 143], "\n".join(end.output for end in ends)
    steps = {
        found[1] for end in ends if (found := re.search(r"stopped at step (\d+) of", end.output))
    }
    assert len(steps) == 1
    assert saved_steps(folder)[-1:] == [int(steps.pop())]
    launch.succeed([*SCRIPT, folder], tmp_path)
    assert_same(pair, folder)


TWO_RUNS = """
import os, signal, sys, time
import jax
from common import MetricsEvaluator, distributed, train
from common.data import ArrayData
from common.data.arrays import WHOLE
from tests.common.toy import Toy, experiment

evaluate, batch = MetricsEvaluator.__call__, ArrayData.batch

def signalling(*args):
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(*args)

def slow(self, step, part=WHOLE):
    time.sleep(0.2)
    return batch(self, step, part)

with distributed.joined():
    MetricsEvaluator.__call__ = signalling
    train(experiment(Toy(eval_every=12), workdir=sys.argv[1] + "/first"))
    MetricsEvaluator.__call__, ArrayData.batch = evaluate, slow
    train(experiment(Toy(eval_every=100), steps=100, workdir=sys.argv[1] + "/second"))
"""


@pytest.mark.slow
def test_a_signal_that_is_too_late_for_a_run_stops_the_next(tmp_path):
    """JAX looks for the signal once a second: the first run may have ended by then."""
    ends = launch.run(["-c", TWO_RUNS, tmp_path], tmp_path)
    assert [end.status for end in ends] == [143, 143], "\n".join(end.output for end in ends)
    assert saved_steps(tmp_path / "first")[-1] == 12
    second = tmp_path / "second"
    if (second / "checkpoints").exists():
        assert saved_steps(second)[-1:] < [100]


def test_a_process_that_does_not_come_is_named(tmp_path):
    port = launch.free_port()
    log = tmp_path / "log"
    began = time.monotonic()
    process = launch.spawn([*SCRIPT, tmp_path / "run"], 0, 3, port, log, JAX_STARTUP_TIMEOUT="4")
    assert process.wait(60) not in (0, 143)
    assert time.monotonic() - began < 30
    text = log.read_text(errors="replace")
    assert "process 0 waits for the others" in text
    assert re.search(r"timed out task names:\s+(1\s+2|2\s+1)\s", text)


@pytest.mark.slow
def test_processes_roll_back_together(tmp_path):
    fields = ["poison=13", "step={'nonfinite': 'roll_back'}"]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ends = launch.succeed(
            [*SCRIPT, folder, *fields], tmp_path, processes=processes, devices=8 // processes
        )
        assert all("rolling back: step 13 (batch 13)" in end.output for end in ends)
    assert_close(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_a_process_that_is_late_is_named_at_the_barrier(tmp_path):
    ends = launch.run(
        [*SCRIPT, tmp_path / "run", "late_start=30.0"],
        tmp_path,
        more={"JAX_STARTUP_TIMEOUT": "8"},
    )
    assert all(end.status for end in ends)
    assert "'first step' for process 1: late or dead" in ends[0].output


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(tmp_path):
    began = time.monotonic()
    ends = launch.run([*SCRIPT, tmp_path / "run", "kill_at=6"], tmp_path, processes=4, devices=2)
    assert ends[3].status == -signal.SIGKILL
    assert all(end.status not in (0, 143) for end in ends)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_with_its_stacks(tmp_path):
    ends = launch.run([*SCRIPT, tmp_path / "run", "sleep_at=6", "hang_timeout=8.0"], tmp_path)
    assert all(end.status for end in ends)
    assert "Timeout (0:00:08)!" in ends[1].output
    assert "in each_batch" in ends[1].output


@pytest.mark.slow
@pytest.mark.parametrize("tear", [lose_arrays, truncate_files, flip_bits])
def test_a_torn_checkpoint_is_passed_over_by_all(tear, pair, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pair, folder)
    tear(folder / "checkpoints" / str(script.STEPS))
    ends = launch.succeed([*SCRIPT, folder], tmp_path)
    for end in ends:
        assert f"step {script.STEPS} cannot be read, passed over" in end.output
    assert_same(pair, folder)


@pytest.mark.slow
def test_no_process_starts_anew_over_unreadable_checkpoints(pair, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pair, folder)
    for step in saved_steps(folder):
        lose_arrays(folder / "checkpoints" / str(step))
    ends = launch.run([*SCRIPT, folder], tmp_path)
    assert all(end.status for end in ends)
    assert "none of the checkpoints" in ends[0].output
