"""Several examples in one row, told apart by segment ids.

An example takes room on both sides, its source among the inputs and its target among the targets,
and goes into one row on both. Segments 1, 2, ... number the examples of a row, 0 is padding.
"""

from collections.abc import Sequence

import numpy as np


def first_fit(lengths: np.ndarray, capacity: tuple[int, int], rows: int) -> np.ndarray:
    """Assign examples to rows: longest first, each to the first row with room on both sides.

    Args:
      lengths: int (examples, 2), tokens of source and target.
      capacity: tokens that a row holds on each side.
      rows: number of rows.

    Returns:
      int (examples,): the row of each example, -1 where none has room.
    """
    free = np.tile(np.array(capacity, np.int32), (rows, 1)).T.copy()
    need = lengths.astype(np.int32)
    row_of = np.full(len(lengths), -1)
    order = np.argsort(-(lengths / np.array(capacity)).max(1), kind="stable")
    for i in order:
        fits = (free[0] >= need[i, 0]) & (free[1] >= need[i, 1])
        row = int(fits.argmax())
        if fits[row]:
            row_of[i] = row
            free[:, row] -= need[i]
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
