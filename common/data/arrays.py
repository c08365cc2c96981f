"""Seekable data: a batch is a function of `(seed, step)` alone.

Nothing is consumed, so a resumed run reads on at its step without replaying, and the order does not
depend on how many hosts or workers take part.
"""

import abc
import functools
import reprlib
from collections.abc import Mapping

import jax
import numpy as np
from numpy.typing import ArrayLike

Arrays = Mapping[str, np.ndarray]

Part = slice | np.ndarray
"""Which examples of a batch: a slice, or their numbers in increasing order."""
WHOLE = slice(None)
"""All examples of a batch."""


class Data(abc.ABC):
    """Training data: global batches addressed by the step."""

    @abc.abstractmethod
    def batch(self, step: int, part: Part = WHOLE) -> Arrays:
        """Return a part of the batch of a step, the same at every call.

        The arrays are used while the next ones are made: they must not be changed afterwards.

        Args:
          step: the step.
          part: the examples to return, of those along the first axis; a process asks for those
            that its devices take, so that expensive work on an example is done once.
        """

    def rows(self, step: int) -> np.ndarray | None:  # noqa: ARG002
        """Return the numbers of the batch's examples in the data set, where they have numbers."""
        return None

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes and types of a batch.

        Override it where making a batch is slow: `show` and the shape checks need only this.
        """
        batch = self.batch(0)
        if other := {k: type(v).__name__ for k, v in batch.items() if not hasattr(v, "shape")}:
            raise ValueError(f"the entries of a batch must be arrays; got {other}")
        return {
            name: jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))
            for name, array in batch.items()
        }


def _checked(arrays: Mapping[str, ArrayLike]) -> tuple[dict[str, np.ndarray], int]:
    """Return the arrays, and the number of rows that all of them have."""
    found = {}
    for name, values in arrays.items():
        try:
            found[name] = np.asarray(values)
        except ValueError:  # rows of different lengths
            found[name] = np.asarray(None)
        if found[name].ndim == 0 or found[name].dtype.kind not in "biufcV":  # V: bfloat16
            raise ValueError(
                f"the array {name!r} must hold rows of numbers, all of one shape; got "
                f"{reprlib.repr(values)}"
            )
    rows = {name: len(array) for name, array in found.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise ValueError(
            "there must be at least one array and one row, and all arrays need the same number of "
            f"rows; got {rows}"
        )
    return found, next(iter(rows.values()))


class EpochOrder:
    """An endless order of row numbers: each epoch a fresh permutation, addressable anywhere."""

    def __init__(self, count: int, *, seed: int) -> None:
        if count < 1:
            raise ValueError("the training data hold no row")
        self._count = count
        self._seed = seed
        # Two epochs at most meet in a batch, and batches are read in order.
        self._permutation = functools.lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> np.ndarray:
        permutation = np.random.default_rng((self._seed, epoch)).permutation(self._count)
        permutation.setflags(write=False)  # parts of it are handed out
        return permutation

    def rows(self, start: int, count: int) -> np.ndarray:
        """Return the row numbers at positions `start` to `start + count` of the order."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self._count)
            piece = self._permutation(epoch)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class ArrayData(Data):
    """Rows of in-memory arrays, shuffled anew in each epoch.

    Epochs follow each other without a gap: a batch may end one and begin the next, and each row is
    seen once in each epoch.
    """

    def __init__(self, arrays: Mapping[str, ArrayLike], *, batch_size: int, seed: int) -> None:
        self._arrays, rows = _checked(arrays)
        self._order = EpochOrder(rows, seed=seed)
        self._batch_size = batch_size

    def batch(self, step: int, part: Part = WHOLE) -> Arrays:
        """Return the rows of each array."""
        rows = self.rows(step)[part]
        # `take` gathers rows several times faster than indexing does.
        return {name: array.take(rows, axis=0) for name, array in self._arrays.items()}

    def rows(self, step: int) -> np.ndarray:
        """Return the numbers of the batch's rows."""
        return self._order.rows(step * self._batch_size, self._batch_size)


class OnePass:
    """Rows of in-memory arrays, each once and in order: for evaluation."""

    def __init__(self, arrays: Mapping[str, ArrayLike], *, batch_size: int) -> None:
        self._arrays, self._rows = _checked(arrays)
        if "weight" in self._arrays:
            raise ValueError('the array name "weight" is reserved for marking the filled-up rows')
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    def take(self, rows: np.ndarray) -> Arrays:
        """Return rows by their numbers."""
        return {name: array.take(rows, axis=0) for name, array in self._arrays.items()}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes and types of one row."""
        return {
            name: jax.ShapeDtypeStruct(array.shape[1:], jax.dtypes.canonicalize_dtype(array.dtype))
            for name, array in self._arrays.items()
        }


def stack_steps(data: Data, step: int, count: int, part: Part = WHOLE) -> Arrays:
    """Stack a part of the batches of `count` consecutive steps along a new first axis."""
    if count == 1:  # nothing to copy
        return {name: array[None] for name, array in data.batch(step, part).items()}
    batches = [data.batch(s, part) for s in range(step, step + count)]
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
