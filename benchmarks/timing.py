"""Times of several programs, in turn, in one process or each in its own; and where time goes."""

import collections
import gzip
import json
import multiprocessing
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import jax


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


def shares(
    run: Callable[[], Any], program: str, kind: Callable[[str], str | None]
) -> dict[str, float]:
    """Return the share of a program's time by kind of operation, as XLA's profiler sees it.

    Args:
      run: runs the program, which has been compiled before.
      program: its text after compilation.
      kind: names the kind of an instruction by its text, which is its line and, of a fusion, the
        lines that it fuses; None for one that is not to be counted. Loops and conditions, whose
        time is that of what they run, are not counted in any case.
    """
    fused = dict(re.findall(r"^%([\w.-]+) \(.*\{\n((?:  .*\n)*)\}", program, re.MULTILINE))
    kinds = {}
    for line in program.splitlines():
        found = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (.*)", line)
        if found and not re.search(r" (while|conditional|call)\(", found[2]):
            calls = re.search(r"calls=%([\w.-]+)", line)
            kinds[found[1]] = kind(line + fused.get(calls[1], "") if calls else line)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (file,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    totals: collections.Counter[str] = collections.Counter()
    for event in events:
        name = kinds.get(event.get("name"))
        if name is not None and "dur" in event:
            totals[name] += event["dur"]
    return {name: spent / totals.total() for name, spent in totals.most_common()}


def operation(text: str) -> str:
    """Return what an instruction was traced from, such as `jit(f)/while/body/dot_general`."""
    found = re.search(r'op_name="([^"]*)"', text)
    return found[1] if found else ""
