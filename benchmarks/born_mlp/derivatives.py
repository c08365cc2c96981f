"""Time all derivatives of one order against nested autodiff, Taylor mode and torch.func.

    python -m benchmarks.born_mlp.derivatives --dtypes float64 --orders 2 3 4

Each line that is measured replaces the same line of `derivatives.json`, from which
`derivatives.md` is written: a long run can be made in pieces. Every peer runs in the best of
several chunk sizes; all methods of a line run in turn, and the medians are reported. The peers'
costs are favoured where they differ: they may use fewer points, dense output is not packed, and
Taylor mode is not charged for recombining its directions.
"""

import argparse
import datetime
import functools
import itertools
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import jet

from born_mlp import taylor
from born_mlp.mlp import MLP, Params
from born_mlp.taylor import plan

HERE = pathlib.Path(__file__).parent
SHAPES = ((8, 16, 2), (8, 64, 3), (16, 64, 2), (32, 64, 2), (64, 64, 2))
CHUNKS = (4, 32)
POINTS = 1000
LARGEST = 2**30
"""Bytes of output, or of a peer's dense intermediates, above which fewer points are taken or the
peer is left out."""

Run = Callable[[], object]


def flops(d: int, hidden: int, depth: int, order: int) -> int:
    """Count the multiplications and additions of our matrix products, for one point."""
    half, adjoint = order // 2, (order - 1) // 2
    pushed = sum(taylor.size(d, b) for b in range(1, half + 1))
    pushed += sum(taylor.size(d, a) for a in range(1, adjoint + 1))
    total = 2 * (depth - 1) * hidden**2 * pushed
    for layer_splits in plan.layer_splits(order, depth):
        for split in layer_splits:
            inner = hidden * len(split.plains)
            total += 2 * inner * taylor.size(d, split.w) * taylor.size(d, split.p)
    return total


def network(shape: tuple[int, int, int], dtype: str) -> tuple[MLP, Params]:
    d, hidden, depth = shape
    mlp = MLP(in_features=d, hidden=(hidden,) * depth, activation="tanh")
    return mlp, mlp.init(jax.random.key(0), dtype=jnp.dtype(dtype))


def jacfwd(mlp: MLP, params: Params, order: int) -> Callable:
    f = functools.partial(mlp.apply, params)
    for _ in range(order):
        f = jax.jacfwd(f)
    return f


def jacfwd_of_grad(mlp: MLP, params: Params, order: int) -> Callable:
    f = jax.grad(functools.partial(mlp.apply, params))
    for _ in range(order - 1):
        f = jax.jacfwd(f)
    return f


def taylor_mode(mlp: MLP, params: Params, order: int) -> Callable:
    """Jets along the `C(d+m-1, m)` directions from which polarisation makes the tensor."""
    rows = taylor.multi_indices(mlp.in_features, order)
    directions = jnp.asarray(np.eye(mlp.in_features)[rows].sum(1), params[0]["kernel"].dtype)

    def along(x: jax.Array, v: jax.Array) -> jax.Array:
        series = [v] + [jnp.zeros_like(v)] * (order - 1)
        return jet.jet(functools.partial(mlp.apply, params), (x,), (series,))[1][-1]

    # The barrier keeps XLA from folding the products with these constants while it compiles.
    return lambda x: jax.vmap(along, (None, 0))(x, jax.lax.optimization_barrier(directions))


PEERS = {"jacfwd^m": jacfwd, "jacfwd^(m-1)(grad)": jacfwd_of_grad, "jet": taylor_mode}


def peer_bytes(name: str, shape: tuple[int, int, int], order: int, itemsize: int) -> int:
    """Largest intermediate of a peer at one point."""
    d, hidden, _ = shape
    entries = {
        "jacfwd^m": hidden * d**order,
        "jacfwd^(m-1)(grad)": max(hidden * d ** (order - 1), d**order),
        "jet": hidden * taylor.size(d, order) * (order + 1),
    }[name]
    return entries * itemsize


