"""What was wrong with the rows of the data: counted by reason, shown by file and line."""

from collections import Counter, defaultdict
from typing import NamedTuple

SHOWN = 3
"""Rows that are shown for each file and reason; all are counted."""


class Place(NamedTuple):
    """Where a row stands."""

    file: str
    """File or data set."""
    line: int
    """Line, from 1."""


class BadRows:
    """Counts the rows that were left out."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        """Rows read, by file."""
        self.bad: dict[str, Counter[str]] = defaultdict(Counter)
        """Bad rows by file, then by reason."""
        self._shown: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, place: Place, reason: str, text: str) -> None:
        """Count a row that is left out, and remember the first of each reason."""
        self.bad[place.file][reason] += 1
        shown = self._shown[place.file, reason]
        if len(shown) < SHOWN:
            shown.append(f"{place.file}, line {place.line}: {text[:80]!r}")

    def __str__(self) -> str:
        """List the reasons of each file, most frequent first, with the first rows of each."""
        lines = []
        for file, reasons in self.bad.items():
            share = reasons.total() / self.rows[file]
            lines.append(
                f"{file}: {reasons.total():,} of {self.rows[file]:,} rows ({share:.2%}) bad"
            )
            for reason, count in reasons.most_common():
                lines.append(f"  {reason}: {count:,}")
                lines += [f"    {row}" for row in self._shown[file, reason]]
                if count > SHOWN:
                    lines.append(f"    and {count - SHOWN:,} more")
        return "\n".join(lines) or f"no bad row in {self.rows.total():,}"

    def check(self, most: float) -> None:
        """Raise ValueError with the whole report where the bad share of a file is above `most`."""
        above = [f for f, reasons in self.bad.items() if reasons.total() > most * self.rows[f]]
        if above:
            raise ValueError(
                f"too many bad rows (more than max_bad_rows = {most:.2%}) in {', '.join(above)};"
                f" mend the data or raise the limit\n{self}"
            )
