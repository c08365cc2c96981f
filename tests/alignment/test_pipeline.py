"""The pipeline: what it does with finished stages, and what comes out where the truth is known."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from alignment import pipeline
from alignment.evaluation.hierarchy import ImageClasses, distances_by_relation
from alignment.evaluation.odd_one_out import odd_one_out
from alignment.features import Features
from alignment.stages import Pipeline, Stage, in_folder, run_stage
from alignment.teacher import __main__ as teacher
from alignment.teacher.fit import FitConfig
from alignment.world.observers import Observers
from alignment.world.world import LEVELS, World
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


# --- Where the truth is known -----------------------------------------------------------------


def test_the_teacher_stage_recovers_the_hierarchy(tmp_path):
    """Features that show coats first, and hold the hierarchy in directions of their own."""
    world, observers = World(), Observers()
    labels = np.repeat(np.arange(world.classes), 4)
    rng = np.random.default_rng(0)
    coats = np.array([world.coat(label) for label in labels.tolist()])
    shown = [(coats, 3.0), *((world.level_of(labels, level), 1.0) for level in LEVELS)]
    codes = [scale * rng.normal(size=(codes.max() + 1, 6))[codes] for codes, scale in shown]
    latent = np.concatenate([*codes, rng.normal(size=(len(labels), 6))], 1)
    x = (latent @ np.linalg.qr(rng.normal(size=(30, 30)))[0]).astype(np.float32)
    names = np.array([f"object {row}" for row in range(len(labels))])
    Features(features=x, names=names).write(tmp_path / "features.npz")
    judged = observers.judge(world, labels, 30_000)
    np.savez(tmp_path / "judged.npz", triplets=judged)
    expected = observers.probabilities(world, labels, judged).astype(np.float32)
    np.savez(tmp_path / "choices.npz", triplets=judged, probabilities=expected)
    transform = teacher.run(
        teacher.Arguments(
            features=tmp_path / "features.npz",
            triplets=tmp_path / "judged.npz",
            choices=tmp_path / "choices.npz",
            lambdas=(1e-3, 1e-2),
            folds=2,
            fit=FitConfig(steps=300, objects_per_step=96),
            out=tmp_path / "teacher.npz",
        )
    )
    found = transform(x)
    triplets = world.level_triplets(labels, "superordinate", 1000, seed=0)
    before, after = (odd_one_out(f, triplets)["accuracy_cosine"] for f in (x, found))
    assert before < 0.45
    assert after > 0.85
    relative = distances_by_relation(
        found,
        ImageClasses(**{level: world.level_of(labels, level) for level in LEVELS}),
    )
    assert relative["same basic"] < relative["same superordinate"] < 0.8
    assert relative["different superordinate"] > 1.1


@pytest.mark.slow
def test_the_student_gains_most_at_the_coarse_level_and_the_control_does_not(tmp_path):
    """The whole pipeline on a smaller world, then again, when nothing is left to do."""
    config = dataclasses.replace(smaller(cli.resolve(QUICKSTART, [])), workdir=str(tmp_path))
    scores = pipeline.run(config)

    def gain(model, level):
        return scores[f"{model}/{level}"] - scores[f"before/{level}"]

    assert scores["teacher/coarse"] > scores["before/coarse"] + 0.15
    assert gain("after", "coarse") > 0.1
    assert gain("after", "coarse") > gain("after", "fine") + 0.05
    assert gain("after", "coarse") > gain("after", "class_border") + 0.05
    # The larger network behind both is a little better at this than the start is.
    assert gain("control", "coarse") < gain("after", "coarse") / 4
    assert scores["after/objects"] > scores["control/objects"] + 0.05
    logs = list(tmp_path.rglob("metrics.jsonl"))
    before = [path.read_bytes() for path in logs]
    assert pipeline.run(config) == scores
    assert [path.read_bytes() for path in logs] == before


def smaller(config: Pipeline) -> Pipeline:
    """Three kinds of thing in three coats each, and smaller networks."""
    world = dataclasses.replace(
        config.world,
        world=World(superordinates=3, subordinates=3),
        train=80,
        judgments=30_000,
        level_triplets=2000,
    )
    model = dataclasses.replace(config.start.task.model, width=48, mlp=96, layers=2, heads=3)

    def network(run, model, steps):
        task = dataclasses.replace(run.task, model=model, classes=27, eval_every=steps)
        return dataclasses.replace(run, task=task, steps=steps, optim=faster(run.optim))

    def faster(optim):
        return dataclasses.replace(optim, warmup_steps=30)

    student = dataclasses.replace(config.student.task, model=model, head=128)
    return dataclasses.replace(
        config,
        world=world,
        teacher_network=network(
            config.teacher_network, dataclasses.replace(model, width=64, mlp=128, heads=4), 450
        ),
        start=network(config.start, model, 300),
        vice=dataclasses.replace(config.vice, steps=400, seeds=1, figures=False),
        teacher=dataclasses.replace(config.teacher, lambdas=(1e-2,)),
        student=dataclasses.replace(config.student, task=student),
        evaluate=dataclasses.replace(
            config.evaluate,
            figures=False,
            **{
                name: dataclasses.replace(files, train=None)  # no probes
                for name, files in config.evaluate.models.items()
            },
        ),
    )
