"""What every table needs: where its numbers come from, and its Markdown."""

import datetime
import os
import pathlib
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax


def provenance() -> dict[str, Any]:
    """Return machine, date, versions and command: what every table must say."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        name = f"{_cpu_name()}, {os.cpu_count()} cores"
    return {
        "machine": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": f"jax {jax.__version__}, Python {platform.python_version()}",
        "command": shlex.join(["python", *module_or_script(), *sys.argv[1:]]),
    }


def _cpu_name() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def module_or_script() -> list[str]:
    """Return what comes after `python` on the command line of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.argv[0]] if spec is None else ["-m", spec.name.removesuffix(".__main__")]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(values: Sequence[float]) -> str:
    """Write a mean, with its standard deviation where there are several values."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
