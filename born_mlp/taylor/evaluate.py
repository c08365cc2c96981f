"""The public functions for derivatives: chunks that fit the cache, checks, and dense output."""

import functools
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from born_mlp import packing
from born_mlp.mlp import MLP, Params
from born_mlp.taylor import engine, plan

AnyArray = Array | np.ndarray

CACHE_BYTES = 2**22
"""Working set of a chunk on a CPU, of the size of its caches; whole batches are up to 4x slower."""

ACCELERATOR_BYTES = 2**30
"""Working set of a chunk elsewhere, where large batches are the fast ones."""


def derivatives(
    mlp: MLP, params: Params, x: Float[AnyArray, "*batch d"], order: int, *, packed: bool = True
) -> tuple[Array, ...]:
    """Return all partial derivatives of the orders 0..order at the points `x`.

    Exact (no truncation), by the centroid formula of `born_mlp.taylor.plan`; differentiable in
    `params` and `x`. Large batches are computed in chunks that fit the cache.

    Args:
        mlp: the architecture.
        params: its weights.
        x: points, `(..., d)`.
        order: highest order m.
        packed: return the distinct entries, at `multi_indices(d, m)`; otherwise dense tensors.

    Returns:
        The value and the derivatives of order 1..m: `(..., [o,] C(d+m-1, m))` if packed,
        `(..., [o,] d, ..., d)` if not. A scalar output has no axis o, and the value, order 0, has
        the shape of `mlp.apply(params, x)`.

    Raises:
        ValueError: shapes that do not fit, an activation that is not smooth at order >= 2, or
            a result that would not fit in memory.
    """
    return _derivatives(mlp, params, x, tuple(range(order + 1)), packed)


def derivative(
    mlp: MLP, params: Params, x: Float[AnyArray, "*batch d"], order: int, *, packed: bool = True
) -> Array:
    """Return the partial derivatives of one order; see `derivatives`."""
    return _derivatives(mlp, params, x, (order,), packed)[0]


def selected(
    mlp: MLP,
    params: Params,
    x: Float[AnyArray, "*batch d"],
    indices: Sequence[Sequence[int]],
) -> Array:
    """Return single partial derivatives without forming a tensor.

    Args:
        mlp: the architecture.
        params: its weights.
        x: points, `(..., d)`.
        indices: the variables by which each wanted derivative is taken, in any order and with
            repetitions: `(0, 3, 3)` is `d^3 f / dx_0 dx_3^2`. Lengths may differ.

    Returns:
        `(..., [o,] len(indices))`.
    """
    _check(mlp, params, x)
    for entry in indices:
        if any(not 0 <= j < mlp.in_features for j in entry):
            raise ValueError(
                f"multi-index {tuple(entry)} names a variable outside 0..{mlp.in_features - 1}"
            )
    columns: dict[int, Array] = {}
    for order in sorted({len(entry) for entry in indices}):
        where = [n for n, entry in enumerate(indices) if len(entry) == order]
        values = _selected(mlp, params, x, np.array([indices[n] for n in where], int))
        columns |= {n: values[..., i] for i, n in enumerate(where)}
    return jnp.stack([columns[n] for n in range(len(indices))], -1)


def _selected(mlp: MLP, params: Params, x: AnyArray, entries: np.ndarray) -> Array:
    """The same for multi-indices of one order, `(n, order)`."""
    order = entries.shape[1]
    if order == 0:
        return jnp.repeat(mlp.apply(params, jnp.asarray(x))[..., None], len(entries), -1)
    variables = np.unique(entries)
    if packing.size(len(variables), order) <= len(entries) * packing.size(order, order):
        # Few variables occur: all derivatives by these, of which the wanted ones are taken.
        tensor = _restricted(mlp, params, x, order, jnp.asarray(variables))
        local = np.sort(np.searchsorted(variables, entries), axis=1)
        return tensor[..., packing.positions(local, len(variables))]
    # Each multi-index is the mixed derivative by its own `order` slots.
    slots = jax.vmap(lambda entry: _restricted(mlp, params, x, order, entry), out_axes=-2)
    mixed = packing.positions(np.arange(order), order)
    return slots(jnp.asarray(entries))[..., mixed]


def _restricted(mlp: MLP, params: Params, x: AnyArray, order: int, variables: Array) -> Array:
    """All derivatives of one order by some of the variables only."""
    return _run(mlp, params, x, params[0]["kernel"][variables], (order,))[0]


