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
SIMULATED = "--xla_force_host_platform_device_count"
SCHEDULER = "--xla_cpu_enable_concurrency_optimized_scheduler"
"""This scheduler of the CPU backend lets simulated devices start collectives in different orders.
Then each waits for the others, until XLA ends the process."""


def set_cpu_flags() -> None:
    """Set what XLA's CPU backend needs, unless XLA_FLAGS says something about it.

    With jaxlib 0.10.2, XLA compiles reductions itself; products of matrices still go to YNNPACK.
    Where several devices are simulated, their collectives start in the order of the program.
    Processes started from this one inherit the settings.
    """
    flags = _flags()
    missing = []
    if jaxlib.__version__ == WRONG and FLAG not in flags:
        missing.append(f"{FLAG}=-reduce")
    if SIMULATED in flags and SCHEDULER not in flags:
        missing.append(f"{SCHEDULER}=false")
    if not missing:
        return
    os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *missing])
    if internals.backends_are_initialized():
        warnings.warn(
            "XLA's CPU backend may compute sums wrongly, or hang where devices are simulated, and "
            "it is too late to prevent it here: import common before JAX is used, or set "
            f"XLA_FLAGS={' '.join(missing)!r}",
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
