"""A small data set of labelled triplets on drawn images, and a student to train on it."""

import pathlib

import numpy as np

from alignment.files import write_arrays
from alignment.student import Student
from alignment.triplets.batches import TripletImages
from alignment.triplets.files import triplet_path, write_filenames
from alignment.triplets.sampling import Sampler, SamplingConfig
from alignment.triplets.shared_images import Pool, PooledSampler
from alignment.vit.config import preset
from alignment.world.world import World
from common import CheckpointConfig, Experiment, LogConfig, OptimConfig

WORLD = World(size=16, superordinates=2, subordinates=2)
MODEL = preset("vit-tiny", image_size=16, patch=4, width=32, mlp=32, heads=2, layers=1)
POOL = Pool(triplets=16, groups=2, images_each=3)


def similarities(world, labels, triplets):
    """The more levels two images share the more similar they are, with a little jitter."""
    pairs = [(0, 1), (0, 2), (1, 2)]
    own = [world.level_of(labels, l)[triplets] for l in ("superordinate", "basic", "subordinate")]
    shared = np.stack([sum(c[:, a] == c[:, b] for c in own) for a, b in pairs], -1)
    jitter = 0.1 * np.random.default_rng(0).normal(size=shared.shape)
    return (shared + jitter).astype(np.float32)


def sort_odd_last(triplets, s):
    order = np.argsort(-s, 1)
    odd, first = 2 - order[:, 0], 2 - order[:, 2]
    places = np.stack([first, 3 - first - odd, odd], 1)
    return np.take_along_axis(triplets, places, 1), np.take_along_axis(s, order, 1)


def write_data(folder, *, pool=None, train=256) -> TripletImages:
    """Write images and triplets; a control whose labels are noise; return where they are."""
    folder = pathlib.Path(folder)
    data = WORLD.images("train", 8)
    np.savez(folder / "images.npz", **data)
    write_filenames(folder / "triplets", data["names"])
    coarse = data["coarse"]
    for sampling in ("class_border", "between_class"):
        sampler = Sampler(data["labels"], sampling, seed=1)
        write(folder, "uncertainty_distillation", "val", sampling, data, sampler.block(0, 64))
    config = SamplingConfig(sampling="class_border")
    sampler = (
        PooledSampler(coarse, config, pool) if pool else Sampler(coarse, "class_border", seed=0)
    )
    drawn = sampler.block(0, train)
    for labels in ("uncertainty_distillation", "untransformed"):
        write(folder, labels, "train", "coarse", data, drawn)
    grouping = {"group_triplets": pool.triplets, "group_images": pool.images} if pool else {}
    return TripletImages(
        root=str(folder / "triplets"),
        images=str(folder / "images.npz"),
        sampling="coarse",
        **grouping,
    )


def write(folder, labels, split, sampling, data, triplets):
    s = similarities(WORLD, data["labels"], triplets)
    if labels == "untransformed":
        s = np.random.default_rng(1).normal(size=s.shape).astype(np.float32)
    triplets, s = sort_odd_last(triplets, s)
    path = triplet_path(folder / "triplets", labels, split, sampling)
    write_arrays(path, {"indices": triplets.astype(np.int32), "similarities": s})


def student(data_set, **changes) -> Student:
    settings = {
        "model": MODEL,
        "head": 24,
        "eval_samplings": ("class_border", "between_class"),
        "eval_every": 4,
        "eval_batch": 32,
        "data_set": data_set,
    }
    return Student(**settings | changes)


def experiment(task, **changes) -> Experiment[Student]:
    settings = {
        "steps": 8,
        "batch_size": 32,
        "optim": OptimConfig(
            learning_rate=3e-3, schedule="constant", weight_decay=1.0, decay_to_init=True
        ),
        "checkpoint": CheckpointConfig(every=4),
        "log": LogConfig(every=1, tensorboard=False, progress=False),
    }
    return Experiment(task=task, **settings | changes)