def _derivatives(
    mlp: MLP, params: Params, x: AnyArray, orders: tuple[int, ...], packed: bool
) -> tuple[Array, ...]:
    _check(mlp, params, x)
    if min(orders, default=-1) < 0:
        raise ValueError("the order of a derivative must be at least 0")
    d = mlp.in_features
    outputs = math.prod(x.shape[:-1]) * (mlp.out_features or 1)
    for order in orders:
        for phi in mlp.layer_activations:
            if phi is not None:
                phi.require_smooth(order)
        entries = packing.size(d, order) if packed else d**order
        _require_memory(outputs * entries * x.dtype.itemsize, d, order, outputs)
    results = _run(mlp, params, x, params[0]["kernel"], orders)
    return tuple(
        t[..., 0] if m == 0 else t if packed or m == 1 else packing.unpack(t, d, m)
        for m, t in zip(orders, results, strict=True)
    )


def _check(mlp: MLP, params: Params, x: AnyArray) -> None:
    if x.shape[-1:] != (mlp.in_features,):
        raise ValueError(
            f"x must end in the {mlp.in_features} inputs of the network, got shape {x.shape}"
        )
    shapes = [layer["kernel"].shape for layer in params]
    expected = list(zip(mlp.widths[:-1], mlp.widths[1:], strict=True))
    if shapes != expected:
        raise ValueError(f"the kernels have shapes {shapes}, but the network has {expected}")


def _require_memory(needed: int, d: int, order: int, outputs: int) -> None:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > limit:
        raise ValueError(
            f"the derivatives of order {order} by {d} inputs of {outputs} values would take "
            f"{needed / 2**30:,.1f} GiB, and {device.device_kind} has {limit / 2**30:,.1f}: ask "
            "for the packed form, fewer points, `selected` entries or `directional` derivatives"
        )


def _run(
    mlp: MLP, params: Params, x: AnyArray, slope: Array, orders: tuple[int, ...]
) -> list[Array]:
    """Derivatives along the rows of `slope`, `(rows, H_1)`, each `(..., [o,] C_m)`."""
    depth = len(engine.nonlinear(mlp.layer_activations))
    return compiled(mlp, orders, params, x, slope, engine.gather_tables(len(slope), orders, depth))


@functools.partial(jax.jit, static_argnums=(0, 1))
def compiled(
    mlp: MLP,
    orders: tuple[int, ...],
    params: Params,
    x: Float[Array, "*batch d"],
    slope: Array,
    tables: engine.Tables,
) -> list[Array]:
    """`_run`, compiled: `mlp` and `orders` are static."""
    outputs = () if mlp.out_features is None else (mlp.out_features,)

    def chunk(points: Array) -> list[Array]:
        z = engine.matmul(points, params[0]["kernel"]) + params[0]["bias"]
        results = engine.evaluate(z, slope, params[1:], mlp.layer_activations, orders, tables)
        return [t.reshape(len(points), *outputs, t.shape[-1]) for t in results]

    points = x.reshape(-1, x.shape[-1])
    n = len(points)
    size = chunk_size(mlp, len(slope), orders, n, x.dtype.itemsize)
    full = n // size * size
    if size == n:
        results = chunk(points)
    else:
        # Recomputing a chunk in the backward pass keeps its intermediates in the cache, too.
        each = jax.checkpoint(chunk, prevent_cse=False)
        results = jax.lax.map(each, points[:full].reshape(-1, size, x.shape[-1]))
        results = [t.reshape(full, *t.shape[2:]) for t in results]
        if full < n:
            rest = chunk(points[full:])
            results = [jnp.concatenate(pair) for pair in zip(results, rest, strict=True)]
    return [t.reshape(*x.shape[:-1], *t.shape[1:]) for t in results]


def chunk_size(mlp: MLP, d: int, orders: Sequence[int], points: int, itemsize: int) -> int:
    """Return how many points to compute at once, preferring a divisor of `points`."""
    target = CACHE_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_BYTES
    fitting = max(1, target // (plan.working_set(mlp.widths, d, max(orders)) * itemsize))
    if fitting >= points:
        return max(points, 1)
    divisors = [n for n in range(max(1, fitting // 2), fitting + 1) if points % n == 0]
    return max(divisors, default=fitting)
