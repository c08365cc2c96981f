"""Compile an experiment for devices that are not there, and say what it needs of them.

    python -m molt5_multitask.train aot configs/molt5_multitask/base_packed.py \
        --topology v5e:16x16 --slices 1 --mesh.fsdp 16 --batch_size 2048

The very train step of a run is compiled, in its shardings, by the TPU's compiler on the CPU of any
machine: nothing is run, and no parameter made. It needs the extra `aot`.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from common import report
from common.chips import GIB, Chip, find_chip
from common.experiment import Experiment
from common.hlo import Collective, collectives
from common.mesh import batch_sharding, count_slices
from common.setup import Setup, prepare
from common.show import bytes_per_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What one train step needs of the devices of a mesh. Bytes are those of one device."""

    setup: Setup
    """The run."""
    compile_seconds: float
    """Time that the compiler took."""
    arguments: int
    """Bytes of state and batch."""
    outputs: int
    """Bytes of what the step returns beside the state, which takes the old one's place."""
    temporaries: int
    """Bytes of activations, gradients and buffers, at their peak."""
    code: int
    """Bytes of the program."""
    out_of_memory: str | None
    """What the compiler says where it finds no room; it stops at that."""
    collectives: Sequence[Collective]
    """What is sent between devices; empty where the compiler stopped."""

    @property
    def chip(self) -> Chip | None:
        """The published rates of the devices."""
        return find_chip(self.setup.mesh.devices.flat[0].device_kind)

    @property
    def memory(self) -> int:
        """Bytes in use at the peak; where the compiler stopped, at least these."""
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """Whether the devices have that memory."""
        limit = None if self.chip is None else self.chip.memory
        return self.out_of_memory is None and (limit is None or self.memory <= limit)

    def sent(self, kind: str | None = None, *, between_slices: bool | None = None) -> float:
        """Bytes that a device sends in one step, in all or by some of the collectives."""
        return sum(
            c.sent
            for c in self.collectives
            if kind in (None, c.kind) and between_slices in (None, c.between_slices)
        )


def find_devices(topology: str, slices: int = 1) -> Sequence[jax.Device]:
    """Return the devices of a TPU topology that is not attached, or of a simulated CPU.

    Args:
      topology: chip and shape, as `v5e:16x16` or `v5p:4x4x8`, of one slice; or `cpu:8`.
      slices: number of such slices.

    Raises:
      ValueError: for a topology that does not exist, or without the compiler for TPUs.
    """
    chip, _, shape = topology.partition(":")
    if chip == "cpu" and shape.isdigit() and slices == 1:
        return _simulated(int(shape))
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "the compiler for TPUs is not installed: pip install -c constraints.txt -e '.[aot]'"
        )
    # There is no metadata server to ask, and nobody to share the chips with.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"no topology {topology!r} of {slices} slice(s) ({_first_line(error)}); give chip and "
            "shape, as v5e:16x16, v5p:4x4x8 or v6e:8x8"
        ) from None


def _simulated(count: int) -> Sequence[jax.Device]:
    devices = jax.devices("cpu")[:count]
    if len(devices) < count:
        raise ValueError(
            f"there are {len(devices)} simulated devices, not {count}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices


def compile_step(experiment: Experiment[Any], devices: Sequence[jax.Device]) -> Compiled:
    """Compile the train step of an experiment for `devices`.

    Raises:
      ValueError: as `common.setup.prepare` does.
    """
    setup = prepare(experiment, devices)
    sharding = batch_sharding(setup.mesh, leading_axes=1)
    batches = {
        name: jax.ShapeDtypeStruct(
            (experiment.step.per_call, *leaf.shape), leaf.dtype, sharding=sharding
        )
        for name, leaf in setup.data.spec().items()
    }
    lowered = setup.train_step.lower(setup.abstract_state, batches)
    begin = time.perf_counter()
    found: dict[str, Any] = {"setup": setup}
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT])", str(error))
        found |= {
            "arguments": bytes_per_device((setup.abstract_state, batches)),
            "outputs": 0,
            "temporaries": 0 if needed is None else _bytes(*filter(None, needed.groups())),
            "code": 0,
            "out_of_memory": _first_line(error),
            "collectives": (),
        }
    else:
        memory = program.memory_analysis()
        found |= {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "out_of_memory": None,
            "collectives": collectives(program.as_text()),
        }
    return Compiled(**found, compile_seconds=time.perf_counter() - begin)


