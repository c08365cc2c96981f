"""A sweep: one run for every combination of some settings' values, and a table of their results."""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shlex
import textwrap
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from common import distributed, report
from common.config import to_json
from common.files import PathLike, replace
from common.writers import json_number

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep."""

    settings: Mapping[str, str]
    """The swept fields, with their values as they were written."""
    config: Any
    """The config of the run."""

    @property
    def digest(self) -> str:
        """What tells this config from another."""
        return hashlib.sha256(to_json(self.config).encode()).hexdigest()[:16]


def grid_points(grid: Sequence[str]) -> list[dict[str, str]]:
    """Return all combinations of values.

    Args:
      grid: `FIELD=VALUE,VALUE,...` each; a value of several words, as `8 8`, is a tuple.

    Raises:
      ValueError: for what has not this form, a field or a value that comes twice, and the workdir,
        which every point has for itself.
    """
    values: dict[str, list[str]] = {}
    for text in grid:
        field, equals, listed = text.partition("=")
        if not (field and equals and listed):
            raise ValueError(
                f"--grid {text!r} is not FIELD=V1,V2,..., e.g. optim.learning_rate=1e-3,3e-3"
            )
        if field == "workdir":
            raise ValueError(
                "workdir cannot be swept: every point has a folder of its own below it"
            )
        if field.replace("-", "_") in (known.replace("-", "_") for known in values):
            raise ValueError(f"--grid names {field} twice; list all its values in one")
        values[field] = listed.split(",")
        if len(set(values[field])) < len(values[field]):
            raise ValueError(f"--grid {text} lists a value twice")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def overrides(settings: Mapping[str, str]) -> list[str]:
    """Return the settings of a point as arguments of the command line."""
    try:
        return [
            part
            for field, value in settings.items()
            for part in (f"--{field}", *shlex.split(value))
        ]
    except ValueError as error:
        raise ValueError(f"--grid {settings}: {error}") from None


def folder_name(settings: Mapping[str, str]) -> str:
    """Return the name of a point's folder, another one for every point."""
    text = ",".join(f"{field}={value}" for field, value in settings.items())
    return urllib.parse.quote(text, safe=" ,=+")


def sweep(run: Callable[[Any], Any], points: Sequence[Point], folder: PathLike) -> None:
    """Run all points, and write `sweep.json` and `sweep.md` after each.

    Points that are complete there, with the same config, are not run again. One that fails is
    written down with its error, and the sweep goes on.

    Args:
      run: trains a config and returns its `Result`, or a mapping of numbers.
      points: the runs, each with a workdir of its own.
      folder: where the results are written.

    Raises:
      RuntimeError: after all, if points have failed.
    """
    path = epath.Path(folder) / "sweep.json"
    known = (
        {row.get("config"): row for row in json.loads(path.read_text())} if path.exists() else {}
    )
    complete = distributed.agree(
        [i for i, p in enumerate(points) if "metrics" in known.get(p.digest, {})]
    )
    rows = {i: known[points[i].digest] for i in complete}
    for i, point in enumerate(points):
        print(f"[{i + 1}/{len(points)}] {dict(point.settings)}", end=" ", flush=True)
        if i in rows:
            print("is complete", flush=True)
            continue
        print(f"-> {point.config.workdir}", flush=True)
        row: dict[str, Any] = {"settings": dict(point.settings), "config": point.digest}
        try:
            result = run(point.config)
            numbers = result if isinstance(result, Mapping) else result.metrics
            row["metrics"] = {name: json_number(float(x)) for name, x in numbers.items()}
        except Exception as error:
            # Of several processes, those that did not fail would wait for this one in a collective;
            # they agree about a loss that is not finite.
            if jax.process_count() > 1 and not isinstance(error, FloatingPointError):
                raise
            logger.exception("the point failed, and the sweep goes on")
            row["error"] = f"{type(error).__name__}: {error}"
        rows[i] = row
        if jax.process_index() == 0:
            ordered = [rows[i] for i in sorted(rows)]
            replace(path, (json.dumps(ordered, indent=2) + "\n").encode())
            replace(epath.Path(folder) / "sweep.md", (_table(ordered) + "\n").encode())
    if jax.process_index() == 0:
        where = os.fspath(folder)
        print(_table([rows[i] for i in sorted(rows)]))
        print(f"\nwritten to {where}/sweep.json and {where}/sweep.md")
    failed = [folder_name(row["settings"]) for row in rows.values() if "error" in row]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(points)} points failed ({'; '.join(failed)}); the same command "
            "runs these again"
        )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of all points."""
    lines = []
    for row in rows:
        lines.append(row["settings"] | row.get("metrics", {}))
        if "error" in row:
            lines[-1]["error"] = textwrap.shorten(row["error"], 120).replace("|", "\\|")
    columns = list(dict.fromkeys(name for line in lines for name in line))
    cells = [
        [f"{x:.4g}" if isinstance(x := line.get(c, ""), float) else str(x) for c in columns]
        for line in lines
    ]
    return report.table(columns, cells)
