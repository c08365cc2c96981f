"""Speed and memory of a training step of T5-small, against transformers with torch.

    python -m benchmarks.molt5_multitask.train_step

A step takes 8 rows of 128 + 128 tokens in float32 and updates all parameters by AdamW. Ours is the
whole step of the trainer (`common.step`: gradient norm, skipping of non-finite steps, metrics);
the peer is `T5ForConditionalGeneration`, eager, with torch's fused AdamW. The blocks are
unrolled, which is faster on a CPU; the options tell by how much. Both sides start from the same
weights, see the same batch, use all cores, and take steps in turn, each in a process of its own;
their losses after these steps are compared. Tokens are those of encoder and decoder.

How much a faster program around the matrix products could still gain is told by the products alone:
all of a step's, forward and backward, in the libraries' own speed, measured in the same run.

Options are measured for ours, each against the default in turn. Memory is what XLA plans for a
step: parameters, optimizer state and batch, and what lives for a moment ("temporary"). `--peaks`
runs a few steps of each in a process of its own and compares what the system has seen at most.

Writes `train_step.json` and `train_step.md` beside this file.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

# Torch's waiting threads would keep the cores busy while the other side runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import jax
import numpy as np
import tyro
from jax import Array

from benchmarks.timing import Apart, in_turn
from common import ArrayData, Data, Experiment, OptimConfig, StepConfig, Task
from common.metrics import Metrics
from common.report import provenance, table
from common.rng import Rngs
from common.setup import prepare
from common.task import Batch, Params
from molt5_multitask.losses import LossConfig, sequence_loss
from molt5_multitask.model import T5Config, bind, init, preset
from molt5_multitask.pretrained import save_pretrained

ROWS, LENGTH = 8, 128
TOKENS = 2 * ROWS * LENGTH
RATE = 6e-4
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "blocks in a scan": {"scan": True},
    "remat dots": {"remat": "dots"},
    "remat full": {"remat": "full"},
    "all logits at once": {"chunk": None},
    "logits of 32 positions": {"chunk": 32},
    "logits of 16 positions": {"chunk": 16},
}
CHUNK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step(Task):
    """The training task: one batch, again and again."""

    model: T5Config
    """Architecture."""
    loss_config: LossConfig
    """The loss."""

    def init(self, key: Array) -> Params:
        """Draw the parameters."""
        return init(self.model, key)

    def loss(self, params: Params, batch: Batch, rngs: Rngs) -> Metrics:
        """Return the loss."""
        return {"loss": sequence_loss(bind(self.model, params), batch, self.loss_config, rngs)}

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Return the batch."""
        return ArrayData(make_batch(), batch_size=batch_size, seed=seed)


def make_batch() -> dict[str, np.ndarray]:
    """Draw full rows of ids."""
    rng = np.random.default_rng(0)
    ids = {f"{s}s": rng.integers(3, 32000, (ROWS, LENGTH), np.int32) for s in ("input", "target")}
    return ids | {f"{s}_segments": np.ones((ROWS, LENGTH), np.int32) for s in ("input", "target")}


class Ours:
    """The trainer's step, compiled."""

    def __init__(self, *, dropout: float, chunk: int | None = CHUNK, **changes: Any) -> None:
        config = preset("t5-small", **{"dropout": dropout, "scan": False} | changes)
        setup = self.setup = prepare(
            Experiment(
                task=Step(model=config, loss_config=LossConfig(chunk=chunk)),
                steps=1000,
                batch_size=ROWS,
                optim=OptimConfig(name="adamw", learning_rate=RATE, weight_decay=0.01),
                step=StepConfig(),
            )
        )
        self.config = config
        self._state = setup.init_state()
        self.start = jax.device_get(self._state.params)
        self._batch = {name: array[None] for name, array in make_batch().items()}
        begin = time.perf_counter()
        self._step = setup.train_step.lower(self._state, self._batch).compile()
        self.compile_seconds = time.perf_counter() - begin
        self._totals = (0.0, 0.0)

    def __call__(self) -> float:
        """Take a step and return its loss."""
        self._state, window = self._step(self._state, self._batch)
        loss = jax.device_get(window)["loss"]
        now = float(loss.total), float(loss.weight)
        total, weight = (a - b for a, b in zip(now, self._totals, strict=True))
        self._totals = now
        return total / weight

    def memory(self) -> dict[str, float]:
        """Return MB of the arguments, and of what a step needs besides."""
        planned = self._step.memory_analysis()
        return {
            "arguments": planned.argument_size_in_bytes / 1e6,
            "temporary": planned.temp_size_in_bytes / 1e6,
        }


