"""What runs left in their work folders: time accounts, curves, and what differs between two."""

import itertools
import json
import math
import os
import statistics
from collections.abc import Sequence

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import report
from common.config import diff
from common.files import PathLike
from common.goodput import Account
from common.writers import read_log

LOSS = "train/loss"
Curves = dict[str, list[tuple[int, float]]]
"""The `(step, value)` pairs of each metric."""


def show(workdir: PathLike) -> str:
    """Account for the wall time of a run, and draw its loss over it into `goodput.png`.

    Returns:
      Markdown.

    Raises:
      ValueError: if the folder is not that of a run.
    """
    account = Account.read(workdir)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    _draw_wall_time(axes, account, "", color=None)
    _save(figure, epath.Path(workdir) / "goodput.png")
    lines = [account.table(), ""]
    lines += [f"{name}: {value}" for name, value in _speed(workdir, account).items()]
    return "\n".join([*lines, f"loss over wall time: {os.fspath(workdir)}/goodput.png"])


def compare(workdirs: Sequence[PathLike]) -> str:
    """Set the last metrics of runs beside each other, and draw their curves.

    The figure goes to `compare.png` in the last of the folders.

    Args:
      workdirs: two or more; configs are compared with the first.

    Returns:
      Markdown: the numbers, then the settings that differ.

    Raises:
      ValueError: if a folder is not that of a run.
    """
    names = _short_names(workdirs)
    accounts = [Account.read(workdir) for workdir in workdirs]
    curves = [read_curves(workdir) for workdir in workdirs]
    shared = [
        name
        for name in dict.fromkeys(itertools.chain.from_iterable(curves))
        if not name.startswith("perf/") and sum(name in c for c in curves) > 1
    ]
    rows = [
        (name, *(f"{c[name][-1][1]:.5g}" if name in c else "" for c in curves)) for name in shared
    ]
    speeds = [_speed(*pair) for pair in zip(workdirs, accounts, strict=True)]
    rows += [
        (name, *(s.get(name, "") for s in speeds))
        for name in dict.fromkeys(itertools.chain.from_iterable(speeds))
    ]

    panels = [LOSS, "wall", *(name for name in shared if not name.startswith("train/"))][:8]
    columns = min(4, len(panels))
    figure = Figure(
        figsize=(4 * columns, 3.2 * math.ceil(len(panels) / columns)), layout="constrained"
    )
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
    for axes, panel in itertools.zip_longest(grid, panels):
        if panel is None:
            axes.set_axis_off()
        elif panel == "wall":
            for i, (name, account) in enumerate(zip(names, accounts, strict=True)):
                _draw_wall_time(axes, account, name, color=f"C{i}")
        else:
            for i, (name, curve) in enumerate(zip(names, curves, strict=True)):
                if panel in curve:
                    axes.plot(*zip(*curve[panel], strict=True), color=f"C{i}", label=name)
            axes.set(xlabel="step", ylabel=panel)
            _log_if_positive(axes, [y for c in curves for _, y in c.get(panel, ())])
    figure.axes[0].legend()
    target = epath.Path(workdirs[-1]) / "compare.png"
    _save(figure, target)

    configs = [json.loads((epath.Path(w) / "config.json").read_text()) for w in workdirs]
    settings = [
        f"- {name}: {key} = {new!r} (in {names[0]}: {old!r})"
        for name, config in zip(names[1:], configs[1:], strict=True)
        for key, (old, new) in diff(configs[0], config).items()
    ]
    return "\n".join(
        [report.table(("", *names), rows), "", *settings, f"figure: {os.fspath(target)}"]
    )


def read_curves(workdir: PathLike) -> Curves:
    """Read the log of a run.

    Raises:
      ValueError: if there is none.
    """
    curves: Curves = {}
    for step, values in read_log(workdir):
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))
    if not curves:
        raise ValueError(f"{os.fspath(workdir)} holds no metrics.jsonl: it is no run's folder")
    return curves


def _speed(workdir: PathLike, account: Account) -> dict[str, str]:
    """Return the summary of an account, with the median utilisation where it was logged."""
    found = {"wall time": f"{account.wall_seconds:.0f} s", "goodput": f"{account.goodput:.1%}"}
    if account.steps_per_second is not None:
        found["steps/s in training"] = f"{account.steps_per_second:.4g}"
    if mfu := read_curves(workdir).get("perf/mfu"):
        found["model FLOPs utilisation"] = f"{statistics.median(v for _, v in mfu):.1%}"
    return found


def _draw_wall_time(axes: Axes, account: Account, label: str, *, color: str | None) -> None:
    """Draw the loss over wall time; what was lost is pale, and restarts are marked."""
    origin = account.starts[0].lines[0]["time"]
    for number, start in enumerate(account.starts):
        points = [
            ((line["time"] - origin) / 60, line["loss"], line["step"])
            for line in start.lines
            if line["loss"] is not None
        ]
        if points:
            kept = start.last_step - start.lost_steps
            minutes, losses, _ = zip(*points, strict=True)
            shade = color or f"C{number}"
            axes.plot(minutes, losses, color=shade, alpha=0.3)
            solid = [(x, y) for x, y, step in points if step <= kept]
            if solid:
                axes.plot(*zip(*solid, strict=True), color=shade, label=label)
                label = ""
        if number:
            axes.axvline((start.lines[0]["time"] - origin) / 60, color="gray", ls=":", lw=1)
    axes.set(xlabel="minutes since the first start (dotted: restarts)", ylabel=LOSS)
    logged = [x["loss"] for s in account.starts for x in s.lines if x["loss"] is not None]
    _log_if_positive(axes, logged)


def _log_if_positive(axes: Axes, values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
        axes.set_yscale("log")


def _short_names(workdirs: Sequence[PathLike]) -> list[str]:
    """Return the last parts of the paths, as many as tell them apart."""
    parts = [os.fspath(w).rstrip("/").split("/") for w in workdirs]
    count = next(
        n for n in itertools.count(1) if n > 20 or len({tuple(p[-n:]) for p in parts}) == len(parts)
    )
    return ["/".join(p[-count:]) for p in parts]


def _save(figure: Figure, path: epath.Path) -> None:
    with path.open("wb") as file:
        figure.savefig(file, dpi=150, format="png")
