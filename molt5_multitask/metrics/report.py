"""Scores as JSON, and as Markdown beside the published results they may be compared with."""

import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from molt5_multitask.metrics.published import TABLES, Table
from molt5_multitask.metrics.scores import Scores
from molt5_multitask.metrics.tokens import TokenKind
from molt5_multitask.tasks import Seq2SeqTask


def write(
    folder: pathlib.Path, name: str, task: Seq2SeqTask, scores: Scores, *, tokens: TokenKind
) -> str:
    """Write `scores.json` and `scores.md`; return the Markdown.

    Args:
      folder: where to.
      name: what the system is called.
      task: the task.
      scores: its scores.
      tokens: tokens of the captions, by which the published rows are chosen.
    """
    content = {
        "name": name,
        "task": task.name,
        "metrics": {key: None if math.isnan(v) else v for key, v in scores.values.items()},
        "metrics over all rows": over_all_rows(scores),
        "missing": dict(scores.missing),
        "counts": dict(scores.counts),
        "notes": dict(scores.notes),
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    text = markdown(name, task, scores, tokens=tokens)
    (folder / "scores.md").write_text(text, "utf-8")
    return text


def markdown(name: str, task: Seq2SeqTask, scores: Scores, *, tokens: TokenKind) -> str:
    """Return all scores, what they depend on, and tables beside published results."""
    parts = [f"# {name}: {task.name}", _all(scores)]
    notes = [f"{what}: {number:,}" for what, number in scores.counts.items()]
    notes += [f"{what}: {text}" for what, text in scores.notes.items()]
    parts.append("\n".join(f"- {note}" for note in notes))
    if scores.missing:
        missing = [f"- {metric}: {needs}" for metric, needs in scores.missing.items()]
        parts.append("\n".join(["Missing:", "", *missing]))
    for published in TABLES:
        if published.task == task.name and published.tokens in (None, tokens):
            parts += [f"## Published on: {published.title}", _beside(name, scores, published)]
    return "\n\n".join(parts) + "\n"


def _all(scores: Scores) -> str:
    everywhere = over_all_rows(scores)
    rows = []
    for metric, value in scores.values.items():
        of_row = scores.per_row.get(metric)
        over = "" if of_row is None else f"{np.isfinite(of_row).sum():,} rows"
        if metric in everywhere:
            over += f" ({number(everywhere[metric])} over all, the others 0)"
        rows.append([metric, number(value), over])
    rows += [[metric, "n/a", ""] for metric in scores.missing]
    return table(["metric", "value", "mean of"], rows)


def over_all_rows(scores: Scores) -> dict[str, float]:
    """Return the means that leave rows out once more over all rows, those left out as 0.

    The two denominators must not be confused: published similarities are over the valid outputs.
    """
    return {
        metric: float(np.nan_to_num(values).mean())
        for metric, values in scores.per_row.items()
        if np.isnan(values).any()
    }


def _beside(name: str, scores: Scores, published: Table) -> str:
    ours = [
        number(scores.values[column]) if column in scores.values else "n/a"
        for column in published.columns
    ]
    rows = [[f"**{name}**", *ours]]
    rows += [[system, *values.split()] for system, values in published.rows.items()]
    return table(["system", *published.columns], rows)


def number(value: float) -> str:
    """Write a score with four decimals."""
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
