"""The whole pipeline on the synthetic world, in minutes on two cores: `alignment.pipeline`."""

import pathlib

from alignment import embed, evaluate
from alignment.classifier import Classifier
from alignment.cluster import __main__ as cluster
from alignment.evaluation.inputs import HumanFiles, ModelFiles, PictureFiles
from alignment.stages import Pipeline
from alignment.student import JudgedImages, Student
from alignment.teacher import __main__ as teacher
from alignment.teacher.fit import FitConfig
from alignment.triplets import __main__ as triplets
from alignment.triplets.batches import TripletImages
from alignment.triplets.shared_images import Pool
from alignment.vice import __main__ as vice
from alignment.vit.config import ViTConfig, preset
from alignment.world import __main__ as world
from common import CheckpointConfig, Experiment, LogConfig, OptimConfig

FOLDER = pathlib.Path("{workdir}")
WORLD, FEATURES = FOLDER / "world", FOLDER / "features"
CLUSTERS = 12
POOL = Pool(triplets=16, groups=4, images_each=3)
TRIPLETS = 8 * POOL.triplets


def config() -> Pipeline:
    """Return the pipeline."""
    judged = JudgedImages(images=f"{WORLD}/objects.npz", triplets=f"{WORLD}/triplets.npz")
    clusters, transform = FOLDER / "clusters.npz", FOLDER / "teacher.npz"
    start = preset("vit-tiny", width=64, mlp=128, layers=3, heads=4)
    return Pipeline(
        world=world.Arguments(out=WORLD),
        teacher_network=_classifier(
            "teacher_network", preset("vit-tiny", width=96, mlp=192, layers=4)
        ),
        start=_classifier("start", start),
        embed=embed.Arguments(images="", model="", output=pathlib.Path(), batch_size=120),
        vice=vice.Arguments(
            triplets=WORLD / "triplets.npz",
            names=WORLD / "objects.txt",
            out=FOLDER / "vice",
            seeds=2,
            dimensions=30,
            steps=600,
            batch_size=8192,
        ),
        teacher=teacher.Arguments(
            features=FEATURES / "teacher_objects.npz",
            triplets=WORLD / "triplets.npz",
            names=WORLD / "objects.txt",
            embeddings=(FOLDER / "vice" / "embedding.npz",),
            out=transform,
            lambdas=(1e-3, 1e-2, 1e-1),
            fit=FitConfig(steps=500),
        ),
        cluster=cluster.Arguments(
            features=FEATURES / "teacher_train.npz",
            transform=transform,
            out=clusters,
            clusters=CLUSTERS,
        ),
        triplets=triplets.Arguments(
            features=FEATURES / "teacher_train.npz",
            clusters=clusters,
            transform=transform,
            out=FOLDER / "triplets",
            train=65_536,
            val=2048,
            pool=POOL,
        ),
        student=Experiment(
            task=Student(
                model=start,
                start_from=f"{FOLDER}/start/export",
                head=256,
                data_set=TripletImages(
                    root=f"{FOLDER}/triplets",
                    images=f"{WORLD}/train.npz",
                    sampling=f"cluster_border_{CLUSTERS}",
                    group_triplets=POOL.triplets,
                    group_images=POOL.images,
                ),
                eval_samplings=(f"cluster_border_{CLUSTERS}",),
                eval_every=250,
                eval_batch=128,
                judged=judged,
            ),
            steps=500,
            batch_size=TRIPLETS,
            workdir=f"{FOLDER}/student",
            optim=OptimConfig(
                learning_rate=2e-3,
                warmup_steps=50,
                weight_decay=1.0,
                decay_to_init=True,
                clip_norm=1.0,
            ),
            checkpoint=CheckpointConfig(every=250),
            log=LogConfig(every=50, tensorboard=False),
        ),
        evaluate=evaluate.Arguments(
            out=FOLDER / "evaluation",
            before=_files("before"),
            after=_files("after"),
            control=_files("control"),
            teacher=_files("teacher", transform),
            human=HumanFiles(
                triplets=WORLD / "triplets.npz",
                levels=WORLD / "levels.csv",
                hierarchy=WORLD / "hierarchy.txt",
            ),
            pictures=PictureFiles(things=f"{WORLD}/objects.npz", test=f"{WORLD}/test.npz"),
            superordinate_depth=1,
            basic_depth=2,
            shots=(1,),
            repetitions=3,
        ),
    )


def _classifier(name: str, model: ViTConfig) -> Experiment[Classifier]:
    return Experiment(
        task=Classifier(
            model=model,
            images=f"{WORLD}/train.npz",
            classes=48,
            test_images=f"{WORLD}/test.npz",
            shift=2,
            eval_every=200,
        ),
        steps=400,
        batch_size=96,
        workdir=f"{FOLDER}/{name}",
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.05, clip_norm=1.0),
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=50, tensorboard=False),
    )


def _files(name: str, transform: pathlib.Path | None = None) -> ModelFiles:
    objects, train, test = (FEATURES / f"{name}_{s}.npz" for s in ("objects", "train", "test"))
    return ModelFiles(things=objects, levels=test, train=train, test=test, transform=transform)
