"""The compiler for TPUs, which the extra [aot] brings; programs for absent devices are not kept."""

import importlib.util

import jax
import pytest


@pytest.fixture(autouse=True)
def _compiler():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the extra [aot]")
    kept = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", kept)
