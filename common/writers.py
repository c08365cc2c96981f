"""Where the numbers of a run go: a JSONL log, TensorBoard, Weights & Biases, and a manifest."""

import collections
import contextlib
import importlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import directory_check

from common.files import AppendingFile, PathLike, explained, replace

_PACKAGES = ("jax", "jaxlib", "optax", "orbax-checkpoint", "numpy", "flax", "jax-three-papers")

LOG = "metrics.jsonl"
"""Name of the log in the work folder."""
FLUSH_SECONDS = 30.0
"""How long TensorBoard's events may lie in memory: to a bucket the whole file is sent each time."""


class Writer(Protocol):
    """Takes the scalars of a step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record `scalars`, which hold after `step` steps."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


class JsonlWriter:
    """Appends one JSON object a line, `{"step": 100, "train/loss": 0.3}`, each written at once.

    Lines beyond `resume_step` are dropped, so that the log of a resumed run is that of an
    uninterrupted one; a last line that a crash tore is dropped with a warning. JSON has no
    non-finite numbers: they become the strings "NaN", "Infinity" and "-Infinity", which `float`
    of Python and `Number` of JavaScript read back.
    """

    def __init__(self, path: PathLike, *, resume_step: int = 0) -> None:
        """Open the log at `path`, keeping its lines up to `resume_step`.

        Raises:
          ValueError: if the file holds anything but such lines.
          OSError: if the file cannot be written.
        """
        self._path = epath.Path(path)
        with explained(path):
            if self._path.exists():
                self._drop_lines_after(resume_step)
        self._file = AppendingFile(path)

    def _drop_lines_after(self, step: int) -> None:
        old = self._path.read_bytes()
        *lines, torn = old.split(b"\n")
        kept = b"".join(
            line + b"\n" for i, line in enumerate(lines) if self._step_of(line, i + 1) <= step
        )
        kept += torn  # dropped when the file is opened
        if kept != old:
            replace(self._path, kept)

    def _step_of(self, line: bytes, number: int) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"line {number} of {self._path} is not a JSON object with a step; "
                "move the file away, or log to another folder"
            ) from None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append a line."""
        if "step" in scalars:
            raise ValueError('a scalar cannot be called "step", the key of the step itself')
        values = {name: json_number(float(value)) for name, value in scalars.items()}
        self._file.append((json.dumps({"step": step, **values}) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(workdir: PathLike) -> list[tuple[int, dict[str, float]]]:
    """Return the lines of the log in a work folder as `(step, scalars)`; none if there is no log.

    Raises:
      ValueError: if the file holds anything but such lines.
    """
    path = epath.Path(workdir) / LOG
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            values = {name: float(value) for name, value in json.loads(line).items()}
            lines.append((int(values.pop("step")), values))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"line {number} of {path} is not that of a run's log") from None
    return lines


class TensorBoardWriter:
    """Writes event files; TensorBoard hides what an earlier start wrote beyond `resume_step`.

    Without the threads of `tensorboardX.SummaryWriter`, which let the loop wait for ever once a
    full disk has ended them.
    """

    def __init__(self, folder: PathLike, *, resume_step: int = 0) -> None:
        self._folder = os.fspath(folder)
        with explained(folder):
            directory_check(self._folder)
            # Of two starts within a second the later would write over the earlier one's file.
            own = f".{uuid.uuid4().hex[:8]}"
            self._writer = EventsWriter(os.path.join(self._folder, "events"), own)
        self._flushed = -math.inf
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=resume_step + 1, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add each scalar as a point of its own curve."""
        values = [Summary.Value(tag=name, simple_value=float(x)) for name, x in scalars.items()]
        self._add(Event(step=step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        with explained(self._folder):
            self._writer.write_event(event)
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        with explained(self._folder):
            self._writer.close()


class WandbWriter:
    """Logs to Weights & Biases; every start in the same folder continues the same run."""

    def __init__(self, folder: PathLike, *, project: str, config: Mapping[str, Any]) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError:
            raise ImportError(
                "Weights & Biases needs its client: pip install 'jax-three-papers[wandb]'"
            ) from None
        id_file = epath.Path(folder) / "wandb_id"
        with explained(id_file):
            if not id_file.exists():
                replace(id_file, uuid.uuid4().hex.encode())
            run_id = id_file.read_text()
        self._run = wandb.init(
            project=project, id=run_id, resume="allow", dir=os.fspath(folder), config=dict(config)
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars; the service ignores steps before its last one."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Upload what is left and finish the run."""
        self._run.finish()


def make_writers(
    workdir: PathLike | None,
    *,
    resume_step: int = 0,
    tensorboard: bool = True,
    wandb_project: str | None = None,
    config: Mapping[str, Any],
) -> tuple[Writer, ...]:
    """Open the writers of a run: none without a folder, and none but on the first process.

    Args:
      workdir: folder of the run; `metrics.jsonl` and `tensorboard/` lie in it.
      resume_step: step at which this start begins; what was logged beyond it is dropped.
      tensorboard: write event files, too.
      wandb_project: project to log to; None does not.
      config: the resolved config, for Weights & Biases.
    """
    if workdir is None or jax.process_index() != 0:
        return ()
    folder = epath.Path(workdir)
    writers: list[Writer] = [JsonlWriter(folder / LOG, resume_step=resume_step)]
    if tensorboard:
        writers.append(TensorBoardWriter(folder / "tensorboard", resume_step=resume_step))
    if wandb_project is not None:
        writers.append(WandbWriter(folder, project=wandb_project, config=config))
    return tuple(writers)


def write_manifest(workdir: PathLike, config: Mapping[str, Any]) -> None:
    """Add to `workdir/manifest.json` what this start of the run is made of.

    The file is `{"starts": [...]}` with one entry for each start, resumed ones included: time,
    command line, versions, git commit, devices, XLA flags and the resolved, JSON-able config. Only
    the first process writes.

    Raises:
      ValueError: if the manifest there is not one.
      OSError: if the file cannot be written.
    """
    if jax.process_index() != 0:
        return
    path = epath.Path(workdir) / "manifest.json"
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            starts = json.loads(path.read_bytes())["starts"] if path.exists() else []
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not a run's manifest; move it away") from None
        starts.append(_describe_start() | {"config": config})
        replace(path, (json.dumps({"starts": starts}, indent=2) + "\n").encode())


def _describe_start() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": versions,
        **_git_state(),
        "platform": jax.default_backend(),
        "devices": dict(collections.Counter(device.device_kind for device in jax.devices())),
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _git_state() -> dict[str, Any]:
    """Commit of this source tree and whether tracked files differ; empty outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.path.dirname(__file__), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie inside some other project's checkout, which does not track it.
        git("ls-files", "--error-unmatch", __file__)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"git": {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}}
    except (OSError, subprocess.CalledProcessError):
        return {}


def json_number(value: float) -> float | str:
    """Return a number as JSON has it; `float` of Python reads the names of the non-finite back."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
