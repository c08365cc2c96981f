"""Time all derivatives of one order against nested autodiff, Taylor mode and torch.func.

    python -m benchmarks.born_mlp.derivatives

A row is one dtype, order m and network of d inputs and K hidden layers of H neurons. Rows that
`derivatives.json` already holds are kept, so that an interrupted run goes on where it stopped;
delete the file to measure anew. `derivatives.md` is written beside it.

Every peer runs in the fastest of several chunk sizes. All methods of a row run in turn, and the
medians are reported; then ours and the fastest peer alternate, and the speed-up is the median of
the paired ratios. Where the costs differ, the peers are favoured: they may use fewer points, dense
output is not packed, and Taylor mode is not charged for recombining its directions.
"""

import functools
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import jet

from benchmarks import timing
from born_mlp import taylor
from born_mlp.mlp import MLP, Params
from born_mlp.taylor import engine, evaluate, plan
from common import report

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
SHAPES = ("8,16,2", "8,64,3", "16,64,2", "32,64,2", "64,64,2")
CHUNKS = (1, 2, 8, 32, 128)
POINTS = 1000
TRIALS = 3
"""Short timings by which the chunk of a peer is chosen."""
CALL_SECONDS = 0.2
"""A peer that needs longer for 1,000 points, by the time of the first point, is given fewer."""
OUR_SECONDS = 1.0
"""The same for ours, whose time is guessed at 20 Gflop/s."""
SEARCH_SECONDS = 4.0
"""Once the search for the best chunk of a peer has taken this long, no further one is tried."""
PEER_SECONDS = 20.0
"""A peer whose measurement in a row would take longer is left out."""
LARGEST = 2**30
"""Bytes of an intermediate above which a peer, or a chunk of it, is left out."""
TARGETS = {
    ("float64", 2): "none slower",
    ("float32", 2): "none slower",
    ("float64", 3): "median 4.5x",
    ("float32", 3): "median 4.5x",
    ("float64", 4): "median 12x; (16,64,2) within 2x of the floor",
    ("float32", 4): "median 12x; (16,64,2) within 2x of the floor",
}

Shape = tuple[int, int, int]
Call = Callable[[], Any]
Build = Callable[[int, int], tuple[Call, float]]
"""`(number of chunks, chunk)` to a call for all these points, and its compile time."""


