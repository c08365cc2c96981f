"""What every metric gives back, and how it shows that it is at work."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sized
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

Item = TypeVar("Item")


class UnavailableError(Exception):
    """A metric needs something that is not there; the message says what, and how to get it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics of a set of predictions."""

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Metrics by name."""
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Metrics that could not be computed, each with what it needs."""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Numbers of rows of some kind, among them the denominators."""
    per_row: Mapping[str, Float[np.ndarray, " rows"]] = dataclasses.field(default_factory=dict)
    """Metrics of single rows; NaN where a row is left out of the mean."""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the numbers depend on: tokens, form of the references, versions, names of models."""

    def __or__(self, other: "Scores") -> "Scores":
        """Return the scores of both; the other's where both have an entry."""
        return Scores(
            **{
                field.name: {**getattr(self, field.name), **getattr(other, field.name)}
                for field in dataclasses.fields(Scores)
            }
        )


def mean(values: Iterable[float]) -> float:
    """Return the mean over the rows that are not NaN; NaN if there is none."""
    kept = [float(v) for v in values if v == v]
    return float(np.mean(kept)) if kept else float("nan")


def track(items: Iterable[Item], description: str, *, enabled: bool) -> Iterable[Item]:
    """Show a progress bar on standard error; in a log file, a line now and then."""
    total: Any = len(items) if isinstance(items, Sized) else None
    return tqdm(
        items,
        desc=description,
        total=total,
        disable=not enabled,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        dynamic_ncols=True,
    )