def describe(found: Compiled) -> str:
    """Describe what a step needs, whether it fits, and what to change if it does not."""
    mesh, experiment, chip = found.setup.mesh, found.setup.experiment, found.chip
    limit = None if chip is None else chip.memory
    parts = ("arguments", "outputs", "temporaries", "code", "memory")
    lines = [
        f"mesh: {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}, "
        f"{count_slices(mesh.devices.flat)} slice(s)",
        f"compiled in {found.compile_seconds:.1f} s",
        "",
        report.table(
            ("memory of a device", "GiB"),
            [
                *((part, f"{getattr(found, part) / GIB:.3f}") for part in parts),
                ("available", "not known" if limit is None else f"{limit / GIB:.3f}"),
            ],
        ),
        "",
    ]
    if found.out_of_memory is None:
        lines += [_collectives_table(found), ""]
        lines += _roofline(found)
    if found.fits:
        return "\n".join([*lines, "it fits" if limit else "whether it fits is not known"])
    lines.append(f"IT DOES NOT FIT. {found.out_of_memory or ''}".strip())
    state = bytes_per_device(found.setup.abstract_state)
    examples = experiment.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    accumulate = experiment.step.accumulate
    lines.append("what helps:")
    if limit is not None and state > limit / 4:
        lines.append(
            f"- the state takes {state / GIB:.2f} GiB: split it over more devices, "
            f"--mesh.fsdp {2 * mesh.shape['fsdp']}"
        )
    lines.append(
        "- recompute in the backward pass: the model's own remat, block by block (full keeps "
        "least), or --step.remat"
    )
    if examples > accumulate:
        lines.append(f"- accumulate the gradient: --step.accumulate {2 * accumulate}")
    lines.append(f"- a smaller batch, or more devices: each has {examples} example(s) now")
    return "\n".join(lines)


def _collectives_table(found: Compiled) -> str:
    """Sum the collectives by kind, number of devices and network."""
    sums: dict[tuple[str, int, bool], tuple[int, float]] = {}
    for c in found.collectives:
        key = (c.kind, c.devices, c.between_slices)
        count, sent = sums.get(key, (0, 0.0))
        sums[key] = (count + c.count, sent + c.sent)
    rows = [
        (kind, str(size), "between slices" if across else "in a slice", str(count), _mib(sent))
        for (kind, size, across), (count, sent) in sorted(sums.items())
    ]
    rows.append(("all", "", "", str(sum(c.count for c in found.collectives)), _mib(found.sent())))
    return report.table(
        ("collective", "devices", "network", "in a step", "MiB that a device sends"), rows
    )


def _roofline(found: Compiled) -> list[str]:
    """Return the least times by published rates; nothing here was measured."""
    chip = found.chip
    if chip is None:
        return []
    flops, per_call = found.setup.flops, found.setup.experiment.step.per_call
    lines = [
        "least time of a call by published rates (not measured): "
        f"{1e3 * per_call * flops / found.setup.mesh.size / chip.flops:.1f} ms of model FLOPs"
    ]
    for rate, across, network in (
        (chip.network, False, "in a slice"),
        (chip.between_slices, True, "between slices"),
    ):
        sent = found.sent(between_slices=across)
        if rate is not None and sent:
            lines[0] += f", {1e3 * sent / rate:.1f} ms of sending {network}"
    return [*lines, ""]


def _mib(count: float) -> str:
    return f"{count / 2**20:.2f}"


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
