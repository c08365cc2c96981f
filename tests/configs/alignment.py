"""Students and the pipeline, shrunk, and labelled triplets with their images."""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from alignment import pipeline, train
from alignment.stages import Pipeline
from alignment.student import Student
from alignment.triplets.files import write_filenames
from alignment.triplets.sampling import Sampler
from alignment.vit.config import ViTConfig
from alignment.vit.model import init
from alignment.vit.pretrained import save_pretrained
from alignment.world.world import World
from common import Experiment
from tests.alignment import student_toy
from tests.configs.rehearsal import in_calls


def run(config: Pipeline | Experiment) -> None:
    """Run it as its command does."""
    (pipeline if isinstance(config, Pipeline) else train).run(config)


def write_data(folder: pathlib.Path) -> None:
    """Write images, and triplets as they were published; more than a batch of the training ones."""
    os.environ |= {
        "ALIGNET_DATA": str(folder / "triplets"),
        "IMAGENET_TRAIN": str(folder / "images.npz"),
    }
    world = student_toy.WORLD
    data = world.images("train", 8)
    np.savez(folder / "images.npz", **data)
    write_filenames(folder / "triplets", data["names"])
    drawn = Sampler(data["labels"], "class_border", seed=0)
    for split, sampling, block, count in (
        ("train", "cluster_border_500", 0, 600),
        ("val", "class_border", 1, 100),
        ("val", "within_class", 2, 100),
        ("val", "between_class", 3, 100),
    ):
        student_toy.write(
            folder, "uncertainty_distillation", split, sampling, data, drawn.block(block, count)
        )


def shrink(config: Pipeline | Experiment[Student]) -> Pipeline | Experiment[Student]:
    """Return narrow models of one block on small images."""
    return _student(config) if isinstance(config, Experiment) else _pipeline(config)


def _model(model: ViTConfig) -> ViTConfig:
    return dataclasses.replace(model, image_size=16, patch=8, width=16, mlp=16, layers=1, heads=2)


def _student(config: Experiment[Student]) -> Experiment[Student]:
    task = dataclasses.replace(config.task, model=_model(config.task.model), head=8)
    if task.start_from is not None:  # by its name on the hub
        folder = pathlib.Path("start")
        if not folder.exists():
            start = init(task.model, jax.random.key(1))
            save_pretrained(folder, task.model, start, preprocessing=task.preprocessing)
        task = dataclasses.replace(task, start_from=str(folder))
    return in_calls(dataclasses.replace(config, task=task))


def _pipeline(config: Pipeline) -> Pipeline:
    """Two kinds of thing in three coats each, and all stages with little to do."""
    world = World(superordinates=2, subordinates=3)
    classes = world.classes

    def network(run: Experiment) -> Experiment:
        model = dataclasses.replace(_model(run.task.model), image_size=world.size)
        return in_calls(
            dataclasses.replace(
                run, task=dataclasses.replace(run.task, model=model, classes=classes)
            )
        )

    start = network(config.start)
    student = dataclasses.replace(config.student.task, model=start.task.model, head=8)
    return dataclasses.replace(
        config,
        world=dataclasses.replace(
            config.world, world=world, train=20, judgments=3000, level_triplets=100
        ),
        teacher_network=network(config.teacher_network),
        start=start,
        vice=dataclasses.replace(config.vice, steps=20, eval_every=20, dimensions=4, figures=False),
        teacher=dataclasses.replace(
            config.teacher,
            lambdas=(1e-2,),
            fit=dataclasses.replace(config.teacher.fit, steps=10),
        ),
        triplets=dataclasses.replace(config.triplets, train=4096, val=256),
        student=in_calls(dataclasses.replace(config.student, task=student)),
        evaluate=dataclasses.replace(
            config.evaluate,
            figures=False,
            **{
                name: dataclasses.replace(files, train=None)  # no probes
                for name, files in config.evaluate.models.items()
            },
        ),
    )
