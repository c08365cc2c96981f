"""Packed symmetric tensors: only the entries `j_1 <= j_2 <= ... <= j_m`, in lexicographic order.

A symmetric tensor of order m over d variables has `C(d+m-1, m)` distinct entries out of `d^m`.
The packed entries stand on one last axis, in the order of
`itertools.combinations_with_replacement(range(d), m)`.
"""

import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import Array


def size(d: int, order: int) -> int:
    """Return the number `C(d+m-1, m)` of distinct entries of a symmetric tensor of order m."""
    return math.comb(d + order - 1, order)


@functools.lru_cache(maxsize=64)
def multi_indices(d: int, order: int) -> np.ndarray:
    """Return the rows `j_1 <= ... <= j_m` of the packed entries, int32 of shape `(size, order)`."""
    if order == 0:
        return np.zeros((1, 0), np.int32)
    lower = multi_indices(d, order - 1)
    # The rows that start with j are the lower rows, all of whose entries are at least j.
    start = np.searchsorted(lower[:, 0], np.arange(d)) if order > 1 else np.zeros(d, int)
    rows = np.concatenate(
        [np.insert(lower[s:], 0, j, axis=1) for j, s in enumerate(start)], dtype=np.int32
    )
    rows.setflags(write=False)
    return rows


@functools.lru_cache(maxsize=64)
def multiplicities(d: int, order: int) -> np.ndarray:
    """Return how often each packed entry occurs in the dense tensor, `m! / prod_j alpha_j!`."""
    rows = multi_indices(d, order)
    count = np.full(len(rows), math.factorial(order), np.int64)
    run = np.ones(len(rows), np.int64)
    for slot in range(1, order):
        run = np.where(rows[:, slot] == rows[:, slot - 1], run + 1, 1)
        count //= run
    return count


def positions(rows: np.ndarray, d: int) -> np.ndarray:
    """Return the packed position of each row `j_1 <= ... <= j_m`, of shape `rows.shape[:-1]`."""
    order = rows.shape[-1]
    total = d + order - 1
    # Adding 0, 1, ... makes the rows strictly increasing: combinations, ranked by the
    # combinatorial number system.
    table = np.array([[math.comb(n, k) for k in range(order + 1)] for n in range(total + 1)], int)
    rank = np.full(rows.shape[:-1], size(d, order) - 1, np.int64)
    for slot in range(order):
        rank -= table[total - 1 - (rows[..., slot] + slot), order - slot]
    return rank


def pack(dense: Array, order: int) -> Array:
    """Keep the distinct entries of `(..., d, ..., d)`, symmetric in its last `order` axes."""
    if order == 0:
        return dense[..., None]
    d = dense.shape[-1]
    if dense.shape[-order:] != (d,) * order:
        raise ValueError(
            f"the last {order} axes must all have the same length, got shape {dense.shape}"
        )
    flat = multi_indices(d, order).astype(np.int64) @ (d ** np.arange(order)[::-1])
    return dense.reshape(*dense.shape[:-order], d**order)[..., flat]


def unpack(packed: Array, d: int, order: int) -> Array:
    """Return the dense symmetric tensor `(..., d, ..., d)` of packed entries `(..., size)`.

    For large tensors this gather takes longer than the derivatives themselves.

    Raises:
        ValueError: the last axis is not `size(d, order)` long.
    """
    if packed.shape[-1] != size(d, order):
        raise ValueError(
            f"a packed tensor of order {order} over {d} variables has {size(d, order)} entries, "
            f"got a last axis of {packed.shape[-1]}"
        )
    return jnp.take(packed, dense_positions(d, order), axis=-1)


@functools.lru_cache(maxsize=8)
def dense_positions(d: int, order: int) -> np.ndarray:
    """Return the packed position of every dense entry, int32 of shape `(d, ..., d)`."""
    rows = np.moveaxis(np.indices((d,) * order), 0, -1)
    return positions(np.sort(rows, axis=-1), d).astype(np.int32)


@functools.lru_cache(maxsize=64)
def shuffles(d: int, first: int, second: int, anchored: bool = False) -> np.ndarray:
    """Return the ways to deal `first + second` indices out to two packed tensors.

    Their symmetrised product is `T[n] = sum_s A[table[s, 0, n]] * B[table[s, 1, n]]`. If
    `anchored`, the first index always goes to A, which counts unordered pairs of blocks once.

    Returns:
        int32 of shape `(shuffles, 2, size(d, first + second))`.
    """
    order = first + second
    rows = multi_indices(d, order)
    tables = []
    for chosen in itertools.combinations(range(order), first):
        if anchored and 0 not in chosen:
            continue
        rest = [slot for slot in range(order) if slot not in chosen]
        tables.append((positions(rows[:, list(chosen)], d), positions(rows[:, rest], d)))
    table = np.array(tables, np.int32)
    table.setflags(write=False)
    return table
