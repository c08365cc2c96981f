"""The stages of a pipeline: their order, and what is done where one was done before.

In all settings `{workdir}` stands for the work folder.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment import embed, evaluate, train
from alignment.classifier import Classifier
from alignment.cluster import __main__ as cluster
from alignment.student import Student
from alignment.teacher import __main__ as teacher
from alignment.triplets import __main__ as triplets
from alignment.vice import __main__ as vice
from alignment.world import __main__ as world
from common import Experiment
from common.config import map_text, refuse_changes, to_dict
from common.files import replace

IMAGE_SETS = ("objects", "train", "test")
"""The images of the world; every model embeds all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """All stages, each with the arguments of its command."""

    world: world.Arguments
    """The synthetic world."""
    teacher_network: Experiment[Classifier]
    """The network whose features become the teacher."""
    start: Experiment[Classifier]
    """The network that the student starts from."""
    embed: embed.Arguments
    """Features; model, images and output are set for each model and set of images."""
    vice: vice.Arguments
    """Embedding of the objects from the observers' choices."""
    teacher: teacher.Arguments
    """The teacher's transform."""
    cluster: cluster.Arguments
    """Clusters of the training images."""
    triplets: triplets.Arguments
    """Labelled triplets; for the control they are labelled anew by the untransformed teacher."""
    student: Experiment[Student]
    """The student; the control differs in whose labels it reads."""
    evaluate: evaluate.Arguments
    """Comparison of the models before and after, the control and the teacher."""
    workdir: str | None = None
    """Folder of everything that is written."""

    def __post_init__(self) -> None:
        if self.student.task.data_set.labels != "uncertainty_distillation":
            raise ValueError("student.task.data_set.labels: the pipeline trains the control itself")

    @property
    def control(self) -> Experiment[Student]:
        """The control: the student on the labels of the untransformed teacher."""
        task = self.student.task
        data_set = dataclasses.replace(task.data_set, labels="untransformed")
        return dataclasses.replace(
            self.student,
            task=dataclasses.replace(task, data_set=data_set),
            workdir=f"{self.student.workdir}_control",
        )

    def stages(self) -> "Iterator[Stage]":
        """Yield the stages in their order."""
        yield Stage("world", world.run, self.world)
        yield Stage("teacher network", train.run, self.teacher_network)
        yield Stage("start", train.run, self.start)
        yield from self._embed("teacher", self.teacher_network)
        yield from self._embed("before", self.start)
        yield Stage("vice", vice.run, self.vice)
        yield Stage("teacher", teacher.run, self.teacher)
        yield Stage("cluster", cluster.run, self.cluster)
        untransformed = dataclasses.replace(self.triplets, untransformed=True, transform=None)
        yield Stage("triplets", triplets.run, self.triplets)
        yield Stage("triplets of the control", triplets.run, untransformed)
        yield Stage("student", train.run, self.student)
        yield Stage("control", train.run, self.control)
        yield from self._embed("after", self.student)
        yield from self._embed("control", self.control)
        yield Stage("evaluate", evaluate.run, self.evaluate)

    def _embed(self, name: str, network: Experiment[Any]) -> "Iterator[Stage]":
        for images in IMAGE_SETS:
            arguments = dataclasses.replace(
                self.embed,
                images=f"{self.world.out}/{images}.npz",
                model=str(network.workdir),
                output=pathlib.Path(f"{{workdir}}/features/{name}_{images}.npz"),
            )
            yield Stage(f"embed {images}, {name}", embed.run, arguments)

    def experiments(self) -> Mapping[str, Experiment[Any]]:
        """Return the training runs by name."""
        runs = {
            "teacher_network": self.teacher_network,
            "start": self.start,
            "student": self.student,
            "control": self.control,
        }
        return {name: in_folder(run, str(self.workdir)) for name, run in runs.items()}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage."""

    name: str
    """What it is called."""
    run: Callable[[Any], Any]
    """Does it."""
    arguments: Any
    """What with."""


def in_folder(arguments: Any, workdir: str) -> Any:
    """Return a dataclass with `{workdir}` replaced in all texts and paths, at any depth."""
    return map_text(arguments, lambda text: text.replace("{workdir}", workdir))


def run_stage(stage: Stage, workdir: pathlib.Path) -> float | None:
    """Run a stage, unless it was done with the same settings.

    Returns:
      The seconds that it took, or None where it was done before.

    Raises:
      ValueError: if it was done with other settings, naming them.
    """
    record = workdir / "stages" / f"{stage.name.replace(', ', '_').replace(' ', '_')}.json"
    settings = to_dict(stage.arguments)
    if record.is_file():
        refuse_changes(
            json.loads(record.read_text())["settings"],
            settings,
            what=f"the stage {stage.name!r} was done in {workdir}",
            advice="undo the change, or give another --workdir",
        )
        return None
    began = time.monotonic()
    stage.run(in_folder(stage.arguments, str(workdir)))
    seconds = time.monotonic() - began
    content = json.dumps({"settings": settings, "seconds": seconds}, indent=2) + "\n"
    replace(record, content.encode())
    return seconds
