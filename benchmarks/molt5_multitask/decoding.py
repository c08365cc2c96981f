"""Speed of greedy decoding and beam search against transformers' `generate`.

    python -m benchmarks.molt5_multitask.decoding

T5-small with random weights in float32, 8 inputs of 64 tokens, 64 generated tokens: the row of eos
is zero, so that no hypothesis ends before. Both sides have the same weights and the same threads,
and must give the same token ids, which is checked. A run is from token ids to token ids, encoder
included; runs alternate in one process, and the first of each side, which compiles, is not counted.
Beside the wall times stand processor times of all threads, which say more on a busy machine, and
how many processors other programs took meanwhile. Needs the extra `parity`.

Where our time goes is measured with XLA's profiler in one more run: matrix products with weights,
attention, the rest.

Writes `decoding.json` and `decoding.md` beside this file.
"""

import json
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

# Torch's waiting threads would keep the cores busy while the other side runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import jax
import numpy as np
import torch
import transformers
import tyro

from benchmarks import timing
from common.report import provenance, table
from molt5_multitask.config import EOS
from molt5_multitask.decoding import BeamSearch, Decoder
from molt5_multitask.model import init, preset
from molt5_multitask.pretrained import save_pretrained

INPUTS, INPUT_TOKENS, OUTPUT_TOKENS = 8, 64, 64
BEAMS = (1, 5)
TARGETS = {1: 2.0, 5: 3.0}
"""Ratio to reach."""


def make_weights(preset_name: str) -> tuple[Any, Any]:
    """Draw weights that do not repeat one token, and never write eos."""
    config = preset(preset_name)
    params = jax.tree.map(np.array, jax.device_get(init(config, jax.random.key(0))))
    blocks = params["decoder"]["blocks"]
    for linear in (
        blocks["self_attention"]["out"],
        blocks["cross_attention"]["out"],
        blocks["feed_forward"]["wo"],
    ):
        linear["kernel"] *= 8
    params["embedding" if config.tied else "lm_head"]["table"][EOS] = 0
    return config, params


def clock(run: Callable[[], Any]) -> tuple[float, float, float]:
    """Return wall and processor seconds of a run, and processors that others took meanwhile."""
    busy, wall, own = _busy_seconds(), time.perf_counter(), time.process_time()
    run()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return wall, own, max(0.0, (_busy_seconds() - busy - own) / wall)


def _busy_seconds() -> float:
    """Processor time of all programs."""
    user, nice, system = pathlib.Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def await_idle(patience: float, *, seconds: float = 3.0) -> None:
    """Wait until other programs have taken less than a tenth of a processor for some seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end and clock(lambda: time.sleep(seconds))[2] > 0.1:
        pass


def measure(
    ours: Decoder, theirs: Any, ids: np.ndarray, *, beams: int, repeats: int, patience: float
) -> dict[str, Any]:
    """Run both sides in turn, each pair when the machine is idle or the patience at its end."""
    segments, numbers = np.ones_like(ids), np.arange(len(ids), dtype=np.int32)
    source = torch.tensor(ids, dtype=torch.long)

    def run_ours() -> np.ndarray:
        return ours.decode(ids, segments, numbers).ids[:, 0]

    def run_theirs() -> np.ndarray:
        with torch.inference_mode():
            found = theirs.generate(
                source,
                num_beams=beams,
                max_new_tokens=OUTPUT_TOKENS,
                do_sample=False,
            )
        return found[:, 1:].numpy()

    compiling, _, _ = clock(run_ours)
    a, b = run_ours(), run_theirs()
    assert a.shape == b.shape == (INPUTS, OUTPUT_TOKENS), (a.shape, b.shape)
    same = float((a == b).all(1).mean())
    pairs = []
    for _ in range(repeats):
        await_idle(patience)
        pairs.append([clock(run_ours), clock(run_theirs)])
    times = np.array(pairs)
    median = np.median(times, axis=0)
    found = {
        "beams": beams,
        "same rows": same,
        "different tokens": len(np.unique(a)),
        "compile": compiling,
        "others": float(np.median(times[..., 2])),
        "runs": {"ours": times[:, 0].tolist(), "transformers": times[:, 1].tolist()},
    }
    for i, kind in enumerate(("wall", "processor")):
        found[kind] = {
            "ours": median[0, i],
            "transformers": median[1, i],
            "ratio": median[1, i] / median[0, i],
            "median of paired ratios": statistics.median(times[:, 1, i] / times[:, 0, i]),
        }
    return found


def shares(ours: Decoder, ids: np.ndarray) -> dict[str, float]:
    """Return the share of the decoding loop's time by kind of operation."""
    segments, numbers = np.ones_like(ids), np.arange(len(ids), dtype=np.int32)
    carry = ours._begin(ours._params, ids, segments, numbers)
    program = ours._advance.lower(ours._params, ours._layers, carry).compile().as_text()
    return timing.shares(lambda: ours.decode(ids, segments, numbers), program, _kind)


