"""Settings of XLA that results depend on, made when `common` is imported."""

import os
import warnings

import jaxlib
from jax._src import xla_bridge

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WRONG = "0.10.2"
"""This jaxlib hands reductions on a CPU to YNNPACK, whose sums are wrong or NaN for some shapes
(jax issues 39103, 39257). 0.10.1 does not yet do so."""


def keep_reductions_right() -> None:
    """Have XLA compile reductions on a CPU itself, unless XLA_FLAGS says what YNNPACK gets.

    Products of matrices still go to YNNPACK. Processes started from this one inherit the setting.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__ != WRONG or FLAG in flags:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()
    if xla_bridge.backends_are_initialized():
        warnings.warn(
            f"jaxlib {WRONG} computes some sums on a CPU wrongly, and it is too late to prevent it "
            f"here: import common before JAX is used, or set XLA_FLAGS={FLAG}=-reduce",
            stacklevel=2,
        )
