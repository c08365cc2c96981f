"""Assigns rows to their nearest centres, time and again, with few distances computed.

For every row and every group of centres a lower bound of the distance is kept, which the triangle
inequality carries from iteration to iteration (Yinyang k-means, Ding et al., ICML 2015). Rows that
a group may still win are gathered into full chunks; after a few iterations they are some percent.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float, Int

from common.mesh import BATCH_AXES

BY_ROW, WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec()
"""How rows and centres are laid out over the mesh."""
GROUP = 32
"""Centres of a group: small groups need more bounds, large ones have worse."""
DENSE = 0.4
"""Where more than this part of the bounds rules nothing out, all distances are computed at once."""


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
