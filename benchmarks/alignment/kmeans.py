"""k-means beside scikit-learn's, and the device memory that ImageNet would take.

    python -m benchmarks.alignment.kmeans

Data: 100,000 rows of 512 features, drawn from a tree of clusters (20 coarse, 1,000 fine) with a
spectrum that falls as that of networks' features does; or the rows of a features file. Each side
starts from k-means++ of its own; the sides alternate over the seeds. Times and inertias are
medians, speed-up and ratio of inertias those of the paired ratios to scikit-learn, which runs
Lloyd's algorithm once, with its own defaults otherwise. "Same seeds": scikit-learn's Lloyd from the
centres that ours drew, to be compared with ours less its seeding. Compilation is done before the
clock starts.

Writes `kmeans.json` and `kmeans.md` beside this file.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import sklearn
import tyro
from jax import Array
from sklearn.cluster import KMeans as SklearnKMeans

from alignment.cluster.assignment import GROUP, Rows, Sums, assignment_step
from alignment.cluster.kmeans import KMeansConfig, kmeans, seed_centres
from alignment.features import Features
from common.mesh import MeshConfig, make_mesh
from common.report import provenance, table

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
IMAGENET = (1_281_167, 1152, 500)
"""Images of ImageNet's training set, features of the published teacher, clusters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure k-means."""

    features: pathlib.Path | None = None
    """Features file; drawn rows if not given."""
    rows: int = 100_000
    """Rows that are drawn."""
    dimension: int = 512
    """Features of the rows that are drawn."""
    clusters: int = 500
    """Number of clusters."""
    seeds: int = 3
    """Runs of each side."""
    restarts: int = 3
    """Starts of ours, beside one start."""


def draw(rows: int, dimension: int) -> np.ndarray:
    """Draw rows from a tree of clusters; directions weigh as the square root of their rank."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, dimension + 1) ** -0.5
    coarse = rng.normal(size=(20, dimension))
    fine = coarse[rng.integers(20, size=1000)] + rng.normal(size=(1000, dimension))
    x = fine[rng.integers(1000, size=rows)] + 1.5 * rng.normal(size=(rows, dimension))
    return (x * scale).astype(np.float32)


def timed(run: Callable[[], tuple[float, int]]) -> dict[str, float]:
    """Return seconds, inertia and iterations of a run."""
    began = time.perf_counter()
    inertia, iterations = run()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "inertia": inertia, "iterations": iterations}


def run_ours(x: np.ndarray, config: KMeansConfig) -> tuple[float, int]:
    found = kmeans(x, config)
    return found.inertia, found.iterations


def run_sklearn(x: np.ndarray, config: KMeansConfig, start: np.ndarray | None) -> tuple[float, int]:
    model = SklearnKMeans(
        config.clusters,
        init="k-means++" if start is None else start,
        n_init=1,
        random_state=config.seed,
        algorithm="lloyd",
    ).fit(x)
    return float(model.inertia_), int(model.n_iter_)


def memory() -> dict[str, float]:
    """Return GiB that an iteration over ImageNet takes on one device, by XLA's own analysis."""
    n, p, k = IMAGENET
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def spec(*shape: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    rows = Rows(spec(n, dtype=jnp.int32), spec(n), spec(n, -(-k // GROUP)))
    sums = Sums(spec(k, p), spec(k))
    step = assignment_step(mesh, KMeansConfig().chunk)
    lowered = step.lower(spec(n, p), spec(n, dtype=jnp.bool_), spec(k, p), rows, sums, spec(k))
    found = lowered.compile().memory_analysis()
    return {
        "features": n * p * 4 / 2**30,
        "arguments": found.argument_size_in_bytes / 2**30,
        "temporary": found.temp_size_in_bytes / 2**30,
        "output beyond donated": (found.output_size_in_bytes - found.alias_size_in_bytes) / 2**30,
    }


def main(arguments: Arguments) -> None:
    if arguments.features is None:
        x = draw(arguments.rows, arguments.dimension)
    else:
        x = Features.read(arguments.features).features
    kmeans(x, KMeansConfig(clusters=arguments.clusters, restarts=1, max_iterations=5))  # compiles
    many = f"ours, {arguments.restarts} starts"
    runs: dict[str, list[dict[str, float]]] = {}
    seeding = []
    for seed in range(arguments.seeds):
        one = KMeansConfig(clusters=arguments.clusters, restarts=1, seed=seed)
        several = dataclasses.replace(one, restarts=arguments.restarts)
        began = time.perf_counter()
        start = np.asarray(first_centres(x, one))
        seeding.append(time.perf_counter() - began)
        sides: dict[str, Callable[[], tuple[float, int]]] = {
            "ours, 1 start": lambda c=one: run_ours(x, c),
            many: lambda c=several: run_ours(x, c),
            "scikit-learn": lambda c=one: run_sklearn(x, c, None),
            "scikit-learn, same seeds": lambda c=one, s=start: run_sklearn(x, c, s),
        }
        for name in list(sides)[:: 1 if seed % 2 else -1]:
            runs.setdefault(name, []).append(timed(sides[name]))
            print(name, runs[name][-1], flush=True)

    medians = {
        name: {key: statistics.median(r[key] for r in found) for key in found[0]}
        for name, found in sorted(runs.items())
    }
    for name, found in runs.items():
        pairs = list(zip(found, runs["scikit-learn"], strict=True))
        speedup = statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
        inertia = statistics.median(a["inertia"] / b["inertia"] for a, b in pairs)
        medians[name] |= {"speed-up": speedup, "inertia ratio": inertia}
    content = {
        "rows": len(x),
        "dimension": x.shape[1],
        "clusters": arguments.clusters,
        "medians": medians,
        "runs": runs,
        "seconds of our seeding": statistics.median(seeding),
        "GiB on one device, ImageNet x 1152, k = 500": memory(),
        "scikit-learn": sklearn.__version__,
        "provenance": provenance(),
    }
    OUTPUT.write_text(json.dumps(content, indent=2) + "\n")
    OUTPUT.with_suffix(".md").write_text(markdown(content))
    print(markdown(content))


def first_centres(x: np.ndarray, config: KMeansConfig) -> Array:
    """Return the centres that a run of ours starts from."""
    return seed_centres(x, config, jax.random.fold_in(jax.random.key(config.seed), 0))


def markdown(content: dict) -> str:
    """Return the tables."""
    rows = [
        [
            name,
            f"{m['seconds']:.1f}",
            f"{m['speed-up']:.2f}",
            f"{m['inertia']:,.0f}",
            f"{m['inertia ratio']:.5f}",
            f"{m['iterations']:.0f}",
        ]
        for name, m in content["medians"].items()
    ]
    memory_rows = [
        [what, f"{value:.3f}"]
        for what, value in content["GiB on one device, ImageNet x 1152, k = 500"].items()
    ]
    found = content["provenance"]
    return (
        "\n\n".join(
            [
                "# k-means",
                f"{content['rows']:,} x {content['dimension']}, k = {content['clusters']}; "
                f"medians of {len(content['runs']['scikit-learn'])} seeds; scikit-learn "
                f"{content['scikit-learn']}. "
                f"Seeding is {content['seconds of our seeding']:.1f} s of each start of ours.",
                table(["run", "s", "speed-up", "inertia", "ratio", "iterations"], rows),
                "Device memory of an iteration over 1,281,167 x 1,152 with k = 500, GiB, as XLA "
                "plans it on this machine's device:",
                table(["what", "GiB"], memory_rows),
                f"`{found['command']}`, {found['machine']}, {found['date']}, {found['versions']}",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
