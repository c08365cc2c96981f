"""Group images by k-means over a teacher's features.

    python -m alignment.cluster features.npz --transform transform.npz --out clusters.npz

The transform makes the features human-aligned; without it the teacher's own are clustered. Writes
`cluster`, `centres`, `inertia` and `names`, and the settings and numbers beside them as JSON.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tyro
from jaxtyping import Float

from alignment.cluster.kmeans import KMeans, KMeansConfig, kmeans
from alignment.files import write_arrays
from alignment.transformed import read_transformed
from common import cli
from common.mesh import MeshConfig, make_mesh
from common.report import provenance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(KMeansConfig):
    """Group images by k-means over a teacher's features."""

    features: tyro.conf.Positional[pathlib.Path]
    """Features of the images."""
    out: pathlib.Path
    """The clusters, `.npz`."""
    transform: pathlib.Path | None = None
    """Transform of the features; without it they are clustered as they are."""
    mesh: MeshConfig = MeshConfig()
    """Devices over which the images are split."""


def run(arguments: Arguments) -> KMeans:
    """Cluster, write the file, and return the clusters."""
    found = read_transformed(arguments.features, arguments.transform)
    features = found.features
    clusters = kmeans(features, arguments, make_mesh(arguments.mesh), progress=True)
    write_arrays(
        arguments.out,
        {
            "cluster": clusters.cluster,
            "centres": clusters.centres,
            "inertia": np.float64(clusters.inertia),
            "names": found.names,
        },
    )
    sizes = np.bincount(clusters.cluster, minlength=arguments.clusters)
    numbers = {
        "inertia": clusters.inertia,
        "inertia of each start": clusters.inertias,
        "inertia of one cluster": total_scatter(features),
        "iterations": clusters.iterations,
        "smallest cluster": int(sizes.min()),
        "median cluster": float(np.median(sizes)),
        "largest cluster": int(sizes.max()),
    }
    settings = {k: str(v) for k, v in dataclasses.asdict(arguments).items()}
    report = arguments.out.with_suffix(".json")
    content = {"settings": settings, "numbers": numbers, "provenance": provenance()}
    report.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    print("\n".join(f"{name}: {value}" for name, value in numbers.items()))
    print(f"written: {arguments.out}, {report}")
    return clusters


def total_scatter(features: Float[np.ndarray, "n p"]) -> float:
    """Return the sum of squared distances to the mean: the inertia of one cluster."""
    square = np.einsum("np,np->", features, features, dtype=np.float64)
    return float(square - len(features) * np.sum(features.mean(0, dtype=np.float64) ** 2))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