def flops(shape: Shape, order: int) -> int:
    """Count the multiplications and additions of our matrix products, for one point."""
    d, hidden, depth = shape
    if order == 2:  # the derivative of the gradient
        return 4 * (depth - 1) * hidden**2 * d + 2 * hidden * d**2
    pushed = sum(taylor.size(d, b) for b in range(1, order // 2 + 1))
    pushed += sum(taylor.size(d, a) for a in range(1, (order - 1) // 2 + 1))
    total = 2 * (depth - 1) * hidden**2 * pushed
    for split in itertools.chain(*plan.layer_splits(order, depth)):
        inner = hidden * len(split.plains)
        total += 2 * inner * taylor.size(d, split.w) * taylor.size(d, split.p)
    return total


def traffic(shape: Shape, order: int, dtype: str, points: int) -> float:
    """Estimate our bytes for one point if every number were streamed once.

    With C_b = C(d+b-1, b), the numbers are the packed output C_m; in each layer H times the m + 1
    derivatives of the activation, C_b for the derivatives of z (b <= m/2) and C_a for those of r
    (a < m/2, or a < m at order 2); the blocks C_w C_p that the gather reads; and the weights,
    divided by the points, which share them.
    """
    d, hidden, depth = shape
    streamed = taylor.size(d, order)
    tensors = [*range(order // 2 + 1), *range(2 if order == 2 else (order - 1) // 2 + 1)]
    streamed += depth * hidden * (order + 1 + sum(taylor.size(d, b) for b in tensors))
    splits = itertools.chain(*plan.layer_splits(order, depth)) if order > 2 else ()
    blocks = {(s.w, s.p, s.symmetric) for s in splits if s.w} or {(1, 1, False)}
    streamed += sum(taylor.size(d, w) * taylor.size(d, p) for w, p, _ in blocks)
    weights = (d + 1) * hidden + (depth - 1) * (hidden + 1) * hidden + hidden + 1
    return np.dtype(dtype).itemsize * (streamed + weights / points)


def network(shape: Shape, dtype: str) -> tuple[MLP, Params]:
    d, hidden, depth = shape
    mlp = MLP(in_features=d, hidden=(hidden,) * depth, activation="tanh")
    return mlp, mlp.init(jax.random.key(0), dtype=jnp.dtype(dtype))


def nested(innermost: Any, jacfwd: Any, f: Any, order: int) -> Any:
    for level in range(order):
        f = jacfwd(f) if level else innermost(f)
    return f


def taylor_mode(f: Any, order: int) -> Any:
    """Jets along the `C(d+m-1, m)` directions from which polarisation makes the tensor."""

    def along(x: jax.Array, v: jax.Array) -> jax.Array:
        series = [v] + [jnp.zeros_like(v)] * (order - 1)
        return jet.jet(f, (x,), (series,))[1][-1]

    def derivatives(x: jax.Array) -> jax.Array:
        sums = np.eye(len(x))[taylor.multi_indices(len(x), order)].sum(1)
        # The barrier keeps XLA from folding the products with these constants while it compiles.
        directions = jax.lax.optimization_barrier(jnp.asarray(sums, x.dtype))
        return jax.vmap(along, (None, 0))(x, directions)

    return derivatives


PEERS: dict[str, Any] = {
    "jacfwd^m": functools.partial(nested, jax.jacfwd, jax.jacfwd),
    "jacfwd^(m-1)(grad)": functools.partial(nested, jax.grad, jax.jacfwd),
    "jet": taylor_mode,
}
METHODS = ("ours", *PEERS, "torch.func")
KINDS = ("products", "gathers", "elementwise")


def peer_bytes(name: str, shape: Shape, order: int, dtype: str) -> int:
    """Return the size of the largest intermediate of a peer at one point."""
    d, hidden, _ = shape
    reverse = max(hidden * d ** (order - 1), d**order)
    entries = {
        "jacfwd^m": hidden * d**order,
        "jacfwd^(m-1)(grad)": reverse,
        "jet": hidden * taylor.size(d, order) * (order + 1),
        # Without a compiler, the tangents of all levels of nesting are alive at once.
        "torch.func": 2**order * reverse,
    }[name]
    return entries * np.dtype(dtype).itemsize


def timed(call: Call) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compiled(function: Any, *arguments: Any) -> tuple[Any, float]:
    """Lower and compile a jitted function ahead of time; return it with the seconds it took."""
    start = time.perf_counter()
    executable = function.lower(*arguments).compile()
    return executable, time.perf_counter() - start


def require_dtype(call: Call, dtype: str) -> None:
    """Refuse a method that would compute in another precision than the row says."""
    found = str(call().dtype).removeprefix("torch.")
    if found != dtype:
        raise TypeError(f"a method of a {dtype} row returns {found}: it would not be comparable")


def prepare_ours(shape: Shape, order: int, dtype: str) -> dict[str, Any]:
    mlp, params = network(shape, dtype)
    points = max(1, min(POINTS, int(OUR_SECONDS * 20e9 / flops(shape, order))))
    x = jax.random.normal(jax.random.key(1), (points, shape[0]), jnp.dtype(dtype))
    tables = engine.gather_tables(shape[0], (order,), shape[2])
    slope = params[0]["kernel"]
    program, seconds = compiled(evaluate.compiled, mlp, (order,), params, x, slope, tables)
    call = functools.partial(taylor.derivative, mlp, params, x, order)
    require_dtype(call, dtype)
    shares = timing.shares(call, program.as_text(), kind)
    return {"call": call, "points": points, "compile_s": seconds, "shares": shares}


def kind(text: str) -> str:
    """Return the kind of an instruction: a product, a gather or elementwise."""
    if " dot(" in text:
        return "products"
    return "gathers" if " gather(" in text else "elementwise"


def jax_build(name: str, shape: Shape, order: int, dtype: str) -> Build:
    mlp, params = network(shape, dtype)

    @jax.jit
    def run(params: Params, x: jax.Array) -> jax.Array:
        return jax.lax.map(jax.vmap(PEERS[name](functools.partial(mlp.apply, params), order)), x)

    def build(chunks: int, chunk: int) -> tuple[Call, float]:
        size = (chunks, chunk, shape[0])
        x = jax.random.normal(jax.random.key(1), size, jnp.dtype(dtype))
        executable, seconds = compiled(run, params, x)
        return functools.partial(executable, params, x), seconds

    return build


def torch_build(torch: Any, shape: Shape, order: int, dtype: str) -> Build:
    _, params = network(shape, dtype)
    weights = [[torch.tensor(np.asarray(p[k])) for k in ("kernel", "bias")] for p in params]

    def f(x: Any) -> Any:
        for kernel, bias in weights[:-1]:
            x = torch.tanh(x @ kernel + bias)
        kernel, bias = weights[-1]
        return (x @ kernel + bias)[0]

    derivatives = nested(torch.func.grad, torch.func.jacfwd, f, order)

    def build(chunks: int, chunk: int) -> tuple[Call, float]:
        x = torch.randn(chunks * chunk, shape[0], dtype=getattr(torch, dtype))
        return functools.partial(torch.func.vmap(derivatives, chunk_size=chunk), x), 0.0

    return build


def prepare_peer(build: Build, needed: int, dtype: str, repeats: int) -> dict[str, Any]:
    """Return a peer in its fastest chunk, or say why it is skipped.

    Args:
        build: the peer.
        needed: its `peer_bytes`.
        dtype: what it must return.
        repeats: how often it will be timed in each of the two parts of the measurement.
    """
    if needed > LARGEST:
        return {"skipped": f"would need {needed / 1e9:.1f} GB"}
    call, _ = build(1, 1)
    once = timed(call)
    if once * (1 + TRIALS + 2 * repeats) > PEER_SECONDS:
        return {"skipped": f">{PEER_SECONDS:.0f} s, not run"}
    require_dtype(call, dtype)
    once = min(once, timed(call))
    points = max(1, min(POINTS, int(CALL_SECONDS / once)))
    best: dict[str, Any] = {}
    start = time.perf_counter()
    for chunk in CHUNKS:
        late = time.perf_counter() - start > SEARCH_SECONDS
        if chunk > points or chunk * needed > LARGEST or late:
            break
        call, seconds = build(points // chunk, chunk)
        timed(call)
        used = points // chunk * chunk
        cost = statistics.median(timed(call) for _ in range(TRIALS)) / used
        if not best or cost < best["cost"]:
            best = {"call": call, "points": used, "chunk": chunk, "compile_s": seconds}
            best["cost"] = cost
    return best


def prepare(name: str, shape: Shape, order: int, dtype: str, repeats: int) -> dict[str, Any]:
    if name == "ours":
        return prepare_ours(shape, order, dtype)
    if name == "torch.func":
        try:
            import torch  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return {"skipped": "not installed"}
        build = torch_build(torch, shape, order, dtype)
    else:
        build = jax_build(name, shape, order, dtype)
    return prepare_peer(build, peer_bytes(name, shape, order, dtype), dtype, repeats)


def measure(shape: Shape, order: int, dtype: str, repeats: int) -> dict[str, Any]:
    """Measure one row of the table."""
    methods = {name: prepare(name, shape, order, dtype, repeats) for name in METHODS}
    running = {name: method for name, method in methods.items() if "call" in method}
    square = jax.random.normal(jax.random.key(2), (512, 512), jnp.dtype(dtype))
    gemm = functools.partial(jax.jit(engine.matmul), square, square)

    def cost(name: str) -> float:
        return timed(running[name]["call"]) / running[name]["points"]

    for call in (gemm, running["ours"]["call"]):
        timed(call)
    products: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(repeats):
        products += [timed(gemm) for _ in range(3)]
        for name in running:
            times[name].append(cost(name))
    for name, method in running.items():
        kept: dict[str, Any] = {
            key: method[key] for key in ("points", "chunk", "compile_s", "shares") if key in method
        }
        methods[name] = {"us": statistics.median(times[name]) * 1e6, **kept}
    row = {
        **report.provenance(),
        "methods": methods,
        "flops": flops(shape, order),
        "bytes": traffic(shape, order, dtype, methods["ours"]["points"]),
        "floor_us": flops(shape, order) / (2 * 512**3) * min(products) * 1e6,
    }
    peers = [name for name in running if name != "ours"]
    if peers:
        fastest = min(peers, key=lambda name: methods[name]["us"])
        pairs = [(cost("ours"), cost(fastest)) for _ in range(repeats)]
        speedup = statistics.median(peer / ours for ours, peer in pairs)
        row |= {"fastest": fastest, "speedup": speedup}
    return row


def cell(method: Mapping[str, Any]) -> str:
    if "skipped" in method:
        return method["skipped"]
    chunk = f", {method['chunk']}" if "chunk" in method else ""
    return f"{method['us']:.3g} ({method['compile_s']:.1f} s{chunk})"


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of all rows, and the commands that made them."""
    rows, summary = [], []
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for key, row in results.items():
        dtype, order, shape = key.split()
        ours = row["methods"]["ours"]
        groups.setdefault((dtype, int(order)), []).append(row)
        cells = [cell(row["methods"][name]) for name in METHODS]
        speedup = [f"{row['speedup']:.2f}", row["fastest"]] if "speedup" in row else ["", ""]
        counted = [f"{row['flops'] / 1e6:.3g}", f"{row['bytes'] / 1e3:.3g}"]
        floors = f"{ours['us'] / row['floor_us']:.1f}"
        parts = [f"{ours['shares'].get(name, 0):.0%}" for name in KINDS]
        first = [dtype, order, shape, str(ours["points"])]
        rows.append([*first, *cells, *speedup, *counted, floors, *parts])
    for (dtype, m), group in groups.items():
        known = [row["speedup"] for row in group if "speedup" in row]
        figures = (f"{statistics.median(known):.2f}", f"{min(known):.2f}") if known else ("", "")
        summary.append((dtype, str(m), *figures, TARGETS.get((dtype, m), "")))
    origins = {
        f"- {r['machine']}; {r['date']}; {r['versions']}; `{r['command']}`"
        for r in results.values()
    }
    header = (
        "dtype",
        "m",
        "d,H,K",
        "points",
        *METHODS,
        "speed-up",
        "over",
        "Mflop",
        "kB",
        "floors",
        *KINDS,
    )
    parts = (
        "# All derivatives of order m",
        "\n".join(sorted(origins)),
        "Microseconds per point (compile time, chunk of the peer): medians; tanh, scalar output, "
        "packed for ours and dense for the peers. The speed-up is the median of paired ratios to "
        "the fastest peer. Mflop are our matrix products and kB our output, intermediates and "
        "weights streamed once, both counted for one point; floors are our time over that of "
        "these flops at the rate of a 512^3 product in the same row. The last columns are the "
        "parts of our time by XLA's profiler. A peer is missing where it "
        f"is not installed, where one intermediate at one point exceeds {LARGEST / 1e9:.1f} GB, or "
        f"where its measurement would exceed the cap of {PEER_SECONDS:.0f} s.",
        report.table(header, rows),
        report.table(("dtype", "m", "median speed-up", "smallest", "target"), summary),
    )
    return "\n\n".join(parts) + "\n"


def main(
    dtypes: tuple[Literal["float64", "float32"], ...] = ("float64", "float32"),
    orders: tuple[Literal[2, 3, 4], ...] = (2, 3, 4),
    shapes: tuple[str, ...] = SHAPES,
    repeats: int = 5,
    output: pathlib.Path = OUTPUT,
) -> None:
    """Measure the rows that `output` does not hold yet.

    Args:
        dtypes: precisions.
        orders: orders m of the derivatives.
        shapes: networks, each `d,H,K`.
        repeats: timings of which the median is taken.
        output: JSON of the rows; the tables are written beside it.
    """
    results = json.loads(output.read_text()) if output.exists() else {}
    for dtype, order, text in itertools.product(dtypes, orders, shapes):
        key = f"{dtype} {order} {text}"
        if key in results:
            continue
        d, hidden, depth = (int(n) for n in text.split(","))
        start = time.perf_counter()
        # Each precision in the mode in which it is used: float32 has 32-bit indices.
        with jax.enable_x64(dtype == "float64"):
            results[key] = measure((d, hidden, depth), order, dtype, repeats)
        cells = ", ".join(f"{n} {cell(m)}" for n, m in results[key]["methods"].items())
        print(f"{key}: {cells}; took {time.perf_counter() - start:.0f} s", flush=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    tyro.cli(main)
