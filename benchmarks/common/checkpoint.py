"""What saving and resuming 250 MB of state costs, and what a second start compiles.

    python -m benchmarks.common.checkpoint

Saving: the time that `Checkpoints.save` keeps the loop, each some seconds after the one before,
beside `numpy.savez` of the same arrays, which a loop would wait for. Resuming: opening the folder
and reading the newest state into its layout, without compiling. Compiling: the train step of the
T5's quickstart, lowered and compiled by a process of its own, first with an empty cache, then with
what the first one kept. Files may come from the memory of the operating system.

Writes `checkpoint.json` and `checkpoint.md` beside this file.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from common import CheckpointConfig, report
from common.checkpoint import Checkpoints
from common.state import Fault, TrainState

PAUSE = 4.0
"""Seconds between saves, longer than one takes to be written."""

COMPILE = """
import sys, time
import jax
from common.perf import enable_compile_cache
from common.setup import prepare
from configs.molt5_multitask import quickstart

enable_compile_cache(sys.argv[1])
setup = prepare(quickstart.config())
batch = {
    name: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
    for name, leaf in setup.data.spec().items()
}
begin = time.perf_counter()
lowered = setup.train_step.lower(setup.abstract_state, batch)
middle = time.perf_counter()
lowered.compile()
print(middle - begin, time.perf_counter() - middle)
"""


def make_state(megabytes: int) -> TrainState:
    """Return parameters with two moments of Adam, as 12 layers, and a step counter."""
    width = round((megabytes * 1e6 / 4 / 3 / 12) ** 0.5)
    draw = jax.jit(lambda key: jax.random.normal(key, (width, width), jnp.float32))
    keys = iter(jax.random.split(jax.random.key(0), 36))
    layers = {
        part: {str(l): draw(next(keys)) for l in range(12)} for part in ("params", "mu", "nu")
    }
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=layers["params"],
        opt_state={name: layers[name] for name in ("mu", "nu")},
        ema=None,
        rng=jax.random.key_data(jax.random.key(0)),
        window={},
        fault=Fault.none(layers["params"]),
        passed_over=jnp.zeros((), jnp.int32),
    )


def clock(run: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def saving(state: TrainState, folder: pathlib.Path, repeats: int) -> dict[str, list[float]]:
    """Clock what saves keep the loop, each long after the one before; and the peer."""
    blocked, peer = [], []
    touch = jax.jit(
        lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0
    )
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step in range(repeats + 1):
            state = jax.block_until_ready(touch(state))
            blocked.append(clock(lambda step=step, state=state: checkpoints.save(step, state)))
            state = jax.block_until_ready(touch(state))  # the next step takes over the memory
            time.sleep(PAUSE)
            arrays = {str(i): x for i, x in enumerate(jax.tree.leaves(state))}
            peer.append(
                clock(lambda arrays=arrays: np.savez(folder / "peer.npz", **jax.device_get(arrays)))
            )
    return {"blocked": blocked[1:], "numpy.savez": peer[1:]}


def resuming(state: TrainState, folder: pathlib.Path, repeats: int) -> list[float]:
    """Clock opening the folder and reading the newest state."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )

    def restore() -> None:
        with Checkpoints(folder, CheckpointConfig()) as checkpoints:
            jax.block_until_ready(checkpoints.restore(abstract))

    return [clock(restore) for _ in range(repeats + 1)][1:]


def compiling(repeats: int) -> dict[str, list[float]]:
    """Clock lowering and compiling of a first and a second start."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for start in ("first", "second"):
                command = [sys.executable, "-c", COMPILE, cache]
                run = subprocess.run(command, check=True, capture_output=True, text=True)
                for part, seconds in zip(("lower", "compile"), run.stdout.split(), strict=True):
                    found.setdefault(f"{start} {part}", []).append(float(seconds))
    return found


def spread(seconds: Sequence[float], unit: str = "ms") -> str:
    """Return the median and the range."""
    values = [1e3 * s if unit == "ms" else s for s in seconds]
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}] {unit}"


def main(megabytes: int = 250, repeats: int = 5) -> None:
    """Measure, and write the results."""
    state = make_state(megabytes)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        saves = saving(state, folder, repeats)
        state = make_state(megabytes)  # the first one was handed on
        resumes = resuming(state, folder, repeats)
    compiles = compiling(min(3, repeats))
    faster = statistics.median(compiles["first compile"]) / statistics.median(
        compiles["second compile"]
    )
    rows = [
        ("a save keeps the loop", spread(saves["blocked"]), "under 50 ms"),
        ("`numpy.savez` keeps the loop", spread(saves["numpy.savez"]), ""),
        ("resuming, without compiling", spread(resumes, "s"), "under 3 s"),
        ("compiling, first start", spread(compiles["first compile"], "s"), ""),
        ("compiling, second start", spread(compiles["second compile"], "s"), ""),
        ("second start compiles faster by", f"{faster:.1f} times", "5 times"),
        ("lowering, either start", spread(compiles["first lower"], "s"), ""),
    ]
    for row in rows:
        print(*row, sep=" | ", flush=True)
    origin = report.provenance()
    here = pathlib.Path(__file__)
    document = {**origin, "bytes": size, "save": saves, "resume": resumes, "compile": compiles}
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    parts = [
        f"# Saving and resuming {size / 1e6:.0f} MB of state, and compiling a second time",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        "Medians [range] of several. What is what: see `checkpoint.py`.",
        report.table(("", "measured", "target"), rows),
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
