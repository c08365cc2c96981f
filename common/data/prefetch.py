"""A background thread that prepares batches and sends them to the devices ahead of their use."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import jax
import numpy as np

Item = TypeVar("Item")
Placed = TypeVar("Placed")

POLL_SECONDS = 0.2
"""How often a consumer that waits looks for something else to do."""
JOIN_SECONDS = 2.0
"""How long the end of the block waits for the thread, which may be in the middle of an item."""


def prefetch(
    items: Iterable[Item],
    place: Callable[[Item], Placed],
    *,
    depth: int = 2,
    while_waiting: Callable[[], None] = lambda: None,
) -> contextlib.closing[Generator[Placed]]:
    """Yield `place(item)` for every item, `depth` of them made ahead of time by a thread.

    Errors of the thread are raised where the items are consumed. Use it as a context manager, so
    that the thread ends with the block, or as soon as the item that it is making is done:

        with prefetch(items, place) as placed:
            for batch in placed: ...

    Args:
      items: what to prepare; consumed by the thread.
      place: prepares an item; called by the thread.
      depth: items made ahead of time.
      while_waiting: called by the consumer every `POLL_SECONDS` in which it waits for an item; what
        it raises ends the wait.
    """
    return contextlib.closing(_prefetch(items, place, depth, while_waiting))


def _prefetch(
    items: Iterable[Item],
    place: Callable[[Item], Placed],
    depth: int,
    while_waiting: Callable[[], None],
) -> Generator[Placed]:
    done = object()
    ready: queue.SimpleQueue[object] = queue.SimpleQueue()
    # One for each item that may be made now; two simple queues are faster than a bounded one.
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    for _ in range(depth):
        room.put(None)
    closed = threading.Event()

    # Whether JAX computes in double precision is a setting of each thread.
    double = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

    def work() -> None:
        try:
            with jax.enable_x64(double):
                rest = iter(items)
                while True:
                    room.get()
                    if closed.is_set():
                        return
                    if (item := next(rest, done)) is done:
                        break
                    ready.put(place(item))  # type: ignore[arg-type]
            ready.put(done)
        except BaseException as error:
            ready.put(error)

    def wait() -> object:
        while True:
            try:
                return ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                while_waiting()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (value := wait()) is not done:
            if isinstance(value, BaseException):
                raise value
            room.put(None)
            yield value  # type: ignore[misc]
    finally:
        closed.set()
        room.put(None)
        thread.join(JOIN_SECONDS)