class Torch:
    """The peer, from the weights of `start` or from its own."""

    def __init__(self, *, dropout: float, start: tuple[T5Config, Params] | None = None) -> None:
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        config = transformers.T5Config(dropout_rate=dropout, decoder_start_token_id=0)
        self.model = transformers.T5ForConditionalGeneration(config)
        if start is not None:
            with tempfile.TemporaryDirectory() as folder:
                save_pretrained(folder, *start)
                self.model = transformers.T5ForConditionalGeneration.from_pretrained(
                    folder, dropout_rate=dropout
                )
        self.model.train()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, weight_decay=0.01, fused=True
        )
        batch = {
            name: torch.tensor(array, dtype=torch.long) for name, array in make_batch().items()
        }
        self._arguments = {
            "input_ids": batch["inputs"],
            "attention_mask": batch["input_segments"],
            "labels": batch["targets"],
        }

    def __call__(self) -> float:
        """Take a step and return its loss."""
        self._optimizer.zero_grad()
        loss = self.model(**self._arguments).loss
        loss.backward()
        self._optimizer.step()
        return float(loss)


def products(config: T5Config) -> list[tuple[int, int, int, int]]:
    """List the forward products of linear maps as (rows, inputs, outputs, count)."""
    n, d, inner = ROWS * LENGTH, config.d_model, config.heads * config.d_kv
    blocks = config.encoder_layers + 2 * config.decoder_layers
    layers = config.encoder_layers + config.decoder_layers
    return [
        (n, d, inner, 3 * blocks),
        (n, inner, d, blocks),
        (n, d, config.d_ff, layers),
        (n, config.d_ff, d, layers),
        (n, d, config.vocab_rows, 1),
    ]


def products_alone(config: T5Config, *, repeats: int) -> dict[str, float]:
    """Return the wall seconds of a step's matrix products, without anything between them."""
    import torch

    seconds = {"ours": 0.0, "torch": 0.0}
    operations = 0.0
    for n, wide, out, count in products(config):
        x, w, dy = (np.ones(shape, np.float32) for shape in ((n, wide), (wide, out), (n, out)))
        for a, b, ours, theirs in (
            (x, w, lambda x, w: x @ w, lambda x, w: x @ w),
            (dy, w, lambda dy, w: dy @ w.T, lambda dy, w: dy @ w.T),
            (x, dy, lambda x, dy: x.T @ dy, lambda x, dy: x.T @ dy),
        ):
            compiled, on_device = jax.jit(ours), jax.device_put((a, b))
            tensors = torch.tensor(a), torch.tensor(b)
            # Not in turn: torch's idle threads keep a core busy for a moment after each product.
            for side, product in (
                ("ours", lambda f=compiled, ab=on_device: f(*ab).block_until_ready()),
                ("torch", lambda f=theirs, ab=tensors: f(*ab)),
            ):
                times = in_turn({side: product}, repeats=3 * repeats)
                seconds[side] += count * times[side]["median wall"]
            operations += 2.0 * n * wide * out * count
    return {**seconds, "operations": operations}


def peak(side: str, steps: int = 3) -> None:
    """Print the largest resident set, MB, of a process that takes some steps."""
    step = Ours(dropout=0.1) if side == "ours" else Torch(dropout=0.1)
    for _ in range(steps):
        step()
    # Not `getrusage`, whose maximum a child process inherits.
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1e3)


