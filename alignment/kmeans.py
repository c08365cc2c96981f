"""k-means on one accelerator or many: Lloyd's algorithm by matrix products over chunks of rows.

The iterations are Lloyd's, but most distances are never computed: for every row and every group of
centres a lower bound of the distance is kept, which the triangle inequality carries from iteration
to iteration (Yinyang k-means, Ding et al., ICML 2015). Rows that a group may still win are gathered
into full chunks; after a few iterations they are some percent. Beside the features only a few
numbers a row and one chunk are held: 1.28 million rows of 1,152 features fit on a device of 16 GB,
and over a mesh every device holds its part of the rows alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from common.mesh import BATCH_AXES, MeshConfig, await_simulated, make_mesh
from common.progress import Progress
from common.rng import stream

BY_ROW, WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec()
"""How rows and centres are laid out over the mesh."""
GROUP = 32
"""Centres of a group: small groups need more bounds, large ones have worse."""
DENSE = 0.4
"""Where more than this part of the bounds rules nothing out, all distances are computed at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeansConfig:
    """Settings of k-means."""

    clusters: int = 500
    """Number of clusters, k."""
    restarts: int = 3
    """Starts from new seeds; the one of lowest inertia is kept."""
    seeding_rows: int = 100_000
    """Rows, drawn at random, among which k-means++ finds the first centres."""
    tolerance: float = 1e-4
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

    Each next centre is the best of 2 + log k rows drawn with probability proportional to the
    squared distance to the nearest centre so far.
    """
    draw, grow = jax.random.split(key)
    rows = np.arange(len(features))
    if len(features) > config.seeding_rows:
        generator = np.random.default_rng(jax.random.key_data(draw).tolist())
        rows = np.sort(generator.choice(len(features), config.seeding_rows, replace=False))
    return _plus_plus(np.asarray(features[rows], np.float32), config.clusters, grow)


@functools.partial(jax.jit, static_argnames="k")
def _plus_plus(x: Float[Array, "m p"], k: int, key: Array) -> Float[Array, "k p"]:
    trials = 2 + int(math.log(k))
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


class Rows(NamedTuple):
    """What is known of each row."""

    cluster: Int[Array, "n"]
    """The nearest centre."""
    distance: Float[Array, "n"]
    """The distance to it."""
    others: Float[Array, "n groups"]
    """Lower bounds of the distances to the centres of each group, but for the nearest one."""

    @classmethod
    def unknown(cls, n: int, k: int) -> "Rows":
        """Return what is known before the first iteration: nothing."""
        return cls(
            jnp.full(n, -1, jnp.int32),
            jnp.full(n, jnp.inf, jnp.float32),
            jnp.zeros((n, -(-k // GROUP)), jnp.float32),
        )


class Sums(NamedTuple):
    """What the centres are made of."""

    total: Float[Array, "k p"]
    """Sum of the rows of each cluster."""
    size: Float[Array, "k"]
    """Number of them."""


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


Step = Callable[[Array, Array, Array, Rows, Sums, Array], tuple[Rows, Sums, Array]]


@functools.cache
def assignment_step(mesh: Mesh, chunk: int) -> Step:
    """Compile what assigns every row to its nearest centre.

    Returns:
      A function of the features, which rows are real, the centres, what is known of the rows and
      the sums, and how far each centre moved since. It gives the rows and sums after, and the
      inertia in parts (summed in float64 on the host). Donates the rows and the sums.
    """
    step = jax.shard_map(
        functools.partial(_assign, chunk=chunk),
        mesh=mesh,
        in_specs=(BY_ROW, BY_ROW, WHOLE, BY_ROW, WHOLE, WHOLE),
        out_specs=(BY_ROW, WHOLE, BY_ROW),
        check_vma=False,
    )
    return jax.jit(step, donate_argnums=(3, 4))


def _assign(
    x: Float[Array, "n p"],
    real: Bool[Array, "n"],
    centres: Float[Array, "k p"],
    rows: Rows,
    sums: Sums,
    moved: Float[Array, "k"],
    *,
    chunk: int,
) -> tuple[Rows, Sums, Float[Array, "parts"]]:
    n, groups = rows.others.shape
    chunk = min(chunk, n)
    # Centres in whole groups; those that fill up the last one are infinitely far.
    missing = groups * GROUP - len(centres)
    square = jnp.pad(jnp.sum(jnp.square(centres), 1), (0, missing), constant_values=jnp.inf)
    padded = jnp.pad(centres, ((0, missing), (0, 0)))
    group_moved = jnp.max(jnp.pad(moved, (0, missing)).reshape(groups, GROUP), 1)
    old = rows.cluster
    rows = Rows(old, _own_distances(x, centres, old, chunk), rows.others - group_moved)
    open_pairs = jnp.mean(rows.distance[:, None] > rows.others)
    rows = lax.cond(
        open_pairs > DENSE,
        lambda rows: _visit_all(x, padded, square, rows, chunk),
        lambda rows: _visit_open(x, real, padded, square, rows, chunk),
        rows,
    )

    def exchange(index: Array, change: Sums) -> Sums:
        part = x.at[index].get(mode="fill", fill_value=0)
        for cluster, sign in ((rows.cluster, 1), (old, -1)):
            there = cluster.at[index].get(mode="fill", fill_value=-1)
            there = jnp.where(there < 0, len(centres), there)  # beyond the end: dropped
            change = Sums(
                change.total.at[there].add(sign * part, mode="drop"),
                change.size.at[there].add(sign, mode="drop"),
            )
        return change

    nothing = jax.tree.map(jnp.zeros_like, sums)
    change = _for_each(real & (rows.cluster != old), chunk, exchange, nothing)
    sums = jax.tree.map(lambda a, b: a + lax.psum(b, BATCH_AXES), sums, change)
    inertia = jnp.where(real, jnp.square(rows.distance), 0)
    return rows, sums, jnp.sum(jnp.pad(inertia, (0, -n % chunk)).reshape(-1, chunk), 1)


def _visit_all(x: Array, centres: Array, square: Array, rows: Rows, chunk: int) -> Rows:
    """Compute all distances of all rows."""
    n, groups = rows.others.shape

    def visit(i: Array, rows: Rows) -> Rows:
        at = jnp.minimum(i * chunk, n - chunk)  # the last chunk repeats some rows
        part = lax.dynamic_slice(x, (at, 0), (chunk, x.shape[1]))
        distance = _distances(part, centres, square)
        winner, first = _winner(distance, jnp.arange(len(centres), dtype=jnp.int32))
        others = _without(distance, winner).reshape(chunk, groups, GROUP)
        found = Rows(winner, first, jnp.min(others, 2))
        return jax.tree.map(
            lambda a, b: lax.dynamic_update_slice(a, b, (at, 0)[: a.ndim]), rows, found
        )

    return lax.fori_loop(0, -(-n // chunk), visit, rows)


def _visit_open(
    x: Array, real: Array, centres: Array, square: Array, rows: Rows, chunk: int
) -> Rows:
    """Compute the distances of rows to groups that may have a nearer centre."""

    def visit_group(g: Array, rows: Rows) -> Rows:
        numbers = g * GROUP + jnp.arange(GROUP, dtype=jnp.int32)

        def visit(index: Array, rows: Rows) -> Rows:
            part = x.at[index].get(mode="fill", fill_value=0)
            own, best = rows.cluster[index], rows.distance[index]
            distance = _without(_distances(part, centres[numbers], square[numbers]), own, numbers)
            winner, first = _winner(distance, numbers)
            won = first < best
            second = jnp.min(_without(distance, winner, numbers), 1)
            others = rows.others.at[index, g].set(jnp.where(won, second, first), mode="drop")
            # The centre that lost the row is now one of the others of its group.
            lost = jnp.where(won, best, jnp.inf)
            return Rows(
                rows.cluster.at[index].set(jnp.where(won, winner, own), mode="drop"),
                rows.distance.at[index].set(jnp.where(won, first, best), mode="drop"),
                others.at[index, own // GROUP].min(lost, mode="drop"),
            )

        return _for_each(real & (rows.distance > rows.others[:, g]), chunk, visit, rows)

    return lax.fori_loop(0, rows.others.shape[1], visit_group, rows)


def _distances(
    part: Float[Array, "m p"], centres: Float[Array, "g p"], square: Float[Array, "g"]
) -> Float[Array, "m g"]:
    products = jnp.dot(part, centres.T, precision=lax.Precision.HIGHEST)
    own = jnp.sum(jnp.square(part), 1, keepdims=True)
    return jnp.sqrt(jnp.maximum(own - 2 * products + square, 0))


def _winner(
    distance: Float[Array, "m g"], numbers: Int[Array, "g"]
) -> tuple[Int[Array, "m"], Float[Array, "m"]]:
    """Return the nearest centre, of equals the first, and how far it is."""
    first = jnp.min(distance, 1)
    # Two minima take half the time of an argmin on CPUs.
    return jnp.min(jnp.where(distance == first[:, None], numbers, 2**30), 1), first


def _without(
    distance: Float[Array, "m g"], centre: Int[Array, "m"], numbers: Int[Array, "g"] | None = None
) -> Float[Array, "m g"]:
    """Make one centre of each row infinitely far."""
    numbers = jnp.arange(distance.shape[1]) if numbers is None else numbers
    return jnp.where(numbers == centre[:, None], jnp.inf, distance)


def _for_each(
    active: Bool[Array, "n"], chunk: int, visit: Callable[[Array, Any], Any], carry: Any
) -> Any:
    """Visit the active rows by chunks of their numbers, which are filled up with n."""
    n = len(active)
    order = jnp.flatnonzero(active, size=-(-n // chunk) * chunk, fill_value=n)

    def body(i: Array, carry: Any) -> Any:
        return visit(lax.dynamic_slice(order, (i * chunk,), (chunk,)), carry)

    return lax.fori_loop(0, -(-jnp.sum(active) // chunk), body, carry)


def _own_distances(x: Array, centres: Array, cluster: Array, chunk: int) -> Float[Array, "n"]:
    """Return each row's distance to its centre; infinite where it has none yet."""
    n = len(x)

    def body(i: Array, distance: Array) -> Array:
        at = jnp.minimum(i * chunk, n - chunk)  # the last chunk repeats some rows
        part = lax.dynamic_slice(x, (at, 0), (chunk, x.shape[1]))
        mine = lax.dynamic_slice(cluster, (at,), (chunk,))
        away = jnp.sqrt(jnp.sum(jnp.square(part - centres[mine]), 1))
        return lax.dynamic_update_slice(distance, jnp.where(mine < 0, jnp.inf, away), (at,))

    return lax.fori_loop(0, -(-n // chunk), body, jnp.zeros((n,), x.dtype))
