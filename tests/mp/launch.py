"""Runs a script in several processes with several simulated devices each."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one process ended."""

    status: int
    output: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def environment(
    process: int, processes: int, port: int, *, devices: int = 4, **more: str
) -> dict[str, str]:
    """The environment of one process; a process alone is told of no coordinator."""
    own = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    if processes > 1:
        own |= {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
            "JAX_HEARTBEAT_TIMEOUT": "10",
            "JAX_STARTUP_TIMEOUT": "60",
        }
    return {**os.environ, **own, **more}


def kill(pid: int) -> None:
    """Kill a process that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def spawn(
    arguments: Sequence[str], process: int, processes: int, port: int, log: pathlib.Path, **options
) -> subprocess.Popen:
    """Start one process of `python ARGUMENTS`, its output in `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment(process, processes, port, **options),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def run(
    arguments: Sequence[str],
    folder: pathlib.Path,
    *,
    processes: int = 2,
    devices: int = 4,
    timeout: float = 120,
    more: Mapping[str, str] | None = None,
) -> list[Ended]:
    """Run `python ARGUMENTS` in several processes, and wait for all of them."""
    port = free_port()
    logs = [folder / f"process_{i}.log" for i in range(processes)]
    started = [
        spawn(arguments, i, processes, port, logs[i], devices=devices, **(more or {}))
        for i in range(processes)
    ]
    try:
        statuses = [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [
        Ended(status, log.read_text(errors="replace"))
        for status, log in zip(statuses, logs, strict=True)
    ]


def succeed(arguments: Sequence[str], folder: pathlib.Path, **options) -> list[Ended]:
    """Run, and see that every process ends well."""
    ends = run(arguments, folder, **options)
    assert {end.status for end in ends} == {0}, "\n".join(end.output for end in ends)
    return ends
