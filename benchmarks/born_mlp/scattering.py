"""Rate of exact scattering lengths in float64, beside the straightforward ways to compute them.

    JAX_ENABLE_X64=1 python -m benchmarks.born_mlp.scattering

writes `scattering.md` and `scattering.json` into the folder given by `--out`.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from born_mlp.physics import reference, samplers, scattering

REPEATS = 5


def transfer_matrix(potentials: np.ndarray) -> np.ndarray:
    """`1 - u/u'` from the textbook transfer matrices, vectorised over the potentials."""
    n, d = potentials.shape
    h = 1 / d
    u, slope = np.zeros(n), np.ones(n)
    for i in range(d):
        k = np.sqrt(potentials[:, i].astype(complex))
        c, s = np.cos(k * h).real, (np.sin(k * h) / k).real
        u, slope = c * u + s * slope, c * slope - potentials[:, i] * s * u
    return 1 - u / slope


def jax_batched(potentials: np.ndarray) -> np.ndarray:
    """The differentiable function of the library on the whole batch at once."""
    return np.asarray(scattering.scattering_length(jnp.asarray(potentials)))


def ode(potentials: np.ndarray) -> np.ndarray:
    """One adaptive integration (scipy DOP853) for each potential."""
    return np.array([reference.ode_scattering_length(row) for row in potentials])


METHODS: list[tuple[str, Callable[[np.ndarray], np.ndarray], int]] = [
    ("labels", scattering.labels, 400_000),
    ("scattering_length, whole batch", jax_batched, 50_000),
    ("NumPy transfer matrix", transfer_matrix, 50_000),
    ("scipy DOP853, one by one", ode, 10),
]
"""Name, function and number of potentials: enough of them for a steady rate."""


def measure(
    function: Callable[[np.ndarray], np.ndarray], potentials: np.ndarray, exact: np.ndarray
) -> dict[str, float]:
    start = time.perf_counter()
    values = function(potentials)
    first = time.perf_counter() - start
    walls, processors = [], []
    for _ in range(REPEATS):
        wall, processor = time.perf_counter(), time.process_time()
        function(potentials)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    wall = statistics.median(walls)
    return {
        "potentials": len(potentials),
        "rate": len(potentials) / wall,
        "slowest_rate": len(potentials) / max(walls),
        "cores": statistics.median(processors) / wall,
        "compile_seconds": max(first - wall, 0.0),
        "error": float(np.max(np.abs(values - exact)) / np.sqrt(np.mean(exact**2))),
    }


def table(results: dict) -> str:
    lines = [
        "# Exact scattering lengths a second, float64",
        "",
        f"{results['machine']}; jax {results['jax']}; {results['date']}; median of {REPEATS} runs.",
        "Error: largest difference from `labels` over the rms scattering length. Cores: processor",
        "time over wall time; below 1 the machine was busy with something else.",
        "",
        f"    {results['command']}",
        "",
        "| cells | method | potentials/s | slowest run | cores | compile, s | error |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['cells']} | {row['method']} | {row['rate']:.3g} | {row['slowest_rate']:.3g} "
            f"| {row['cores']:.2f} | {row['compile_seconds']:.2f} | {row['error']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def processor_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/born_mlp"))
    parser.add_argument("--cells", type=int, nargs="+", default=[16, 64])
    arguments = parser.parse_args()
    rows = []
    for cells in arguments.cells:
        potentials = samplers.SignedRays(cells=cells).sample(0, max(n for *_, n in METHODS))
        exact = scattering.labels(potentials)
        jax.clear_caches()  # the compilation is timed too
        for name, function, n in METHODS:
            row = measure(function, potentials[:n], exact[:n])
            rows.append({"cells": cells, "method": name, **row})
            print(f"{cells:4} cells  {name:32} {row['rate']:12.4g} potentials/s", flush=True)
    results = {
        "machine": f"{processor_name()}, {platform.machine()}",
        "jax": f"{jax.__version__}, jaxlib {jaxlib.__version__}, {jax.default_backend()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": " ".join(
            ["JAX_ENABLE_X64=1 python -m benchmarks.born_mlp.scattering", *sys.argv[1:]]
        ),
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scattering.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "scattering.md").write_text(table(results))


if __name__ == "__main__":
    main()
