"""k-means on one accelerator or many: k-means++ on a subsample, then Lloyd's iterations.

Most distances are never computed, see `alignment.cluster.assignment`. Beside the features only a
few numbers a row and one chunk are held: 1.28 million rows of 1,152 features fit on a device of
16 GB, and over a mesh every device holds its part of the rows alone.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int

from alignment.cluster.assignment import BY_ROW, WHOLE, Rows, Sums, assignment_step
from common.mesh import BATCH_AXES, MeshConfig, await_simulated, make_mesh
from common.progress import Progress
from common.rng import stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeansConfig:
    """Settings of k-means."""

    clusters: int = 500
    """Number of clusters, k."""
    restarts: int = 3
    """Starts from new seeds; the one of lowest inertia is kept."""
    seeding_rows: int = 100_000
    """Rows, drawn at random, among which k-means++ finds the first centres."""
    tolerance: float = 1e-6
    """Stop when the inertia falls by less than this part of itself."""
    max_iterations: int = 100
    """Stop after so many iterations."""
    chunk: int = 4096
    """Rows of a device whose distances to all centres are computed at once."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self) -> None:
        for name in ("clusters", "restarts", "seeding_rows", "max_iterations", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.seeding_rows < self.clusters:
            raise ValueError(
                f"seeding_rows {self.seeding_rows} must be at least clusters {self.clusters}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeans:
    """A clustering of n rows."""

    cluster: Int[np.ndarray, "n"]
    """int32: the nearest centre of each row."""
    centres: Float[np.ndarray, "k p"]
    """float32."""
    inertia: float
    """Sum over the rows of the squared distance to the nearest centre."""
    iterations: int
    """Iterations of the start that was kept."""
    inertias: tuple[float, ...]
    """Inertia that each start reached."""


def kmeans(
    features: Float[np.ndarray, "n p"],
    config: KMeansConfig = KMeansConfig(),
    mesh: Mesh | None = None,
    *,
    progress: bool = False,
) -> KMeans:
    """Cluster the rows of `features` by Euclidean distance, without normalising them.

    Args:
      features: finite floats.
      config: the settings.
      mesh: the devices, over whose data and fsdp axes the rows are split; all by default.
      progress: show the iterations.

    Raises:
      ValueError: for fewer rows than clusters.
    """
    n = len(features)
    if n < config.clusters:
        raise ValueError(f"{n} rows cannot make {config.clusters} clusters")
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    x, real = _place(features, mesh)
    best: KMeans | None = None
    inertias = []
    for start in range(config.restarts):
        key = jax.random.fold_in(jax.random.key(config.seed), start)
        centres = seed_centres(features, config, key)
        description = f"k-means, start {start + 1} of {config.restarts}"
        with Progress(
            config.max_iterations, description=description, unit="iteration", enabled=progress
        ) as bar:
            found = _lloyd(x, real, features, centres, config, mesh, bar)
        inertias.append(found.inertia)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return dataclasses.replace(best, cluster=best.cluster[:n], inertias=tuple(inertias))


def _place(features: np.ndarray, mesh: Mesh) -> tuple[Array, Array]:
    """Split the rows over the devices, filled up to equal numbers, and mark the real ones."""
    n, p = features.shape
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    total = -(-n // shards) * shards

    def rows(index: Any) -> np.ndarray:
        part = np.asarray(features[index[0]], np.float32)
        missing = len(range(total)[index[0]]) - len(part)
        return np.pad(part, ((0, missing), (0, 0))) if missing else part

    sharding = NamedSharding(mesh, BY_ROW)
    x = jax.make_array_from_callback((total, p), sharding, rows)
    return x, jax.device_put(np.arange(total) < n, sharding)


def seed_centres(
    features: Float[np.ndarray, "n p"], config: KMeansConfig, key: Array
) -> Float[Array, "k p"]:
    """Return the first centres: greedy k-means++ (Arthur and Vassilvitskii 2007) on a subsample.

    Each next centre is the best of 2 (2 + log k) rows drawn with probability proportional to the
    squared distance to the nearest centre so far. Twice the usual 2 + log k lower the inertia by
    0.1 % and take a seventh more time, as reading `x` is most of it; more lower it no further.
    """
    draw, grow = jax.random.split(key)
    rows = np.arange(len(features))
    if len(features) > config.seeding_rows:
        generator = np.random.default_rng(jax.random.key_data(draw).tolist())
        rows = np.sort(generator.choice(len(features), config.seeding_rows, replace=False))
    return _plus_plus(np.asarray(features[rows], np.float32), config.clusters, grow)


@functools.partial(jax.jit, static_argnames="k")
def _plus_plus(x: Float[Array, "m p"], k: int, key: Array) -> Float[Array, "k p"]:
    trials = 2 * (2 + int(math.log(k)))
    square = jnp.sum(jnp.square(x), 1)
    first = jax.random.randint(stream(key, "first"), (), 0, len(x))

    def distances(rows: Int[Array, "t"]) -> Float[Array, "t m"]:
        products = jnp.dot(x[rows], x.T, precision=lax.Precision.HIGHEST)
        return jnp.maximum(square[rows, None] - 2 * products + square, 0)

    def grow(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, nearest = carry
        mass = jnp.cumsum(nearest)
        draws = jax.random.uniform(jax.random.fold_in(key, i), (trials,)) * mass[-1]
        rows = jnp.clip(jnp.searchsorted(mass, draws, side="right"), 0, len(x) - 1)
        candidates = jnp.minimum(nearest, distances(rows))
        best = jnp.argmin(jnp.sum(candidates, 1))
        return chosen.at[i].set(rows[best]), candidates[best]

    start = jnp.full((k,), first), distances(first[None])[0]
    chosen, _ = lax.fori_loop(1, k, grow, start)
    return x[chosen]


def _lloyd(
    x: Array,
    real: Array,
    features: np.ndarray,
    centres: Array,
    config: KMeansConfig,
    mesh: Mesh,
    bar: Progress,
) -> KMeans:
    """Iterate from the given centres until the inertia stays."""
    assign = assignment_step(mesh, config.chunk)
    n, k = len(x), config.clusters
    rows = jax.device_put(Rows.unknown(n, k), NamedSharding(mesh, BY_ROW))
    sums, moved = Sums(jnp.zeros_like(centres), jnp.zeros(k)), jnp.zeros(k)
    centres, sums, moved = jax.device_put((centres, sums, moved), NamedSharding(mesh, WHOLE))
    inertia = math.inf
    for iteration in range(1, config.max_iterations + 1):
        rows, sums, parts = assign(x, real, centres, rows, sums, moved)
        await_simulated(rows, mesh)
        before, inertia = inertia, float(np.sum(np.asarray(parts), dtype=np.float64))
        bar.update(iteration, {"train/loss": inertia})
        if before - inertia < config.tolerance * inertia or iteration == config.max_iterations:
            break
        centres, moved = _move(centres, sums)
        empty = np.flatnonzero(np.asarray(sums.size) < 0.5)
        if empty.size:  # rare: each takes a row that is far from its centre
            far = np.argsort(np.where(np.asarray(real), np.asarray(rows.distance), -1))
            centres = centres.at[empty].set(features[far[: -empty.size - 1 : -1]])
            moved = moved.at[empty].set(jnp.inf)
    return KMeans(
        cluster=np.asarray(rows.cluster),
        centres=np.asarray(centres),
        inertia=inertia,
        iterations=iteration,
        inertias=(inertia,),
    )


@jax.jit
def _move(centres: Array, sums: Sums) -> tuple[Array, Array]:
    """Return the means of the clusters, and how far each centre moved; an empty one stays."""
    means = sums.total / jnp.maximum(sums.size, 1)[:, None]
    means = jnp.where(sums.size[:, None] < 0.5, centres, means)
    return means, jnp.linalg.norm(means - centres, axis=1)
