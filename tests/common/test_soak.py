"""What a process holds does not grow with saves and runs (design invariant 11)."""

import gc
import os
import threading

import pytest

from common import CheckpointConfig, LogConfig, train
from common.checkpoint import Checkpoints
from tests.common.toy import Toy, experiment

SAVES = CheckpointConfig(every=1)


def held() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def record(monkeypatch, measure):
    """Measure before each save; the one before it may be under way."""
    found = []
    original = Checkpoints.save

    def save(self, step, state):
        found.append(measure())
        original(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    return found


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_threads_and_descriptors_are_level_over_saves(count, tmp_path, monkeypatch):
    found = record(monkeypatch, held)
    task = Toy(eval_every=count)
    train(experiment(task, steps=count, checkpoint=SAVES, workdir=str(tmp_path)))
    assert len(found) == count
    for kind in zip(*found, strict=True):  # each save used to leave one thread and 3 descriptors
        assert max(kind[-10:]) < max(kind[5:15]) + 10


@pytest.mark.slow
def test_memory_is_level_over_saves(tmp_path, monkeypatch):
    found = record(monkeypatch, resident_bytes)
    task = Toy(eval_every=300, width=16_384)  # 2 MB with Adam's moments
    train(experiment(task, steps=300, checkpoint=SAVES, workdir=str(tmp_path)))
    assert max(found[-20:]) < max(found[40:60]) + 30e6


@pytest.mark.slow
def test_a_process_holds_no_more_after_20_runs_than_after_3(tmp_path):
    log = LogConfig(every=2, progress=False)
    counts, memory = [], []
    for number in range(20):
        train(experiment(log=log, workdir=str(tmp_path / str(number))))
        gc.collect()
        counts.append(held())
        memory.append(resident_bytes())
    assert max(counts[-3:]) <= max(counts[1:4])
    assert memory[-1] < memory[3] + 60e6
