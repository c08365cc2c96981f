"""What the shipped configs need of pods that are not there.

A change that adds an all-gather, or doubles the memory, fails here: the bounds are what was found
when they were written and five percent. A better number is written down as the new bound.
"""

import pathlib

import pytest

from common import cli
from common.aot import compile_step, describe, find_devices
from common.chips import GIB

pytestmark = pytest.mark.aot

MIB = 2**20
SLACK = 1.05
BASE, XL = "molt5_multitask/base_packed.py", "molt5_multitask/xl_packed.py"
VIT_B, VIT_L = "alignment/vit_b16.py", "alignment/vit_l16.py"

# Config, topology of a slice, slices, overrides; GiB of a device, and MiB that it sends in a step.
BUDGETS = {
    "t5-base v5e-256": (
        (BASE, "v5e:16x16", 1, "--mesh.fsdp 16 --batch_size 2048"),
        (15.06, {"all-gather": 753, "all-reduce": 256, "reduce-scatter": 355}),
    ),
    "t5-base v5p-128": (
        (BASE, "v5p:4x4x8", 1, "--batch_size 1024"),
        (18.26, {"all-reduce": 961}),
    ),
    "t5-base two slices of v5e-16": (
        (BASE, "v5e:4x4", 2, "--mesh.fsdp 16 --batch_size 256"),
        (15.28, {"all-gather": 838, "all-reduce": 1078, "all-to-all": 11.25, "send": 52}),
    ),
    "t5-3b v5e-256": (
        (XL, "v5e:16x16", 1, "--mesh.fsdp 64"),
        (2.10, {"all-gather": 12537, "all-reduce": 441, "reduce-scatter": 5292, "all-to-all": 7.9}),
    ),
    "t5-3b v5p-128": (
        (XL, "v5p:4x4x8", 1, "--mesh.fsdp 32"),
        (3.77, {"all-gather": 12338, "all-reduce": 566, "reduce-scatter": 5208, "all-to-all": 8}),
    ),
    "vit-l v5e-64": (
        (VIT_L, "v5e:8x8", 1, "--mesh.fsdp 8"),
        (5.46, {"all-gather": 1012, "all-reduce": 258, "reduce-scatter": 1015}),
    ),
    "vit-b two slices of v5e-16": (
        (VIT_B, "v5e:4x4", 2, ""),
        (12.77, {"all-gather": 335, "all-reduce": 661, "reduce-scatter": 5, "send": 29}),
    ),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_budget(name):
    (config, topology, slices, overrides), (gib, budget) = BUDGETS[name]
    path = pathlib.Path(__file__).parents[2] / "configs" / config
    found = compile_step(cli.resolve(path, overrides.split()), find_devices(topology, slices))
    print(describe(found))
    assert found.fits
    assert found.memory / GIB <= SLACK * gib
    sent = {kind: found.sent(kind) / MIB for kind in {c.kind for c in found.collectives}}
    assert {k: mib for k, mib in sent.items() if mib > SLACK * budget.get(k, 0.5)} == {}
