"""A bar on a terminal; elsewhere a few plain lines; nothing on other processes."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from common.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(stream, *, start=0, total=100, seconds_per_step=0.5, **fields):
    clock = Clock()
    with Progress(total, start=start, stream=stream, clock=clock, **fields) as progress:
        for step in range(start + 1, total + 1):
            clock.now += seconds_per_step
            progress.update(step, {"train/loss": 1 / step} if step >= start + 10 else {})


def test_plain_lines_every_interval():
    stream = io.StringIO()
    run(stream, description="signed: iteration 2", interval=20)
    assert stream.getvalue().splitlines() == [
        "signed: iteration 2: step 40/100, 40%, loss 0.025, 2 steps/s, 00:30 left",
        "signed: iteration 2: step 80/100, 80%, loss 0.0125, 2 steps/s, 00:10 left",
        "signed: iteration 2: step 100/100, 100%, loss 0.01, 2 steps/s, 00:00 left",
    ]


def test_rate_of_a_resumed_run_counts_its_own_steps():
    stream = io.StringIO()
    run(stream, start=60, interval=10, seconds_per_step=1.0)
    assert stream.getvalue().splitlines() == [
        "step 70/100, 70%, loss 0.0143, 1 steps/s, 00:30 left",
        "step 80/100, 80%, loss 0.0125, 1 steps/s, 00:20 left",
        "step 90/100, 90%, loss 0.0111, 1 steps/s, 00:10 left",
        "step 100/100, 100%, loss 0.01, 1 steps/s, 00:00 left",
    ]


def test_a_failing_run_says_how_far_it_came():
    stream = io.StringIO()
    with contextlib.suppress(KeyboardInterrupt), Progress(10, stream=stream) as progress:
        progress.update(3, {})
        raise KeyboardInterrupt
    assert stream.getvalue().startswith("step 3/10, 30%")


def test_a_complete_run_prints_nothing():
    stream = io.StringIO()
    run(stream, start=100)
    assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    stream = Terminal()
    for iteration in (1, 2):
        run(stream, start=40, description=f"signed: iteration {iteration}")
    first, second, _ = (lines.split("\r")[-1] for lines in stream.getvalue().split("\n"))
    assert "signed: iteration 1: 100%" in first
    assert "signed: iteration 2: 100%" in second
    assert "100/100" in second
    assert "loss 0.01" in second
    assert "step/s" in second


@pytest.mark.parametrize("stream_class", [Terminal, io.StringIO])
def test_silence(stream_class, monkeypatch):
    stream = stream_class()
    run(stream, enabled=False)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(stream)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream_class", [Terminal, io.StringIO])
@pytest.mark.parametrize("fate", ["closed", "no reader", "no reader later"])
def test_a_run_goes_on_without_its_terminal(stream_class, fate):
    stream = stream_class()
    calls = iter(range(1000))

    def write(text):
        if fate == "no reader" or next(calls) > 3:
            raise BrokenPipeError
        return len(text)

    stream.close() if fate == "closed" else setattr(stream, "write", write)
    run(stream, heading="first", interval=1)


def test_a_run_goes_on_without_standard_error(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    run(None, heading="first")


def test_the_first_line():
    stream = io.StringIO()
    run(stream, heading="8 x cpu", description="iteration 2", interval=1000)
    assert stream.getvalue().startswith("iteration 2: 8 x cpu\niteration 2: step 100/100")


CLOSED = """
import os, sys
sys.argv[1] == "closed" and os.close(2)
from common import LogConfig, cli, train
cli.main(train, sys.argv[2:])
"""


@pytest.mark.parametrize("fate", ["closed", "no reader"])
def test_a_command_goes_on_without_standard_error(fate, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    config = tmp_path / "toy.py"
    config.write_text(
        "from common import LogConfig\n"
        "from tests.common.toy import experiment\n"
        "config = lambda: experiment(log=LogConfig(every=2, tensorboard=False))\n"
    )
    command = [sys.executable, "-c", CLOSED, fate, str(config), "--workdir", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE) as process:
        process.stderr.close()
    assert process.returncode == 0
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 12
