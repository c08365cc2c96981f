"""The processes of a run: start-up, roll call, barriers and the end of all when one fails."""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from common import internals
from common.preempt import Preempted

STARTUP_SECONDS = 300
"""How long processes wait for each other at the start; JAX_STARTUP_TIMEOUT sets another."""
HEARTBEAT_SECONDS = 100
"""Silence after which a process counts as dead; JAX_HEARTBEAT_TIMEOUT sets another."""
SHUTDOWN_SECONDS = 24 * 3600
"""How long finished processes wait for the last. A process that fails ends all others at once."""


_agreements = itertools.count()
"""Numbers the calls of `agree`, which all processes make in the same order."""


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int | None = None,
) -> None:
    """Join the other processes of the run, before any device is used.

    What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID and
    JAX_STARTUP_TIMEOUT, or else from the cluster that JAX finds itself in: Cloud TPU, GKE, SLURM or
    Open MPI. Where there is none of it, as on a laptop, nothing happens; nor for a single process,
    be it of a cluster: two commands in one SLURM step would end each other; nor in a process that
    uses its devices already, such as a notebook.

    When a process does not come in time, those that did are ended by JAX with a message that names
    the missing ones ("Some timed out task names: 3").

    Args:
      coordinator: `host:port` of process 0.
      processes: number of processes.
      process: number of this one.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: if some of the three are given and the others cannot be found.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _number("JAX_NUM_PROCESSES") if processes is None else processes
    process = _number("JAX_PROCESS_ID") if process is None else process
    timeout = timeout or _number("JAX_STARTUP_TIMEOUT") or STARTUP_SECONDS
    given = [value is not None for value in (coordinator, processes, process)]
    in_use = internals.backends_are_initialized() and not any(given)
    if in_use or processes == 1 or jax.distributed.is_initialized():
        return
    if None in (coordinator, processes, process):
        # JAX would start its service for a single process, too.
        coordinator, processes, process = internals.detect_cluster(
            coordinator, processes, process, timeout
        )
        if processes == 1 or (processes is None and not any(given)):
            return
    patience = threading.Timer(timeout / 4, _say_waiting, (timeout,))
    patience.daemon = True
    patience.start()
    try:
        with internals.registration_timeout(timeout):
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                # The coordinator's answer, which says more than "deadline exceeded", comes first.
                initialization_timeout=timeout + 10,
                heartbeat_timeout_seconds=_number("JAX_HEARTBEAT_TIMEOUT") or HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except ValueError as error:
        if any(given):
            raise ValueError(
                f"{error} Several processes need JAX_COORDINATOR_ADDRESS (host:port of process 0), "
                "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or a cluster that JAX knows"
            ) from None
    finally:
        patience.cancel()


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{variable} = {text!r} must be a whole number")
    return int(text)


def _say_waiting(timeout: int) -> None:
    state = internals.coordination()
    print(
        f"process {state.process_id} waits for the others at {state.coordinator_address}, "
        f"for {timeout} s at most",
        file=sys.stderr,
        flush=True,
    )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Start, and end all processes as soon as one fails.

    A process that fails must not wait at its exit for the others: they wait for it in a collective.
    Once it is gone, the runtime ends them, and whoever supervises the run starts all anew.
    """
    try:
        start()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)  # as for other settings that do not fit
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized() or isinstance(error, Preempted):
            raise
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else 1
        else:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def barrier(name: str, *, timeout: float | None = None) -> None:
    """Wait until every process is here.

    Args:
      name: which barrier, for the message.
      timeout: seconds to wait; as long as at the start by default.

    Raises:
      TimeoutError: naming the processes that did not come.
    """
    client = internals.coordination().client
    if client is None:
        return
    timeout = timeout or _number("JAX_STARTUP_TIMEOUT") or STARTUP_SECONDS
    try:
        client.wait_at_barrier(name, int(1000 * timeout))
    except jax.errors.JaxRuntimeError as error:
        late = re.search(r"timed out task names:\s*((?:\S*\d+\s)+)", str(error))
        who = ", ".join(late[1].split()) if late else "unknown"
        raise TimeoutError(
            f"process {jax.process_index()} waited {timeout:g} s at {name!r} for process {who}: "
            f"late or dead; its log says more ({str(error).splitlines()[0]})"
        ) from None


def agree(value: Any) -> Any:
    """Return the value of process 0, of JSON's types, on every process; to be called by all.

    It travels through the coordinator, so that the devices are not waited for.
    """
    client = internals.coordination().client
    if client is None:
        return value
    key = f"agree/{next(_agreements)}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    # What process 0 does before, such as an evaluation, may take long; its death shows by itself.
    return json.loads(client.blocking_key_value_get(key, 1000 * SHUTDOWN_SECONDS))


def all_true(value: bool) -> bool:
    """Whether the value is true on every process; to be called by all."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def check_same(text: str, what: str) -> None:
    """Refuse a text that differs between processes; to be called by all.

    Raises:
      ValueError: on every process, naming those that differ from process 0.
    """
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    others = ", ".join(map(str, np.flatnonzero(sums != np.ravel(sums)[0])))
    if others:
        raise ValueError(
            f"the {what} of process {others} differs from that of process 0: start every process "
            "with the same command and the same files"
        )


def to_host(tree: Any) -> Any:
    """Fetch arrays, wherever their parts are, as NumPy arrays of every process.

    To be called by all processes: parts that others hold are sent around.
    """

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)
