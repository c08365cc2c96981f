"""Draw triplets of images and label them with a teacher's similarities.

    python -m alignment.triplets features.npz --clusters clusters.npz --transform transform.npz \
        --out alignet
    python -m alignment.triplets features.npz --clusters clusters.npz --untransformed --out alignet

The second command makes the control: the same triplets, labelled by the teacher without what it
learned from people. See `alignment.triplets.files` for the layout.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tyro
from jaxtyping import Float, Int

from alignment.features import Features
from alignment.files import read_arrays
from alignment.judgments import PAIRS, check_names
from alignment.transformed import read_transformed
from alignment.triplets.files import Labels, Split, streamed, triplet_path, write_filenames
from alignment.triplets.sampling import Sampler, SamplingConfig, of_clusters
from alignment.triplets.shared_images import Pool, PooledSampler
from common import cli
from common.progress import Progress
from common.report import provenance

BLOCK = 65_536
"""Triplets that are drawn at once, of one seed."""
TILE = 256
"""Triplets whose features are looked up at once: few enough for a processor's cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(SamplingConfig):
    """Draw triplets of images and label them with a teacher's similarities."""

    features: tyro.conf.Positional[pathlib.Path]
    """Features of the images by the teacher."""
    out: pathlib.Path
    """Folder of the data set."""
    clusters: pathlib.Path | None = None
    """Clusters of the images, for cluster_border and within_cluster. The other samplings take the
    classes that are in the features file."""
    transform: pathlib.Path | None = None
    """The teacher's transform."""
    untransformed: bool = False
    """Label with the similarities of the features as they are: the control."""
    train: int = 10_000_000
    """Triplets to train on."""
    val: int = 10_000
    """Triplets to validate on; 0 makes none. They are of the same images."""
    pool: Pool | None = None
    """Draw triplets in groups that share images, so that a training step embeds fewer images."""

    def __post_init__(self) -> None:
        if (self.transform is None) != self.untransformed:
            raise ValueError("give either --transform FILE or --untransformed")
        if of_clusters(self.sampling) and self.clusters is None:
            raise ValueError(f"{self.sampling} needs --clusters FILE")
        if self.train < 1 or self.val < 0:
            raise ValueError(f"cannot make {self.train} train and {self.val} val triplets")


