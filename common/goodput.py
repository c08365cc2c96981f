"""Where the wall time of a run went, over all its starts: an account that survives SIGKILL."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from etils import epath

from common import report
from common.files import AppendingFile
from common.perf import TRAINING
from common.writers import json_number

FILE = "goodput.jsonl"
"""Name of the account in the work folder."""


class GoodputLog:
    """Appends `{"start", "time", "step", "loss", "seconds"}` to the account of a run.

    Each line holds the seconds of its start so far, by activity, so that the last line of a start
    that was killed says all but what came after it. Only the first process writes.
    """

    def __init__(self, workdir: str | os.PathLike[str] | None) -> None:
        self._file: AppendingFile | None = None
        if workdir is None or jax.process_index() != 0:
            return
        path = epath.Path(workdir) / FILE
        lines = _read(path) if path.exists() else []
        self._start = 1 + max((line["start"] for line in lines), default=-1)
        self._file = AppendingFile(path)

    def write(self, step: int, seconds: Mapping[str, float], loss: float | None = None) -> None:
        """Record that `step` steps are done after these seconds."""
        if self._file is None:
            return
        number = None if loss is None else json_number(loss)
        line = {"start": self._start, "time": time.time(), "step": step, "loss": number}
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        self._file.append((json.dumps(line | {"seconds": rounded}) + "\n").encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run."""

    lines: Sequence[Mapping[str, Any]]
    """What was recorded, in order; the first line at its beginning."""
    lost_steps: int
    """Steps that it took and the next start took again."""
    lost_seconds: float
    """Time that those took, all activities together, as far as it was recorded."""
    down_seconds: float
    """From its last line to the next start: what was not recorded, and waiting for machines. Zero
    if the clock was set back meanwhile."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by activity."""
        return self.lines[-1]["seconds"]

    @property
    def first_step(self) -> int:
        """Step at which it began."""
        return self.lines[0]["step"]

    @property
    def last_step(self) -> int:
        """Last step that was recorded."""
        return self.lines[-1]["step"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """All starts of a run."""

    starts: Sequence[Start]
    """In order of time."""

    @classmethod
    def read(cls, workdir: str | os.PathLike[str]) -> "Account":
        """Read the account in a work folder.

        Raises:
          ValueError: if there is none, or it is not one.
        """
        path = epath.Path(workdir) / FILE
        if not path.exists():
            raise ValueError(f"{path.parent} holds no {FILE}: it is not the work folder of a run")
        groups = [list(g) for _, g in itertools.groupby(_read(path), key=lambda x: x["start"])]
        return cls(starts=list(_starts(groups)))

    @property
    def wall_seconds(self) -> float:
        """From the first start to the last line, the time between starts included."""
        return sum(sum(s.seconds.values()) + s.down_seconds for s in self.starts)

    @property
    def goodput(self) -> float:
        """Share of that time that went into steps whose results were kept."""
        useful = sum(s.seconds["step"] - s.lost_seconds for s in self.starts)
        return max(0.0, useful) / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def steps_per_second(self) -> float | None:
        """Steps over the time of training: without start-up, compiling, evaluation and saving."""
        steps = sum(s.last_step - s.first_step for s in self.starts)
        seconds = sum(s.seconds[activity] for s in self.starts for activity in TRAINING)
        return steps / seconds if steps and seconds else None

    def table(self) -> str:
        """Return a Markdown table of the starts."""
        activities = list(self.starts[0].seconds)
        rows = [
            (
                str(number),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.lines[0]["time"])),
                f"{start.first_step} - {start.last_step}",
                *(f"{start.seconds[a]:.1f}" for a in activities),
                f"{start.lost_seconds:.1f} ({start.lost_steps} steps)",
                f"{start.down_seconds:.1f}",
            )
            for number, start in enumerate(self.starts)
        ]
        return report.table(("start", "began", "steps", *activities, "lost", "then down"), rows)


def _starts(groups: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Start]:
    for lines, following in itertools.zip_longest(groups, groups[1:]):
        if following is None:
            yield Start(lines=lines, lost_steps=0, lost_seconds=0.0, down_seconds=0.0)
            continue
        resumed = following[0]["step"]
        kept = next(
            line for line in reversed(lines) if line["step"] <= max(resumed, lines[0]["step"])
        )
        yield Start(
            lines=lines,
            lost_steps=max(0, lines[-1]["step"] - resumed),
            lost_seconds=sum(lines[-1]["seconds"].values()) - sum(kept["seconds"].values())
            if lines[-1]["step"] > resumed
            else 0.0,
            down_seconds=max(
                0.0,
                following[0]["time"] - sum(following[0]["seconds"].values()) - lines[-1]["time"],
            ),
        )


def _total(line: Mapping[str, Any]) -> float:
    return sum(line["seconds"].values())


def _read(path: epath.Path) -> list[dict[str, Any]]:
    """Read the lines of an account; a last one that a crash tore is left out."""
    *lines, _ = path.read_text().split("\n")
    try:
        found = [json.loads(line) for line in lines]
        for line in found:
            line["loss"] = None if line["loss"] is None else float(line["loss"])  # "NaN" is one
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the account of a run ({error}); move it away") from None
    return found
