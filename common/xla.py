"""What XLA must be told: settings that results depend on, and what to write to memory."""

import os
import pathlib
import warnings
from typing import TypeVar

import jax
import jaxlib

from common import internals

T = TypeVar("T")
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WRONG = "0.10.2"
"""This jaxlib, the last one for Python 3.11, hands reductions on a CPU to YNNPACK, whose sums are
wrong or NaN for some shapes (jax issues 39103, 39257). The sums of 0.12 are right."""


def keep_reductions_right() -> None:
    """Have XLA compile reductions on a CPU itself, unless XLA_FLAGS says what YNNPACK gets.

    Products of matrices still go to YNNPACK. Processes started from this one inherit the setting.
    """
    if jaxlib.__version__ != WRONG or FLAG in (flags := _flags()):
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()
    if internals.backends_are_initialized():
        warnings.warn(
            f"jaxlib {WRONG} computes some sums on a CPU wrongly, and it is too late to prevent it "
            f"here: import common before JAX is used, or set XLA_FLAGS={FLAG}=-reduce",
            stacklevel=2,
        )


def _flags() -> str:
    """Return the flags in XLA_FLAGS, which may name a file that holds them instead.

    Raises:
      OSError: if there is no such file.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if not flags or flags.startswith("-"):
        return flags
    return " ".join(pathlib.Path(flags).read_text().split())


def written_to_memory(tree: T) -> T:
    """Return arrays that XLA's CPU backend computes once; likewise their gradients.

    That backend computes what several fusions take anew in each of them, however much it is. A
    barrier makes it one array, which costs a write and reads of it. On accelerators, and where a
    program has no such repetition, it would only cost; there nothing changes.
    """
    return jax.lax.platform_dependent(
        tree, cpu=jax.lax.optimization_barrier, default=lambda tree: tree
    )
