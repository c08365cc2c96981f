"""What a device sends and holds, against the number of devices: read from compiled programs.

    python -m benchmarks.common.scaling

The train step of T5-base on packed rows (`configs/molt5_multitask/base_packed.py`, 4 rows a device,
float32, since the CPU's compiler sends bfloat16 as float32) is compiled for up to 256 simulated
devices: replicas only (`data`), parameters split over all (`fsdp`), and over 8 of them (`mixed`).
Nothing is run. Weak scaling: what a device sends does not depend on its rows, so there is a number
of rows from which on the matrix products take longer than the network, by the chips' published
rates: that is the roofline, on paper. It takes overlap for granted and counts all links of a chip.

Writes `scaling.json`, `scaling.md` and `scaling.png` beside this file.
"""

import json
import pathlib
from typing import Any

import jax
import tyro
from matplotlib.figure import Figure

from common import cli, report
from common.aot import compile_step, find_devices
from common.chips import CHIPS, GIB
from common.show import bytes_per_device

ROWS = 4
CONFIG = "configs/molt5_multitask/base_packed.py"
ON_PAPER = ("TPU v5e", "TPU v5", "H100")
MIB = 2**20


def meshes(devices: int) -> dict[str, int]:
    """Return the size of the `fsdp` axis by the name of the mesh."""
    return (
        {"data": 1}
        | ({"fsdp": devices} if devices > 1 else {})
        | ({"mixed": 8} if devices > 8 else {})
    )


def measure(devices: int, fsdp: int) -> dict[str, Any]:
    """Compile for a mesh; return bytes of one device, and the rows from which products dominate."""
    overrides = f"--batch_size {ROWS * devices} --mesh.fsdp {fsdp} --step.compute_dtype float32"
    experiment = cli.resolve(pathlib.Path(CONFIG), overrides.split())
    found = compile_step(experiment, find_devices(f"cpu:{devices}"))
    kinds = sorted({c.kind for c in found.collectives})
    flops = found.setup.flops / experiment.batch_size
    return {
        "devices": devices,
        "fsdp": fsdp,
        "state": bytes_per_device(found.setup.abstract_state),
        "operations": sum(c.count for c in found.collectives),
        "sent": found.sent(),
        "by_kind": {kind: found.sent(kind) for kind in kinds},
        "compile_seconds": found.compile_seconds,
        "rows": {
            chip.name: found.sent() / chip.network * chip.flops / flops
            for chip in CHIPS
            if chip.name in ON_PAPER and chip.network is not None
        },
    }


def draw(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw bytes sent, state held, and the rows from which products dominate."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    sent, state, rows = figure.subplots(1, 3)
    for i, (name, found) in enumerate(results.items()):
        devices = [f["devices"] for f in found]
        style = {"color": f"C{i}", "marker": "o", "label": name}
        several = [f for f in found if f["devices"] > 1]
        sent.plot([f["devices"] for f in several], [f["sent"] / MIB for f in several], **style)
        state.plot(devices, [f["state"] / GIB for f in found], **style)
        for chip, line in zip(ON_PAPER, ("-", "--", ":"), strict=True):
            rows.plot(
                [f["devices"] for f in several],
                [f["rows"][chip] for f in several],
                color=f"C{i}",
                ls=line,
                label=chip if i == 0 else None,
            )
    sent.set(ylabel="MiB sent by a device in a step", ylim=(0, None))
    state.set(ylabel="GiB of state on a device", yscale="log")
    rows.set(ylabel="rows a device: products = network", ylim=(0, None))
    for axes in (sent, state, rows):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("devices")
        axes.grid(alpha=0.3)
    sent.legend()
    rows.legend(title="published rates of", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main(largest: int = 256) -> None:
    """Measure, and write the results."""
    jax.config.update("jax_num_cpu_devices", largest)
    jax.config.update("jax_enable_compilation_cache", False)
    results: dict[str, list[dict[str, Any]]] = {}
    devices = 1
    while devices <= largest:
        for name, fsdp in meshes(devices).items():
            results.setdefault(name, []).append(measure(devices, fsdp))
            print(name, results[name][-1], flush=True)
        devices *= 4
    origin = report.provenance()
    here = pathlib.Path(__file__)
    document = {**origin, "config": CONFIG, "rows_per_device": ROWS, "meshes": results}
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    draw(results).savefig(here.with_suffix(".png"), dpi=150)
    rows = [
        (
            name,
            str(f["devices"]),
            f"{f['state'] / GIB:.3f}",
            str(f["operations"]),
            ", ".join(f"{kind} {sent / MIB:.0f}" for kind, sent in f["by_kind"].items()),
            f"{f['sent'] / MIB:.0f}",
            *(f"{f['rows'][chip]:.1f}" for chip in ON_PAPER),
        )
        for name, found in results.items()
        for f in found
    ]
    header = ("mesh", "devices", "state, GiB", "collectives a step", "sent, MiB", "all, MiB")
    parts = [
        "# Collectives against the number of devices, from compiled programs",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"T5-base, {ROWS} rows of 512 + 512 tokens a device, float32. Bytes are those of one "
        "device in a step, by the ring algorithm. The last columns say from how many rows a device "
        "on the matrix products take longer than the network, by published rates, all links in "
        "use: no time was measured. The CPU's compiler sums what is split over `fsdp` by an "
        "all-reduce and a slice; the TPU's takes a reduce-scatter, half of it. What is what: see "
        "`scaling.py`.",
        report.table((*header, *(f"rows, {chip}" for chip in ON_PAPER)), rows),
        "![Bytes sent, state held, and rows from which products dominate](scaling.png)",
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