def _kind(text: str) -> str | None:
    operation = timing.operation(text)
    if "/while/body/" not in operation:
        return None
    if "dot_general" in operation:
        if "bh" in operation:
            return "attention"
        return "output projection" if "vd,dbk" in operation else "products with weights"
    shape = re.search(r"= \(?\w+\[([\d,]*)\]", text)
    dims = shape[1].split(",") if shape else []
    return "attention" if len(dims) == 4 else "the rest"


def main(model: str = "t5-small", repeats: int = 7, patience: float = 0.0) -> None:
    """Measure, and write the results.

    Args:
      model: preset of the model.
      repeats: runs of each side.
      patience: seconds to wait, before each pair of runs, for other programs to be idle.
    """
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config, params = make_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, config, params)
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 32_000, (INPUTS, INPUT_TOKENS)).astype(np.int32)
    results = []
    for beams in BEAMS:
        ours = Decoder(
            config, params, BeamSearch(beams=beams), max_length=OUTPUT_TOKENS + 1, rows=INPUTS
        )
        found = measure(ours, theirs, ids, beams=beams, repeats=repeats, patience=patience)
        found["shares"] = shares(ours, ids)
        results.append(found)
        print(*row(found), sep=" | ", flush=True)
    origin = provenance()
    origin["versions"] += f", torch {torch.__version__}, transformers {transformers.__version__}"
    document = {**origin, "model": model, "repeats": repeats, "cases": results}
    here = pathlib.Path(__file__)
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    kinds = list(results[0]["shares"])
    parts = [
        "# Decoding against transformers' `generate`",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"{model}, random weights, float32; {INPUTS} inputs of {INPUT_TOKENS} tokens, "
        f"{OUTPUT_TOKENS} generated; medians of {repeats} runs in turn, seconds. What is what: see "
        "`decoding.py`.",
        table(HEADER, [row(found) for found in results]),
        "Where the time of our decoding loop goes:",
        table(
            ("beams", *kinds),
            [[str(f["beams"]), *(f"{f['shares'].get(k, 0):.0%}" for k in kinds)] for f in results],
        ),
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


HEADER = (
    "beams",
    "ours, wall [range]",
    "transformers, wall [range]",
    "ratio",
    "to reach",
    "ours, processor",
    "transformers, processor",
    "ratio",
    "same rows",
    "processors taken by others",
    "compile",
)


def row(found: dict[str, Any]) -> list[str]:
    """Return a row of the table."""

    def wall(side: str) -> str:
        runs = np.array(found["runs"][side])[:, 0]
        return f"{np.median(runs):.2f} [{runs.min():.2f}, {runs.max():.2f}]"

    target = TARGETS.get(found["beams"])
    return [
        str(found["beams"]),
        wall("ours"),
        wall("transformers"),
        f"{found['wall']['ratio']:.2f}",
        "" if target is None else f"{target:.1f}",
        f"{found['processor']['ours']:.2f}",
        f"{found['processor']['transformers']:.2f}",
        f"{found['processor']['ratio']:.2f}",
        f"{found['same rows']:.0%}",
        f"{found['others']:.1f}",
        f"{found['compile']:.1f}",
    ]


if __name__ == "__main__":
    tyro.cli(main)