def peaks() -> dict[str, float]:
    """Run `peak` for both sides in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.molt5_multitask.train_step", "--peak"]
    return {
        side: float(
            subprocess.run([*command, side], check=True, capture_output=True, text=True).stdout
        )
        for side in ("ours", "torch")
    }


def measure(repeats: int) -> dict[str, Any]:
    """Measure all of it."""
    found: dict[str, Any] = {"steps": {}, "options": {}}
    for dropout in (0.0, 0.1):
        ours = Ours(dropout=dropout)
        start = ours.config, ours.start
        peer = Apart(functools.partial(Torch, dropout=dropout, start=start))
        times = in_turn({"ours": ours, "torch": peer}, repeats=repeats)
        found["steps"][str(dropout)] = times
        peer.close()
        print("dropout", dropout, {s: times[s]["median wall"] for s in times}, flush=True)
    found["products"] = products_alone(ours.config, repeats=repeats)
    print("products", found["products"], flush=True)
    found["default memory"] = ours.memory()
    found["flops"] = ours.setup.flops
    for name, changes in OPTIONS.items():
        other = Ours(dropout=0.1, **changes)
        times = in_turn({"default": ours, "option": other}, repeats=max(2, repeats // 2))
        found["options"][name] = {**times, "memory": other.memory()}
        print(name, {s: times[s]["median wall"] for s in times}, other.memory(), flush=True)
    found["peaks"] = peaks()
    return found


def report(found: Mapping[str, Any]) -> str:
    """Write the tables."""
    rows = []
    for dropout, times in found["steps"].items():
        ours, peer = times["ours"], times["torch"]
        for clock in ("wall", "processor"):
            a, b = ours[f"median {clock}"], peer[f"median {clock}"]
            speeds = (f"{TOKENS / a:,.0f}", f"{TOKENS / b:,.0f}")
            rows.append((dropout, clock, f"{a:.2f}", f"{b:.2f}", *speeds, f"{b / a:.2f}"))
    header = (
        "dropout",
        "clock",
        "ours, s",
        "torch, s",
        "ours, tokens/s",
        "torch, tokens/s",
        "gain",
    )
    losses = [found["steps"]["0.0"][side]["results"] for side in ("ours", "torch")]
    apart = [abs(a / b - 1) for a, b in zip(*losses, strict=True)]
    alone, ours = found["products"], found["steps"]["0.0"]["ours"]["median wall"]
    peer = found["steps"]["0.0"]["torch"]["median wall"]
    giga = alone["operations"] / 1e9
    limits = (
        f"The {giga:.0f} GFLOP of a step's linear maps alone take XLA {alone['ours']:.2f} s "
        f"({giga / alone['ours']:.0f} GFLOP/s; {alone['ours'] / ours:.0%} of our step), and torch "
        f"{alone['torch']:.2f} s ({giga / alone['torch']:.0f} GFLOP/s; {alone['torch'] / peer:.0%} "
        f"of its step). With everything else free, our gain would be {peer / alone['ours']:.2f}."
    )
    base = found["default memory"]
    options = [("default: unrolled, no remat, 64 positions", "1.00", f"{base['temporary']:.0f}")]
    for name, option in found["options"].items():
        ratio = option["option"]["median wall"] / option["default"]["median wall"]
        options.append((name, f"{ratio:.2f}", f"{option['memory']['temporary']:.0f}"))
    memory = (
        f"Parameters, optimizer state and batch are {base['arguments']:.0f} MB. Largest resident "
        f"set of a process with three steps: ours {found['peaks']['ours']:.0f} MB, torch "
        f"{found['peaks']['torch']:.0f} MB."
    )
    return "\n\n".join(
        [
            table(header, rows),
            f"Without dropout the losses of the two differ by {apart[0]:.0e} at the first step, "
            f"{apart[1]:.0e} at the second and {apart[-1]:.0e} at the last: from random weights, "
            "AdamW's first steps have the size of the learning rate whatever a gradient's.",
            limits,
            table(("option", "time, of the default's", "temporary memory, MB"), options),
            memory,
        ]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the training step."""

    repeats: int = 7
    """Steps of each side that are timed."""
    peak: str | None = None
    """Only print the largest resident set of `ours` or `torch`."""


def main(arguments: Arguments) -> None:
    """Measure, and write the results."""
    if arguments.peak is not None:
        peak(arguments.peak)
        return
    found = measure(arguments.repeats)
    origin = provenance()
    here = pathlib.Path(__file__)
    document = {**origin, **found}
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    parts = [
        "# A training step of T5-small on a CPU",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"{ROWS} x {LENGTH} -> {LENGTH}, float32, AdamW; medians of {arguments.repeats} steps. "
        "What is what: see `train_step.py`.",
        report(found),
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
