"""Several examples in one row, told apart by segment ids.

An example takes room on both sides, its source among the inputs and its target among the targets,
and goes into one row on both. Segments 1, 2, ... number the examples of a row, 0 is padding.
"""

from collections.abc import Sequence

import numpy as np


def pack(lengths: np.ndarray, capacity: tuple[int, int], rows: int) -> np.ndarray:
    """Assign examples to rows, filling one after another.

    Of the examples that fit, a row takes the one with the largest inner product of its lengths and
    the room that is left, both as shares of the capacity: the largest first, then those that need
    most where most is left (Panigrahy et al. 2011, "Heuristics for vector bin packing"). By size
    alone, long captions and long sources would each go among themselves.

    Args:
      lengths: int (examples, 2), tokens of source and target.
      capacity: tokens that a row holds on each side.
      rows: number of rows.

    Returns:
      int (examples,): the row of each example, -1 where none has room.
    """
    row_of = np.full(len(lengths), -1)
    # In whole numbers, so that every machine assigns alike: both sides times the other's capacity.
    scale = np.array([capacity[1], capacity[0]], np.int64)
    need = lengths * scale
    unplaced = np.argsort(-need.sum(1), kind="stable")
    for row in range(rows):
        if not len(unplaced):
            break
        sources, targets = need[unplaced].T.copy()
        free = np.array(capacity) * scale
        placed = np.zeros(len(unplaced), bool)
        while True:
            fits = (sources <= free[0]) & (targets <= free[1]) & ~placed
            best = int(np.where(fits, sources * free[0] + targets * free[1], -1).argmax())
            if not fits[best]:
                break
            placed[best] = True
            free -= need[unplaced[best]]
        row_of[unplaced[placed]] = row
        unplaced = unplaced[~placed]
    return row_of


def lay_out(
    pieces: Sequence[np.ndarray], row_of: np.ndarray, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write the token ids of examples into rows, one after another within each.

    Args:
      pieces: token ids of each example.
      row_of: int (examples,), the row of each; -1 leaves it out.
      rows: number of rows.
      length: tokens of a row.

    Returns:
      ids and segments, both int32 (rows, length), 0 where there is no token.
    """
    ids = np.zeros((rows, length), np.int32)
    segments = np.zeros((rows, length), np.int32)
    used = [0] * rows
    count = [0] * rows
    for piece, row in zip(pieces, row_of.tolist(), strict=True):
        if row < 0:
            continue
        start, end = used[row], used[row] + len(piece)
        count[row] += 1
        ids[row, start:end] = piece
        segments[row, start:end] = count[row]
        used[row] = end
    return ids, segments
