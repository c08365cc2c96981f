"""Several examples in one row, told apart by segment ids.

An example takes room on both sides, its source among the inputs and its target among the targets,
and goes into one row on both. Segments 1, 2, ... number the examples of a row, 0 is padding.
"""

import numpy as np
from jaxtyping import Int


def pack(
    lengths: Int[np.ndarray, "n 2"], capacity: tuple[int, int], rows: int
) -> Int[np.ndarray, "n"]:
    """Assign examples to rows, filling one after another.

    Of the examples that fit, a row takes the one with the largest inner product of its lengths and
    the room that is left, both as shares of the capacity: the largest first, then those that need
    most where most is left (Panigrahy et al. 2011, "Heuristics for vector bin packing"). By size
    alone, long captions and long sources would each go among themselves.

    Args:
      lengths: tokens of source and target, none above the capacity.
      capacity: tokens that a row holds on each side.
      rows: number of rows.

    Returns:
      The row of each example, -1 where none has room.
    """
    row_of = np.full(len(lengths), -1)
    # In whole numbers, so that every machine assigns alike: both sides times the other's capacity.
    scale = np.array([capacity[1], capacity[0]], np.int64)
    full = capacity[0] * capacity[1]
    need = lengths * scale
    unplaced = np.argsort(-need.sum(1), kind="stable")
    sources, targets = need[unplaced].T.copy()
    for row in range(rows):
        if not len(unplaced):
            break
        least = sources.min(), targets.min()
        score, other = np.empty_like(sources), np.empty_like(sources)
        too_long, other_too_long = np.empty(len(sources), bool), np.empty(len(sources), bool)
        placed = np.zeros(len(unplaced), bool)
        best, room = 0, [full, full]  # an empty row takes the largest
        while True:
            placed[best] = True
            room[0] -= int(sources[best])
            room[1] -= int(targets[best])
            if room[0] < least[0] or room[1] < least[1]:
                break
            sources[best] = 2 * full  # fits no more
            np.multiply(sources, room[0], out=score)
            np.multiply(targets, room[1], out=other)
            score += other
            np.greater(sources, room[0], out=too_long)
            np.greater(targets, room[1], out=other_too_long)
            too_long |= other_too_long
            score[too_long] = -1
            best = int(score.argmax())
            if too_long[best]:
                break
        row_of[unplaced[placed]] = row
        unplaced, sources, targets = (x[~placed] for x in (unplaced, sources, targets))
    return row_of


def deal(lengths: Int[np.ndarray, "n 2"], groups: int) -> Int[np.ndarray, "n"]:
    """Divide examples into groups that are alike in number and lengths.

    Examples of like lengths, which are neighbours when sorted, go into different groups.
    """
    coarse = lengths[:, 0] // 16
    order = np.lexsort((np.where(coarse % 2, -1, 1) * lengths[:, 1], coarse))
    back_and_forth = np.concatenate([np.arange(groups), np.arange(groups)[::-1]])
    group_of = np.empty(len(lengths), np.int64)
    group_of[order] = np.resize(back_and_forth, len(lengths))
    return group_of


def lay_out(
    tokens: Int[np.ndarray, "t"],
    lengths: Int[np.ndarray, "n"],
    row_of: Int[np.ndarray, "n"],
    rows: int,
    length: int,
) -> tuple[Int[np.ndarray, "rows length"], Int[np.ndarray, "rows length"]]:
    """Write the token ids of examples into rows, one after another within each.

    Args:
      tokens: token ids of all examples, one example after another.
      lengths: tokens of each.
      row_of: the row of each; -1 leaves it out.
      rows: number of rows.
      length: tokens of a row.

    Returns:
      ids and segments, both int32, 0 where there is no token.
    """
    order = np.argsort(row_of, kind="stable")
    order = order[np.searchsorted(row_of[order], 0) :]
    row, size = row_of[order], lengths[order]
    first = np.searchsorted(row, row)  # the first example in the same row
    before = np.cumsum(size) - size
    start = row * length + before - before[first]
    ids, segments = np.zeros((2, rows * length), np.int32)
    places = ranges(start, size)
    ids[places] = tokens[ranges((np.cumsum(lengths) - lengths)[order], size)]
    segments[places] = np.repeat(np.arange(len(order)) - first + 1, size)
    return ids.reshape(rows, length), segments.reshape(rows, length)


def ranges(starts: Int[np.ndarray, "n"], sizes: Int[np.ndarray, "n"]) -> Int[np.ndarray, "t"]:
    """Return `start, start + 1, ...`, `size` numbers for each start, one after another."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))
