"""The account of a run's wall time over its starts, and what is shown of runs."""

import dataclasses
import json
import math
import time

import pytest

from common import ArrayData, cli
from common.data.arrays import WHOLE
from common.goodput import Account, GoodputLog
from common.loop import train
from common.runs import compare, show
from tests.common.toy import experiment

ACTIVITIES = ("init", "compile", "data", "step", "eval", "save", "other")


def line(start, time, done, loss=None, **seconds):
    return {
        "start": start,
        "time": time,
        "step": done,
        "loss": loss,
        "seconds": dict.fromkeys(ACTIVITIES, 0.0) | seconds,
    }


def test_lost_work_and_the_time_between_starts(tmp_path):
    lines = [
        line(0, 110.0, 0, init=10.0),
        line(0, 130.0, 100, 2.0, init=10.0, step=20.0),
        line(0, 132.0, 100, init=10.0, step=20.0, save=2.0),  # resumed from here
        line(0, 152.0, 200, 1.0, init=10.0, step=40.0, save=2.0),  # then killed
        line(1, 205.0, 100, init=5.0),
        line(1, 245.0, 300, 0.5, init=5.0, step=40.0),
    ]
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (tmp_path / "goodput.jsonl").write_text(text + '{"start": 1, "torn')
    account = Account.read(tmp_path)
    first, second = account.starts
    assert (first.lost_steps, first.lost_seconds, first.down_seconds) == (100, 20.0, 48.0)
    assert (second.first_step, second.last_step, second.lost_steps) == (100, 300, 0)
    assert account.wall_seconds == 52 + 48 + 45
    assert account.goodput == (20 + 40) / 145
    assert account.steps_per_second == (200 + 200) / 80
    assert "| 20.0 (100 steps) | 48.0 |" in account.table()


def test_a_clock_that_was_set_back_costs_no_time(tmp_path):
    lines = [line(0, 90_000.0, 100, step=10.0), line(1, 100.0, 100, init=5.0)]
    (tmp_path / "goodput.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    account = Account.read(tmp_path)
    assert account.starts[0].down_seconds == 0
    assert account.wall_seconds == 15


def test_a_loss_that_is_not_finite_is_valid_json(tmp_path):
    with GoodputLog(tmp_path) as log:
        log.write(0, {"step": 1.0})
        log.write(1, {"step": 1.0}, math.nan)
    text = (tmp_path / "goodput.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert [json.loads(x, parse_constant=refuse)["loss"] for x in text.splitlines()] == [
        None,
        "NaN",
    ]
    first, last = Account.read(tmp_path).starts[0].lines
    assert first["loss"] is None
    assert math.isnan(last["loss"])


def test_the_first_fetch_is_start_up(tmp_path, monkeypatch):
    """Reading the data may take long; it is no part of the speed of training."""
    batch = ArrayData.batch

    def slow(self, step, part=WHOLE):
        time.sleep(0.5 if step == 0 else 0)
        return batch(self, step, part)

    monkeypatch.setattr(ArrayData, "batch", slow)
    train(experiment(steps=4, workdir=str(tmp_path)))
    (start,) = Account.read(tmp_path).starts
    assert start.seconds["data"] < 0.4 < start.seconds["init"]


def test_a_line_is_there_before_the_file_is_closed(tmp_path):
    with GoodputLog(tmp_path) as log:
        log.write(7, {"step": 1.23456})
        (written,) = (tmp_path / "goodput.jsonl").read_text().splitlines()
    assert json.loads(written)["seconds"] == {"step": 1.235}
    with GoodputLog(None) as log:
        log.write(7, {"step": 1.0})


def test_a_torn_last_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "goodput.jsonl"
    path.write_text(json.dumps(line(0, 110.0, 0)) + '\n{"start": 0, "torn')
    with pytest.warns(UserWarning, match="dropped a torn last line"), GoodputLog(tmp_path) as log:
        log.write(7, dict.fromkeys(ACTIVITIES, 1.0))
    assert [start.last_step for start in Account.read(tmp_path).starts] == [0, 7]


def crash_at(step, monkeypatch):
    """Have the data of a step fail to come."""
    batch = ArrayData.batch

    def failing(self, number, part=WHOLE):
        if number == step:
            raise ConnectionError("the machine is gone")
        return batch(self, number, part)

    monkeypatch.setattr(ArrayData, "batch", failing)


def test_a_run_with_a_crash_is_shown_and_compared(tmp_path, capsys, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(experiment(workdir=str(whole)))
    with monkeypatch.context() as patch:
        crash_at(11, patch)
        with pytest.raises(ConnectionError):
            train(experiment(workdir=str(broken)))
    train(experiment(workdir=str(broken)))
    first, second = Account.read(broken).starts
    assert (first.first_step, second.first_step, second.last_step) == (0, 8, 12)
    assert first.lost_steps == first.last_step - 8

    cli.main(lambda _: None, ["show", str(broken)])
    text = capsys.readouterr().out
    assert "| start | began | steps | init | compile |" in text
    assert "steps/s in training" in text
    assert (broken / "goodput.png").read_bytes().startswith(b"\x89PNG")

    other = tmp_path / "other"
    train(dataclasses.replace(experiment(workdir=str(other)), seed=1))
    text = compare([whole, broken, other])
    assert "|  | whole | broken | other |" in text
    assert "- other: seed = 1 (in whole: 0)" in text
    row = next(x for x in text.splitlines() if x.startswith("| test/loss |")).split(" | ")
    assert row[1] == row[2] != row[3]
    assert (other / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not the work folder of a run"):
        show(tmp_path)
