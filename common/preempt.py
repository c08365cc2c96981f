"""SIGTERM and Ctrl-C, honoured by all processes at the same step boundary; a watchdog for hangs."""

import faulthandler
import itertools
import os
import signal
import threading
import time
import types
from typing import Any, ClassVar, Self

import jax
from jax.experimental import multihost_utils

_boundaries = itertools.count()
"""Numbers the step boundaries of this process, over all of its runs: all processes count alike."""


class Preempted(SystemExit):
    """The run was asked to stop, saved its state, and can be resumed by the same command.

    Exits with 143, the conventional status of a program that ended on SIGTERM, so that
    a supervisor can tell "stopped, start me again" from "finished" (0).
    """

    def __init__(self, message: str) -> None:
        super().__init__(143)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Context manager that turns SIGTERM, and the first Ctrl-C, into an answer of `due`.

    A signal that comes during compilation, evaluation or a step is honoured at the next step
    boundary. One that comes too late for this run is honoured by the next run of the process. A
    second Ctrl-C interrupts at once. Outside the main thread, where Python cannot install handlers,
    a process alone is never asked to stop.

    Of several processes one signal is enough. JAX catches SIGTERM from its start-up on, looks for
    it once a second, and makes the processes agree on a boundary that none of them has reached yet;
    that, too, may be a boundary of the next run.
    """

    _requested: ClassVar[bool] = False
    """Whether the process was asked to stop; it outlives the run that caught the signal."""

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}

    def due(self) -> bool:
        """Whether to stop here. All processes call this at the same boundaries, in order."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(next(_boundaries))
        return self._requested

    def due_in_wait(self) -> bool:
        """Whether to stop before the next step begins; of several processes none decides alone."""
        return self._requested and not jax.distributed.is_initialized()

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if signum == signal.SIGINT and self._requested:
            signal.default_int_handler(signum, frame)
        StopRequest._requested = True
        if jax.distributed.is_initialized():  # Ctrl-C becomes what JAX looks for
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ours = [signal.SIGINT]
            if not jax.distributed.is_initialized():
                ours.append(signal.SIGTERM)
            for signum in ours:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if kind is not None and not issubclass(kind, Exception):  # Preempted, or a second Ctrl-C
            StopRequest._requested = False


class Watchdog:
    """Context manager that ends a process which has not been `alive` for some seconds.

    The stacks of all threads go to standard error. This works while Python itself is stuck in a
    collective that never comes back.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._due = 0.0

    def alive(self) -> None:
        """Start the clock anew; called at every step boundary."""
        if self._seconds is None or time.monotonic() < self._due:
            return
        # 2 is standard error itself, whatever Python has put in its place.
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)
        # The clock is a thread of its own, too expensive for each of many short steps.
        self._due = time.monotonic() + self._seconds / 10

    def __enter__(self) -> Self:
        self.alive()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()