def sort_odd_last(
    triplets: Int[np.ndarray, "n 3"], similarities: Float[np.ndarray, "n 3"]
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Order images so that `s01 >= s02 >= s12`: the last is the odd one out, the first nearest it.

    Args:
      triplets: three images each, in any order.
      similarities: of their pairs (0, 1), (0, 2), (1, 2).
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    # Pair k leaves image 2 - k out: the most similar pair the last image, the least similar the
    # first.
    last, first = 2 - order[:, 0], 2 - order[:, 2]
    places = np.stack([first, 3 - first - last, last], 1)
    return (
        np.take_along_axis(triplets, places, 1),
        np.take_along_axis(similarities, order, 1),
    )


def label(
    features: Float[np.ndarray, "images p"], triplets: Int[np.ndarray, "n 3"]
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Return the triplets, ordered so that the last is odd, and the similarities of their pairs.

    On the host, where the time is that of reading three rows a triplet, and features of any number
    of images have room.
    """
    similarities = np.empty((len(triplets), 3), np.float32)
    rows = np.empty((3, TILE, features.shape[1]), np.float32)
    for start in range(0, len(triplets), TILE):
        tile = triplets[start : start + TILE]
        for column in range(3):
            np.take(features, tile[:, column], axis=0, out=rows[column, : len(tile)], mode="clip")
        for pair, (a, b) in enumerate(PAIRS):
            products = similarities[start : start + TILE, pair]
            np.einsum("np,np->n", rows[a, : len(tile)], rows[b, : len(tile)], out=products)
    return sort_odd_last(triplets, similarities)


def labelled_blocks(
    features: Float[np.ndarray, "images p"],
    sampler: Sampler | PooledSampler,
    count: int,
    *,
    size: int = BLOCK,
    workers: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw and label `count` triplets, block by block: int32 and float32 (at most size, 3).

    Blocks are made by `workers` threads, one for each processor by default; their number changes
    nothing but the time.
    """
    workers = workers or os.cpu_count() or 1
    blocks = iter(range(-(-count // size)))

    def make(block: int) -> tuple[np.ndarray, np.ndarray]:
        indices, similarities = label(features, sampler.block(block, size))
        left = count - block * size
        return indices[:left], similarities[:left]

    with ThreadPoolExecutor(workers) as pool:
        ahead = collections.deque(pool.submit(make, b) for b in itertools.islice(blocks, workers))
        while ahead:
            made = ahead.popleft().result()
            ahead.extend(pool.submit(make, b) for b in itertools.islice(blocks, 1))
            yield made


def read_groups(arguments: Arguments, found: Features) -> tuple[np.ndarray, str]:
    """Return the group of each image, and the name of the sampling with the number of clusters."""
    if not of_clusters(arguments.sampling):
        if found.labels is None:
            raise ValueError(
                f"{arguments.features} has no `labels`; {arguments.sampling} needs the classes"
            )
        return found.labels, arguments.sampling
    assert arguments.clusters is not None
    arrays = read_arrays(arguments.clusters, required=("cluster", "names", "centres"))
    check_names(arrays["names"], found.names, source=str(arguments.clusters))
    return arrays["cluster"], f"{arguments.sampling}_{len(arrays['centres'])}"


def run(arguments: Arguments) -> Mapping[Split, pathlib.Path]:
    """Make the files, and return their paths."""
    found = read_transformed(arguments.features, arguments.transform)
    groups, name = read_groups(arguments, found)
    labels: Labels = "untransformed" if arguments.untransformed else "uncertainty_distillation"
    names_file = write_filenames(arguments.out, found.names)
    written: dict[Split, pathlib.Path] = {}
    counts: dict[Split, int] = {"train": arguments.train, "val": arguments.val}
    for number, (split, count) in enumerate(counts.items()):
        if not count:
            continue
        seed = arguments.seed * len(counts) + number
        path = triplet_path(arguments.out, labels, split, name)
        if arguments.pool is None:
            sampler = Sampler(groups, arguments.sampling, seed=seed, weighting=arguments.weighting)
            numbers = write_split(path, found.features, sampler, count)
        else:
            config = dataclasses.replace(arguments, seed=seed)
            pooled = PooledSampler(groups, config, arguments.pool)
            size = max(1, BLOCK // arguments.pool.triplets) * arguments.pool.triplets
            numbers = write_split(path, found.features, pooled, count, size=size)
        settings = {key: str(value) for key, value in dataclasses.asdict(arguments).items()}
        content = {"settings": settings, "numbers": numbers, "provenance": provenance()}
        path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        print(f"{path}: " + ", ".join(f"{what} {value}" for what, value in numbers.items()))
        written[split] = path
    print("written: " + ", ".join(map(str, [names_file, *written.values()])))
    return written


def write_split(
    path: pathlib.Path,
    features: Float[np.ndarray, "images p"],
    sampler: Sampler | PooledSampler,
    count: int,
    *,
    size: int = BLOCK,
) -> dict[str, float]:
    """Draw, label and write `count` triplets, block by block; return numbers about them."""
    began, nats = time.monotonic(), 0.0
    with (
        streamed(path, count) as arrays,
        Progress(count, description=path.stem, unit="triplet") as progress,
    ):
        done = 0
        for indices, similarities in labelled_blocks(features, sampler, count, size=size):
            rows = slice(done, done + len(indices))
            arrays["indices"][rows], arrays["similarities"][rows] = indices, similarities
            done, nats = rows.stop, nats + entropies(similarities)
            progress.update(done, {})
    return {
        "triplets": count,
        "mean entropy of the labels, nats": nats / count,
        "groups left out, too small": sampler.skipped_groups,
        "seconds": round(time.monotonic() - began, 2),
    }


def entropies(similarities: Float[np.ndarray, "n 3"]) -> float:
    """Return the summed entropies of labels, nats."""
    log_p = similarities - np.logaddexp.reduce(similarities, 1, keepdims=True)
    return float(-(np.exp(log_p) * log_p).sum(dtype=np.float64))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