def timed(run: Run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def prepare_peer(
    name: str, shape: tuple[int, int, int], order: int, dtype: str, seconds: float
) -> dict:
    """Compile a peer in several chunk sizes and keep the fastest; or say why it is left out."""
    mlp, params = network(shape, dtype)
    best: dict = {"skipped": "no chunk fits"}
    for chunk in CHUNKS:
        needed = chunk * peer_bytes(name, shape, order, np.dtype(dtype).itemsize)
        if needed > LARGEST:
            if chunk == CHUNKS[0]:
                best = {"skipped": f"{needed / 2**30:.1f} GiB in {chunk} points"}
            break
        points = jax.random.normal(jax.random.key(1), (1, chunk, shape[0]), jnp.dtype(dtype))

        @jax.jit
        def run(params: Params, points: jax.Array) -> jax.Array:
            each = jax.vmap(PEERS[name](mlp, params, order))
            return jax.lax.map(each, points)

        start = time.perf_counter()
        lowered = run.lower(params, points).compile()
        compiling = time.perf_counter() - start
        timed(functools.partial(lowered, params, points))
        once = timed(functools.partial(lowered, params, points))
        # As many chunks as the time and the memory of the output allow.
        output = peer_bytes("jacfwd^(m-1)(grad)", shape, order, 8) * chunk
        repeats = max(1, min(POINTS // chunk, int(seconds / once), LARGEST // output))
        points = jnp.tile(points, (repeats, 1, 1))
        call = functools.partial(run, params, points)
        if repeats > 1:
            timed(call)
            once = timed(call)
        cost = once / (repeats * chunk)
        if "cost" not in best or cost < best["cost"]:
            best = {
                "run": call,
                "cost": cost,
                "points": repeats * chunk,
                "chunk": chunk,
                "compile_s": compiling,
            }
        if once > 2 * seconds:
            break
    return best


def prepare_ours(shape: tuple[int, int, int], order: int, dtype: str) -> dict:
    mlp, params = network(shape, dtype)
    entry = taylor.size(shape[0], order) * np.dtype(dtype).itemsize
    points = min(POINTS, LARGEST // entry)
    x = jax.random.normal(jax.random.key(1), (points, shape[0]), jnp.dtype(dtype))
    call = functools.partial(taylor.derivative, mlp, params, x, order)
    compiling = timed(call)
    return {"run": call, "points": points, "compile_s": compiling - timed(call)}


def prepare_torch(shape: tuple[int, int, int], order: int, dtype: str) -> dict:
    try:
        import torch
    except ImportError:
        return {"skipped": "not installed"}
    if shape[0] ** order > 2**21:
        return {"skipped": "memory"}
    _, params = network(shape, dtype)
    weights = [
        tuple(torch.tensor(np.asarray(layer[k])) for k in ("kernel", "bias")) for layer in params
    ]

    def f(x: torch.Tensor) -> torch.Tensor:
        for kernel, bias in weights[:-1]:
            x = torch.tanh(x @ kernel + bias)
        return (x @ weights[-1][0] + weights[-1][1])[0]

    g = torch.func.grad(f)
    for _ in range(order - 1):
        g = torch.func.jacfwd(g)
    x = torch.randn(4, shape[0], dtype=getattr(torch, dtype))
    call = functools.partial(torch.func.vmap(g), x)
    return {"run": call, "points": len(x), "chunk": len(x), "compile_s": 0.0, "cost": timed(call)}


def measure(shape: tuple[int, int, int], order: int, dtype: str, repeats: int) -> dict:
    """Measure one line of the table."""
    methods = {"ours": prepare_ours(shape, order, dtype)}
    for name in PEERS:
        methods[name] = prepare_peer(name, shape, order, dtype, seconds=0.1)
    methods["torch.func"] = prepare_torch(shape, order, dtype)
    square = jax.random.normal(jax.random.key(2), (512, 512), jnp.dtype(dtype))
    gemm = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    timed(functools.partial(gemm, square, square))
    times: dict[str, list[float]] = {name: [] for name in methods}
    rates = []
    for _ in range(repeats):
        rates += [2 * 512**3 / timed(functools.partial(gemm, square, square)) for _ in range(3)]
        for name, method in methods.items():
            if "run" in method:
                times[name].append(timed(method["run"]) / method["points"])
    line: dict = {
        "gemm_flops_per_s": max(rates),
        "flops": flops(*shape, order),
        "output_bytes": taylor.size(shape[0], order) * np.dtype(dtype).itemsize,
        "date": datetime.date.today().isoformat(),
        "methods": {},
    }
    for name, method in methods.items():
        if times[name]:
            kept = {k: method[k] for k in ("points", "chunk", "compile_s") if k in method}
            kept["us"] = statistics.median(times[name]) * 1e6
            line["methods"][name] = kept
        else:
            line["methods"][name] = {"skipped": method["skipped"]}
    return line


def table(results: dict[str, dict], header: dict[str, str]) -> str:
    names = ["ours", *PEERS, "torch.func"]
    lines = [
        "# All derivatives of order m: time per point",
        "",
        "Medians in microseconds per point, tanh, scalar output, packed for ours and dense for the"
        " peers; compile time in seconds in brackets. `floor` is our counted matrix flops at the"
        " rate of a 512^3 product measured in the same minute; `best` is the speed-up over the"
        " fastest peer. A dash is a peer that needs too much memory at that shape.",
        "",
        *(f"- {key}: {value}" for key, value in header.items()),
        "",
        "| dtype | m | d, H, K | " + " | ".join(names) + " | best | Mflop | output kB | x floor |",
        "|" + "---|" * (len(names) + 7),
    ]
    ratios: dict[tuple[str, int], list[float]] = {}
    for key in sorted(results):
        dtype, order, *shape = key.split()
        line, methods = results[key], results[key]["methods"]
        cells = [
            "-"
            if "us" not in methods.get(name, {})
            else f"{methods[name]['us']:.3g} ({methods[name]['compile_s']:.1f})"
            for name in names
        ]
        peers = [m["us"] for name, m in methods.items() if name != "ours" and "us" in m]
        best = min(peers, default=math.nan) / methods["ours"]["us"]
        ratios.setdefault((dtype, int(order)), []).append(best)
        floor = line["flops"] / line["gemm_flops_per_s"] * 1e6
        cells += [
            f"{best:.1f}",
            f"{line['flops'] / 1e6:.3g}",
            f"{line['output_bytes'] / 1e3:.3g}",
            f"{methods['ours']['us'] / floor:.1f}",
        ]
        lines.append(f"| {dtype} | {order} | {', '.join(shape)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| dtype | m | median speed-up over the best peer | smallest |",
        "|---|---|---|---|",
    ]
    for (dtype, order), values in sorted(ratios.items()):
        known = [v for v in values if not math.isnan(v)]
        lines.append(f"| {dtype} | {order} | {statistics.median(known):.1f} | {min(known):.1f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--orders", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument(
        "--shapes", nargs="+", default=[",".join(map(str, s)) for s in SHAPES], metavar="d,H,K"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "derivatives.json")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    device = jax.devices()[0]
    header = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{device.device_kind}; jax {jax.__version__}, Python {platform.python_version()}",
        "command": "python -m benchmarks.born_mlp.derivatives " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
    }
    for dtype, order, text in itertools.product(options.dtypes, options.orders, options.shapes):
        shape = tuple(int(n) for n in text.split(","))
        start = time.perf_counter()
        line = measure(shape, order, dtype, options.repeats)
        results[" ".join(map(str, (dtype, order, *shape)))] = line
        shown = {n: round(m["us"], 2) for n, m in line["methods"].items() if "us" in m}
        print(
            f"{dtype} m={order} {shape}: {shown} us, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        options.output.write_text(json.dumps(results, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(table(results, header))


if __name__ == "__main__":
    main()
