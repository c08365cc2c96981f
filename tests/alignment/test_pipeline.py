"""The pipeline: what it does with finished stages, and what comes out where the truth is known."""

import dataclasses
import json
import pathlib

import pytest

from alignment import pipeline
from alignment.stages import Stage, in_folder, run_stage
from common import cli

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "alignment" / "quickstart.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    out: pathlib.Path
    names: tuple[str, ...] = ("{workdir}/a", "b")
    nested: "Arguments | None" = None
    count: int = 1


def test_the_work_folder_is_put_in_everywhere():
    inner = Arguments(out=pathlib.Path("{workdir}/inner"))
    found = in_folder(Arguments(out=pathlib.Path("{workdir}") / "x", nested=inner), "runs/y")
    assert found.out == pathlib.Path("runs/y/x")
    assert found.names == ("runs/y/a", "b")
    assert found.nested.out == pathlib.Path("runs/y/inner")
    untouched = Arguments(out=pathlib.Path("z"), names=())
    assert in_folder(untouched, "runs/y") is untouched


def test_a_finished_stage_is_passed_over_and_one_of_other_settings_refused(tmp_path):
    calls = []

    def run(arguments):
        calls.append(arguments)
        if arguments.count == 13:
            raise OSError("no space")

    arguments = Arguments(out=pathlib.Path("{workdir}/x"))
    stage = Stage("two words, and more", run, arguments)
    assert run_stage(stage, tmp_path) >= 0
    assert calls[0].out == tmp_path / "x"
    assert run_stage(stage, tmp_path) is None
    assert len(calls) == 1
    other = dataclasses.replace(stage, arguments=dataclasses.replace(arguments, count=2))
    with pytest.raises(ValueError, match=r"'two words, and more'.*count: 1 -> 2"):
        run_stage(other, tmp_path)
    # The folder may be moved.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert run_stage(stage, moved) is None
    # What fails is not taken for done.
    failing = Stage("failing", run, dataclasses.replace(arguments, count=13))
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            run_stage(failing, moved)
    assert len(calls) == 3


def test_the_control_differs_in_its_labels_alone():
    config = cli.resolve(QUICKSTART, [])
    student, control = config.student, config.control
    assert control.task.data_set.labels == "untransformed"
    same = dataclasses.replace(
        control,
        workdir=student.workdir,
        task=dataclasses.replace(control.task, data_set=student.task.data_set),
    )
    assert same == student
    stages = {stage.name: stage.arguments for stage in config.stages()}
    ours, theirs = stages["triplets"], stages["triplets of the control"]
    assert (ours.untransformed, theirs.untransformed) == (False, True)
    assert dataclasses.replace(theirs, untransformed=False, transform=ours.transform) == ours


def test_accuracies_are_read_from_the_results(tmp_path):
    scores = {"coarse/accuracy_cosine": 0.5, "coarse/nll": 1.0, "fine/accuracy_cosine": 0.4}
    sections = {
        "levels": {
            "scores": {"before": scores, "after": {**scores, "coarse/accuracy_cosine": 0.75}},
            "references": {"ceiling, coarse": 0.8, "ceiling, fine": 0.6},
        },
        "odd one out": {
            "scores": {"before": {"accuracy_cosine": 0.35}, "after": {"accuracy_cosine": 0.45}}
        },
    }
    (tmp_path / "results.json").write_text(json.dumps({"sections": sections}))
    found = pipeline.read_accuracies(tmp_path)
    assert found["after"] == {"coarse": 0.75, "fine": 0.4, "objects": 0.45}
    assert found["noise ceiling"] == {"coarse": 0.8, "fine": 0.6}
    table = pipeline.accuracy_table(found).splitlines()
    assert table[0] == "|  | coarse | fine | objects |"
    assert table[-1] == "| noise ceiling | 0.8000 | 0.6000 | - |"


def test_other_configs_are_sent_to_their_command():
    with pytest.raises(ValueError, match=r"alignment\.train"):
        pipeline.run(cli.resolve(QUICKSTART.with_name("siglip_b16.py"), []))
