"""Seekable data: a batch is a function of `(seed, step)` alone.

Nothing is consumed, so a resumed run reads on at its step without replaying, and the order does not
depend on how many hosts or workers take part.
"""

import abc
import functools
from collections.abc import Mapping

import jax
import numpy as np

Arrays = Mapping[str, np.ndarray]


class Data(abc.ABC):
    """Training data: global batches addressed by the step."""

    @abc.abstractmethod
    def batch(self, step: int) -> Arrays:
        """Return the batch of a step, the same at every call; examples along the first axis."""

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes and types of a batch.

        Override it where making a batch is slow: `show` and the shape checks need only this.
        """
        return {
            name: jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))
            for name, array in self.batch(0).items()
        }


def _checked_rows(arrays: Arrays) -> int:
    """Return the number of rows, which all arrays must share."""
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"all arrays need the same number of rows, at least one array; got {rows}")
    return next(iter(rows.values()))


class ArrayData(Data):
    """Rows of in-memory arrays, shuffled anew in each epoch.

    Epochs follow each other without a gap: a batch may end one and begin the next, and each row is
    seen once in each epoch. Given `members`, every member of an ensemble sees the rows in an order
    of its own and batches have the shape `(batch_size, members, ...)`.
    """

    def __init__(
        self, arrays: Arrays, *, batch_size: int, seed: int, members: int | None = None
    ) -> None:
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self._rows = _checked_rows(self._arrays)
        if batch_size > self._rows:
            raise ValueError(f"batch_size {batch_size} exceeds the {self._rows} rows of the data")
        self._batch_size = batch_size
        self._members = members
        # Two epochs at most meet in a batch; a call of several steps reads them in order.
        self._order = functools.lru_cache(maxsize=2)(functools.partial(self._shuffle, seed))

    def _shuffle(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((seed, epoch))
        if self._members is None:
            return rng.permutation(self._rows)
        return np.stack([r.permutation(self._rows) for r in rng.spawn(self._members)], axis=1)

    def batch(self, step: int) -> Arrays:
        """Return `batch_size` rows of each array."""
        start = step * self._batch_size
        epoch, offset = divmod(start, self._rows)
        rows = self._order(epoch)[offset : offset + self._batch_size]
        if len(rows) < self._batch_size:
            rows = np.concatenate([rows, self._order(epoch + 1)[: self._batch_size - len(rows)]])
        return {name: array[rows] for name, array in self._arrays.items()}


class OnePass:
    """Every row once, in order: for evaluation.

    The last batch is filled up by repeating row zero. The entry "weight" is one for real rows and
    zero for the filling.
    """

    def __init__(self, arrays: Arrays, *, batch_size: int) -> None:
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        if "weight" in self._arrays:
            raise ValueError('the array name "weight" is reserved for marking the filled-up rows')
        self._rows = _checked_rows(self._arrays)
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self._rows // self._batch_size)

    def batch(self, index: int) -> Arrays:
        """Return batch `index`, with its weights."""
        rows = np.arange(index * self._batch_size, (index + 1) * self._batch_size)
        real = rows < self._rows
        batch = {name: array[np.where(real, rows, 0)] for name, array in self._arrays.items()}
        return {**batch, "weight": real.astype(np.float32)}


def stack_steps(data: Data, step: int, count: int) -> Arrays:
    """Stack the batches of `count` consecutive steps along a new first axis."""
    batches = [data.batch(s) for s in range(step, step + count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
