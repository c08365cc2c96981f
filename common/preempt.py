"""SIGTERM and Ctrl-C, honoured at the next step boundary."""

import signal
import threading
import types
from typing import Any, Self


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
    """Context manager that turns SIGTERM, and the first Ctrl-C, into a flag.

    A signal that comes during compilation, evaluation or a step sets the flag; the loop looks at it
    at every step boundary. A second Ctrl-C interrupts at once. Outside the main thread, where
    Python cannot install handlers, the flag is never set.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if signum == signal.SIGINT and self.requested:
            signal.default_int_handler(signum, frame)
        self.requested = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
