"""What accelerators can do, by their vendors' data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Published rates of one JAX device."""

    name: str
    """What its `device_kind` contains."""
    flops: float
    """Dense bfloat16 peak, FLOP/s."""
    memory: float | None = None
    """Memory of the device, bytes."""
    network: float | None = None
    """What a device can send to others of its slice, bytes/s, over all links in one direction."""
    between_slices: float | None = None
    """What a device can send to other slices, bytes/s."""


GIB = 2**30

# The first chip whose name the device kind contains counts: variants stand before the plain name.
# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture", 2026-11: half of the
# bidirectional bandwidth of the interconnect, and of the data-center network a chip's share.
# GPUs: NVIDIA's data sheets, SXM where nothing else is said.
CHIPS = (
    Chip(name="TPU v4", flops=275e12, memory=32 * GIB),
    Chip(name="TPU v5 lite", flops=197e12, memory=16 * GIB, network=200e9, between_slices=3.125e9),
    Chip(name="TPU v5e", flops=197e12, memory=16 * GIB, network=200e9, between_slices=3.125e9),
    Chip(name="TPU v5", flops=459e12, memory=95 * GIB, network=600e9, between_slices=6.25e9),  # v5p
    Chip(name="TPU v6", flops=918e12, memory=32 * GIB, network=400e9),  # v6e
    Chip(name="H100 PCIe", flops=756e12, memory=80 * GIB),
    Chip(name="H100 NVL", flops=835e12, memory=94 * GIB),
    Chip(name="H100", flops=989e12, memory=80 * GIB, network=450e9),
    Chip(name="H200", flops=989e12, memory=141 * GIB, network=450e9),
    Chip(name="A100", flops=312e12, network=300e9),
)


def find_chip(device_kind: str) -> Chip | None:
    """Return what is known of a device by its `device_kind`; None for one not in the table."""
    kind = device_kind.lower()
    return next((chip for chip in CHIPS if chip.name.lower() in kind), None)
