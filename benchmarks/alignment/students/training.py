"""The trainings: of the start, of the students and of their controls."""

import dataclasses

from alignment.classifier import Classifier
from alignment.files import read_arrays
from alignment.losses import LossConfig
from alignment.student import Student, TripletAccuracy
from alignment.triplets.batches import TripletImages
from alignment.triplets.shared_images import Pool
from benchmarks.alignment.students.data import Arguments, image_file
from common import CheckpointConfig, Experiment, LogConfig, OptimConfig
from common.mesh import MeshConfig, make_mesh


def start_experiment(arguments: Arguments) -> Experiment[Classifier]:
    """Return the training of the start."""
    batch = 128
    path = image_file(arguments, "tiny_imagenet_train")
    rows = len(read_arrays(path, required=("labels",))["labels"])
    steps = max(2, round(arguments.start_epochs * rows / batch))
    return Experiment(
        task=Classifier(
            model=arguments.model,
            images=str(path),
            classes=200,
            test_images=str(image_file(arguments, "tiny_imagenet_test")),
            label_smoothing=0.1,
            shift=arguments.size // 8,
            eval_every=500,
        ),
        steps=steps,
        batch_size=batch,
        workdir=str(arguments.workdir / "start"),
        optim=OptimConfig(
            learning_rate=1e-3, warmup_steps=min(200, steps // 10), weight_decay=0.05, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=50, tensorboard=False),
    )


def student_experiment(
    arguments: Arguments, pool: Pool, seed: int, tau: float, *, aligned: bool
) -> Experiment[Student]:
    """Return the training of a student or a control."""
    steps, warmup = arguments.student_steps, arguments.student_steps // 20
    rates = arguments.student_rate * (steps / 2)  # sum of warm-up and cosine
    name = f"{'alignet' if aligned else 'control'}_{seed}"
    return Experiment(
        task=Student(
            model=arguments.model,
            start_from=str(arguments.workdir / "start" / "export"),
            head_seed=seed,
            data_set=TripletImages(
                root=str(arguments.workdir / "triplets"),
                images=str(image_file(arguments, "tiny_imagenet_train")),
                labels="uncertainty_distillation" if aligned else "untransformed",
                sampling=f"cluster_border_{arguments.clusters}",
                group_triplets=pool.triplets,
                group_images=pool.images,
            ),
            loss_config=LossConfig(tau=tau),
            eval_samplings=(f"cluster_border_{arguments.clusters}",),
            eval_every=100,
            eval_batches=4,
        ),
        steps=steps,
        batch_size=pool.triplets,
        seed=seed,
        workdir=str(arguments.workdir / name),
        optim=OptimConfig(
            learning_rate=arguments.student_rate,
            warmup_steps=warmup,
            weight_decay=arguments.pull / rates,
            decay_to_init=True,
        ),
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=50, tensorboard=False),
    )


def start_losses(arguments: Arguments, pool: Pool) -> dict[float, float]:
    """Return the start's loss on validation triplets, with a new head, at each temperature.

    The temperature sets how sure a student is before it has learned anything. At 100 this start
    is far too sure, and spends its first steps on unlearning what it knows.
    """
    mesh, losses = make_mesh(MeshConfig()), {}
    for tau in arguments.taus:
        task = student_experiment(arguments, pool, 0, tau, aligned=True).task
        evaluator = TripletAccuracy(task=dataclasses.replace(task, eval_batches=4))
        (losses[tau],) = (
            value for key, value in evaluator(task.pretrained(), mesh).items() if "loss" in key
        )
    return losses
