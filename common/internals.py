"""Every private name of JAX that this code uses, because no public one does the same.

A new version of JAX may move them. Each is looked up here, when it is needed, and what is missing
ends in one message that names it.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import jax


def _private(module: str, name: str) -> Any:
    """Look up an attribute of a private module of JAX.

    Raises:
      ImportError: naming it, where this version of JAX does not have it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ImportError(
            f"jax {jax.__version__} has no {module}.{name}, a private name that "
            "common/internals.py relies on; install a version of jax that pyproject.toml allows "
            "(pip install -c constraints.txt ...), or change that file to what replaced the name"
        ) from None


def backends_are_initialized() -> bool:
    """Whether JAX has started to use its devices; the public ways to ask would start them."""
    found: bool = _private("jax._src.xla_bridge", "backends_are_initialized")()
    return found


def coordination() -> Any:
    """Return what joins the processes: `client` (None in one process), `process_id`, address.

    Its client has barriers with a timeout, which `jax.experimental.multihost_utils` has not.
    """
    return _private("jax._src.distributed", "global_state")


def detect_cluster(
    coordinator: str | None, processes: int | None, process: int | None, timeout: int
) -> tuple[str | None, int | None, int | None]:
    """Fill in what is None from the cluster that this process is in; None where there is none.

    `jax.distributed.initialize` does this too, but starts its service at once.
    """
    clusters = _private("jax._src.clusters", "ClusterEnv")
    found = clusters.auto_detect_unset_distributed_params(
        coordinator, processes, process, None, None, timeout
    )
    return found[0], found[1], found[2]


@contextlib.contextmanager
def registration_timeout(seconds: int) -> Iterator[None]:
    """Have the coordinator wait for processes to register, and name the missing, for a while.

    `jax.distributed.initialize` has no argument for how long.
    """
    runtime = _private("jax._src.distributed", "_jax")
    service = runtime.get_distributed_runtime_service
    runtime.get_distributed_runtime_service = functools.partial(
        service, cluster_register_timeout=seconds
    )
    try:
        yield
    finally:
        runtime.get_distributed_runtime_service = service
