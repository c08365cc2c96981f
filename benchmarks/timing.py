"""Times of several programs, taken in turn in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turn(sides: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Any]:
    """Call each side `repeats` times, in turn, after one call that does not count.

    Returns:
      For each side its medians of wall and processor seconds, all of them, and what it returned.
    """
    found: dict[str, Any] = {name: {"wall": [], "processor": []} for name in sides}
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            results[name].append(side())
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if repeat:
                found[name]["wall"].append(wall)
                found[name]["processor"].append(processor)
    for name, times in found.items():
        times |= {f"median {clock}": statistics.median(times[clock]) for clock in tuple(times)}
        times["results"] = results[name]
    return found
