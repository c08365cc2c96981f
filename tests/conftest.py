"""Eight simulated devices, a shared compile cache and checked shapes for the whole suite."""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import beartype
import jax
import jaxtyping
import pytest

jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function check shapes and types of its arrays; its other annotations are for mypy."""
    hints = function.__annotations__.items()
    function.__annotations__ = {k: hint for k, hint in hints if "jaxtyping." in repr(hint)}
    return beartype.beartype(function) if function.__annotations__ else function


CHECKED = (
    "alignment.judgments",
    "alignment.losses",
    "alignment.vit",
    "born_mlp",
    "common.mesh",
    "common.metrics",
    "common.nn",
    "common.optim",
    "common.perf",
    "common.rng",
    "common.step",
    "common.transforms",
    "molt5_multitask.blocks",
    "molt5_multitask.decoding",
    "molt5_multitask.incremental",
    "molt5_multitask.losses",
    "molt5_multitask.model",
)
"""Packages and modules whose annotations of arrays are checked at each call, in this process."""

jaxtyping.install_import_hook(CHECKED, f"{__name__}.check_shapes")


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """For tests of what a function says by itself about arrays of a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
