"""Numbers of an evaluation, as JSON and as Markdown tables."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

from common.report import provenance, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One evaluation of several models."""

    title: str
    """What was evaluated, and on how much."""
    scores: Mapping[str, Mapping[str, float]]
    """By model, then by measure."""
    references: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the scores are to be seen beside, such as noise ceilings and chance, each named."""
    notes: Sequence[str] = ()
    """What one must know to read the numbers."""

    def markdown(self) -> str:
        """Return the section: a row for each measure, a column for each model."""
        measures = list(dict.fromkeys(m for scores in self.scores.values() for m in scores))
        rows = [
            [measure, *(number(scores.get(measure)) for scores in self.scores.values())]
            for measure in measures
        ]
        parts = [f"## {self.title}", table(["measure", *self.scores], rows)]
        notes = [f"{name}: {number(value)}" for name, value in self.references.items()]
        if notes := [*notes, *self.notes]:
            parts.append("\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts)


def number(value: float | None) -> str:
    """Write a score with four decimals; a dash where there is none."""
    if value is None:
        return "-"
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def write(
    folder: pathlib.Path, sections: Mapping[str, Section], skipped: Mapping[str, str]
) -> list[pathlib.Path]:
    """Write `results.json` and `results.md`.

    Args:
      folder: where to.
      sections: the evaluations by name.
      skipped: evaluations that were not made, and why.
    """
    found = provenance()
    content = {
        "sections": {name: dataclasses.asdict(section) for name, section in sections.items()},
        "skipped": dict(skipped),
        "provenance": found,
    }
    parts = [section.markdown() for section in sections.values()]
    if skipped:
        reasons = [f"- {name}: {reason}" for name, reason in skipped.items()]
        parts.append("\n".join(["## Skipped", "", *reasons]))
    parts.append("\n".join(f"- {what}: {value}" for what, value in found.items()))
    paths = [folder / "results.json", folder / "results.md"]
    paths[0].write_text(json.dumps(_json(content), indent=2) + "\n", "utf-8")
    paths[1].write_text("\n\n".join(["# Human alignment", *parts]) + "\n", "utf-8")
    return paths


def _json(value: object) -> object:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
