"""Drawing and labelling 10 million triplets: time and memory.

    python -m benchmarks.alignment.sampling

Features are random: as many images, features and clusters as are asked for. The clock covers what
`alignment.triplets` does after the features are read and transformed: drawing, labelling, sorting
and writing. The time to transform them, once, is given beside it. The peak of the process's memory
is compared with the bytes of the features.

Writes `sampling.json` and `sampling.md` beside this file.
"""

import dataclasses
import json
import pathlib
import resource
import statistics
import tempfile
import time

import numpy as np
import tyro

from alignment.judgments import Standardisation, Transform
from alignment.transformed import apply_transform
from alignment.triplets.__main__ import write_split
from alignment.triplets.sampling import SAMPLINGS, Sampler
from common.report import provenance, table

OUTPUT = pathlib.Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure drawing and labelling."""

    images: int = 1_281_167
    """Number of images."""
    dimension: int = 512
    """Features of the teacher."""
    clusters: int = 500
    """Number of clusters."""
    triplets: int = 10_000_000
    """Triplets to write."""
    repeats: int = 3
    """Runs of each sampling; the median counts."""


def main(arguments: Arguments) -> None:
    rng = np.random.default_rng(0)
    shape = arguments.images, arguments.dimension
    features = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(arguments.dimension))
    groups = rng.integers(arguments.clusters, size=arguments.images)
    transform = Transform(
        weights=np.eye(arguments.dimension, dtype=np.float32),
        bias=np.zeros(arguments.dimension, np.float32),
        standardisation=Standardisation(mean=0.0, std=1.0),
    )
    began = time.perf_counter()
    features = apply_transform(transform, features)
    transforming = time.perf_counter() - began
    before = _peak()
    seconds: dict[str, list[float]] = {}
    for sampling in SAMPLINGS:
        for repeat in range(arguments.repeats):
            with tempfile.TemporaryDirectory() as folder:
                sampler = Sampler(groups, sampling, seed=repeat)
                began = time.perf_counter()
                write_split(
                    pathlib.Path(folder) / "train.npz", features, sampler, arguments.triplets
                )
                seconds.setdefault(sampling, []).append(time.perf_counter() - began)
            print(sampling, seconds[sampling][-1], flush=True)
    content = {
        **dataclasses.asdict(arguments),
        "seconds": seconds,
        "seconds to transform the features, once": transforming,
        "GiB of features": features.nbytes / 2**30,
        "GiB at the peak, before": before,
        "GiB at the peak, after": _peak(),
        "provenance": provenance(),
    }
    OUTPUT.write_text(json.dumps(content, indent=2) + "\n")
    OUTPUT.with_suffix(".md").write_text(markdown(content))
    print(markdown(content))


def _peak() -> float:
    """Return the most memory the process has held, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def markdown(content: dict) -> str:
    """Return the table."""
    count = content["triplets"]
    rows = []
    for sampling, seconds in content["seconds"].items():
        median = statistics.median(seconds)
        rows.append([sampling, f"{median:.1f}", f"{count / median:,.0f}"])
    found = content["provenance"]
    return (
        "\n\n".join(
            [
                "# Drawing and labelling triplets",
                f"{count:,} triplets of {content['images']:,} images x {content['dimension']} "
                f"features, {content['clusters']} clusters; medians of {content['repeats']}.",
                table(["sampling", "s", "triplets/s"], rows),
                f"- transforming the features, once: "
                f"{content['seconds to transform the features, once']:.1f} s\n"
                f"- features: {content['GiB of features']:.2f} GiB\n"
                f"- peak memory of the process: {content['GiB at the peak, before']:.2f} GiB "
                f"before the first triplet, {content['GiB at the peak, after']:.2f} GiB after "
                "the last",
                f"`{found['command']}`, {found['machine']}, {found['date']}, {found['versions']}",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
