"""Images of a source, resized by several threads, in batches of their order."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from alignment.images.decode import BadImageError
from alignment.images.preprocess import Preprocessing
from alignment.images.sources import ImageSource

AHEAD = 3
"""Batches that are worked on at a time, so that no thread waits for the end of one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Resized images of some rows."""

    rows: Int[np.ndarray, "B"]
    """Their rows in the source."""
    images: UInt8[np.ndarray, "B S S 3"]
    """The images; black where they are bad."""
    bad: dict[int, str]
    """What is wrong with the images of some rows."""


def load_batches(
    source: ImageSource,
    rows: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Iterator[ImageBatch]:
    """Read and resize rows of a source; the result does not depend on the number of workers.

    Pillow and OpenCV let other threads run while they work, so threads are enough.

    Args:
      source: the images.
      rows: which, in order.
      preprocessing: gives size and filter; the pixels stay as they are, 0 to 255.
      batch_size: images of a batch; the last may have fewer.
      workers: threads; by default as many as there are processors.
    """

    def load(row: int) -> np.ndarray | BadImageError:
        try:
            return preprocessing.resize(source.image(row))
        except BadImageError as error:
            return error

    rows = np.asarray(rows)
    batches = iter([rows[i : i + batch_size] for i in range(0, len(rows), batch_size)])
    pending: collections.deque[tuple[np.ndarray, list[concurrent.futures.Future]]]
    pending = collections.deque()
    pool = _pool(workers or os.cpu_count())
    try:
        while True:
            while len(pending) < AHEAD and (batch := next(batches, None)) is not None:
                pending.append((batch, [pool.submit(load, int(row)) for row in batch]))
            if not pending:
                return
            batch, futures = pending.popleft()
            side = preprocessing.size
            images = np.zeros((len(batch), side, side, 3), np.uint8)
            bad = {}
            for i, future in enumerate(futures):
                found = future.result()
                if isinstance(found, BadImageError):
                    bad[int(batch[i])] = str(found)
                else:
                    images[i] = found
            yield ImageBatch(rows=batch, images=images, bad=bad)
    finally:
        for _, futures in pending:
            for future in futures:
                future.cancel()


@functools.cache
def _pool(workers: int | None) -> concurrent.futures.ThreadPoolExecutor:
    """Return the pool of so many threads; to start one for each batch would cost milliseconds."""
    return concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="images")


def load_rows(
    source: ImageSource,
    rows: Int[np.ndarray, "..."],
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
) -> UInt8[np.ndarray, "... S S 3"]:
    """Read and resize rows of a source, each once however often it occurs.

    Raises:
      ValueError: naming the first image that cannot be used.
    """
    distinct, inverse = np.unique(rows, return_inverse=True)
    (batch,) = load_batches(
        source, distinct, preprocessing, batch_size=len(distinct), workers=workers
    )
    if batch.bad:
        raise ValueError(
            f"{len(batch.bad)} images of a batch cannot be used, such as "
            f"{next(iter(batch.bad.values()))}; mend them, or leave them out"
        )
    return batch.images[inverse.reshape(rows.shape)]


def check_images(
    source: ImageSource, rows: Sequence[int] | np.ndarray, *, workers: int | None = None
) -> dict[int, str]:
    """Look at the headers of images; return what is wrong, by row."""

    def check(row: int) -> str | None:
        try:
            source.check(row)
        except BadImageError as error:
            return str(error)
        return None

    found = _pool(workers or os.cpu_count()).map(check, [int(row) for row in rows])
    return {int(row): text for row, text in zip(rows, found, strict=True) if text is not None}
