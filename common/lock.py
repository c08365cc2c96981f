"""One writer for each work folder: a lock that names its process, and shows that it lives."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any, Self

import jax

from common.files import PathLike, absolute, explained, is_remote, replace

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""How often the holder of a lock shows that it lives."""
SILENT_SECONDS = 60.0
"""Silence after which a holder on another host counts as dead."""


class WorkdirLock:
    """Context manager that keeps other runs out of a work folder, on a disk or in a bucket.

    The lock is `workdir/lock.json`, written and renewed by the first process of a run, and removed
    at the end. A run that was killed leaves it behind. On the same host the next start sees that
    the process is dead, and takes the lock over at once. On another host that cannot be seen: the
    start watches the lock for `SILENT_SECONDS`, and takes it over unless it is renewed. No clocks
    are compared.
    """

    def __init__(self, workdir: PathLike) -> None:
        self._path = absolute(workdir) / "lock.json"
        self._own = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "began": _began(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
          RuntimeError: if another run holds it.
        """
        if jax.process_index() != 0:
            return self
        while not self._create():
            if (holder := self._read()) is None:
                continue  # released meanwhile
            if self._lives(holder):
                raise RuntimeError(
                    f"another run writes to {self._path.parent}: process {holder['pid']} on "
                    f"{holder['host']}; wait for its end, or choose another workdir"
                )
            logger.warning(
                "process %s on %s is dead: its lock of %s is taken over",
                *(holder["pid"], holder["host"], self._path.parent),
            )
            self._path.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(BEAT_SECONDS)
            with contextlib.suppress(OSError):
                if self._read() is not None and self._is_own():
                    self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Check that no other run has taken the lock over, because it thought this one dead.

        Raises:
          RuntimeError: if one has.
        """
        with contextlib.suppress(OSError):
            if self._thread is not None and not self._is_own():
                raise RuntimeError(
                    f"another run has taken over {self._path.parent}, since this one did not show "
                    f"for {SILENT_SECONDS:g} s that it lives; it goes on there, and this one ends"
                )

    def _create(self) -> bool:
        """Write the lock if there is none; where files can be linked, one of several starts can."""
        content = json.dumps(self._own | {"beat": 0}).encode()
        with explained(self._path):
            if not is_remote(self._path):
                draft = pathlib.Path(f"{self._path}.{self._own['token']}")
                draft.write_bytes(content)
                try:
                    os.link(draft, self._path)  # appears with its content, or not at all
                    return True
                except FileExistsError:
                    return False
                except OSError:  # as on a bucket that is mounted as a folder
                    pass
                finally:
                    draft.unlink()
            if self._path.exists():
                return False
            # Of two that come here at once the second has the lock; `check` tells the first.
            replace(self._path, content)
            return True

    def _read(self) -> dict[str, Any] | None:
        """Return the content of the lock; None if there is none.

        Raises:
          RuntimeError: if it was not written by a run.
        """
        try:
            found: dict[str, Any] = json.loads(self._path.read_bytes())
            if found.keys() == {*self._own, "beat"}:
                return found
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError):
            pass
        raise RuntimeError(f"{self._path} is not the lock of a run; remove it")

    def _is_own(self) -> bool:
        """Whether no other process holds the lock; a lock that was removed is written again."""
        found = self._read()
        return found is None or found["token"] == self._own["token"]

    def _lives(self, holder: dict[str, Any]) -> bool:
        """Whether the holder lives; of one on another host, whether it renews the lock."""
        if holder["machine"] == self._own["machine"]:
            return _began(holder["pid"]) == holder["began"]
        logger.warning(
            "process %s on %s holds %s; waiting %g s for a sign of life",
            *(holder["pid"], holder["host"], self._path, SILENT_SECONDS),
        )
        end = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < end:
            time.sleep(SILENT_SECONDS / 60)
            found = self._read()
            if found is None or found["token"] != holder["token"]:
                return found is not None
            if found["beat"] != holder["beat"]:
                return True
        return False

    def _renew(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if not self._is_own():
                    return
                beat += 1
                replace(self._path, json.dumps(self._own | {"beat": beat}).encode())


def _machine() -> str:
    """Name the machine and, in a container, its own numbering of processes."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _began(pid: int) -> str | None:
    """Return when a process of this machine began; None if it is dead.

    The time tells it from a later process of the same number.
    """
    try:
        # What follows the name, which may hold anything: the state, 18 fields, then the time.
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if pathlib.Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except OSError as error:
            return None if isinstance(error, ProcessLookupError) else "unknown"
        return "unknown"
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
