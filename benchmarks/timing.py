"""Times of several programs, taken in turn, in one process or each in its own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any


class Apart:
    """A side in a process of its own, where neither memory nor threads of the other disturb it."""

    def __init__(self, make: Callable[[], Callable[[], Any]]) -> None:
        """Start the process, which calls what `make()` returns each time this is called."""
        spawn = multiprocessing.get_context("spawn")
        self._connection, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(other, make), daemon=True)
        self._process.start()
        other.close()
        self._processor: float = self._connection.recv()

    def __call__(self) -> Any:
        """Call the side once; an error there ends this with EOFError."""
        self._connection.send(None)
        result, self._processor = self._connection.recv()
        return result

    def process_time(self) -> float:
        """Return the processor seconds of the process after the last call."""
        return self._processor

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, make: Callable[[], Callable[[], Any]]) -> None:
    side = make()
    connection.send(time.process_time())
    while True:
        connection.recv()
        result = side()
        connection.send((result, time.process_time()))


def in_turn(sides: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Any]:
    """Call each side `repeats` times, in turn, after one call that does not count.

    Returns:
      For each side its medians of wall and processor seconds, all of them, and what it returned.
    """
    found: dict[str, Any] = {name: {"wall": [], "processor": []} for name in sides}
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            process_time = side.process_time if isinstance(side, Apart) else time.process_time
            wall, processor = time.perf_counter(), process_time()
            results[name].append(side())
            wall, processor = time.perf_counter() - wall, process_time() - processor
            if repeat:
                found[name]["wall"].append(wall)
                found[name]["processor"].append(processor)
    for name, times in found.items():
        times |= {f"median {clock}": statistics.median(times[clock]) for clock in tuple(times)}
        times["results"] = results[name]
    return found
