"""Readers: where training and test examples come from.

Each reader is a config that names files and yields examples; a row that is not usable is left out
and reported with its file and line. Files may be compressed or lie in archives (`lines.py`).
`HubTable` reads what `datasets` can; the others need no network.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from common.choices import check_choice, suggestion
from molt5_multitask import chem
from molt5_multitask.data.lines import read_lines
from molt5_multitask.data.report import BadRows, Place
from molt5_multitask.data.smiles import standardise
from molt5_multitask.tasks import TASKS, Example, Seq2SeqTask, recognise

CAPTION_TASKS = (TASKS["molecule_to_text"], TASKS["text_to_molecule"])
REACTION_TASKS = (TASKS["forward"], TASKS["retrosynthesis"])


class Reader(Protocol):
    """A source of examples."""

    def read(self, report: BadRows) -> list[Example]:
        """Read all examples, counting what is left out."""
        ...


def read(
    readers: Sequence[Reader], *, max_bad_rows: float = 0.01
) -> tuple[dict[str, list[Example]], BadRows]:
    """Read all examples, by task.

    Args:
      readers: where they come from.
      max_bad_rows: share of the rows of a file that may be bad.

    Raises:
      ValueError: for a file that cannot be read or has too many bad rows, with a report of these.
    """
    report = BadRows()
    examples: dict[str, list[Example]] = {}
    for reader in readers:
        found = reader.read(report)
        if not found and not report.bad:
            raise ValueError(f"{reader} finds no rows")
        for example in found:
            examples.setdefault(example.task, []).append(example)
    report.check(max_bad_rows)
    return examples, report


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoleculeCaptions:
    """Molecules and captions as ChEBI-20 has them: TSV with a header, without quoting."""

    path: str
    """File with the columns `SMILES` and `description`; others are passed over. Backslashes may be
    written once or twice."""
    tasks: tuple[str, ...] = ("molecule_to_text", "text_to_molecule")
    """Directions to make examples of."""

    def read(self, report: BadRows) -> list[Example]:
        """Read all examples."""
        rows = _table(self.path, ("SMILES", "description"), report)
        return _examples(rows, CAPTION_TASKS, report, wanted=self.tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reactions:
    """Reactions, one a line."""

    path: str
    """File of reactions."""
    layout: Literal["pair", "table", "mapped"] = "pair"
    """pair: `precursors<TAB>product`, no header. table: TSV whose header names the columns
    `product` and `reactants`. mapped: `reactants>reagents>product` with atom maps; reagents
    join the precursors, what follows a space is passed over, and molecules are made canonical."""
    canonical: bool = False
    """Make the molecules canonical and sort them; a layout `mapped` always does."""
    tasks: tuple[str, ...] = ("forward", "retrosynthesis")
    """Directions to make examples of."""

    def read(self, report: BadRows) -> list[Example]:
        """Read all examples."""
        check_choice("layout", self.layout, ("pair", "table", "mapped"))
        if self.layout == "table":
            rows = _table(self.path, ("reactants", "product"), report)
        elif self.layout == "pair":
            rows = _split(self.path, lambda line: line.split("\t"), report)
        else:
            rows = _split(self.path, _unmapped_sides, report)
        canonical = self.canonical or self.layout == "mapped"
        return _examples(rows, REACTION_TASKS, report, wanted=self.tasks, canonical=canonical)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpacedReactions:
    """Reactions as Liu's USPTO-50k has them: two aligned files, a space after each character."""

    products: str
    """File of a class token (`<RX_1>`), which is dropped, and the product."""
    reactants: str
    """File of the reactants."""
    tasks: tuple[str, ...] = ("forward", "retrosynthesis")
    """Directions to make examples of."""

    def read(self, report: BadRows) -> list[Example]:
        """Read all examples."""

        def joined(text: str) -> str:
            return re.sub(r"^<RX_\d+>", "", text.replace(" ", ""))

        rows = (
            Row(place, joined(left), joined(right))
            for place, left, right in _aligned(self.reactants, self.products, report)
        )
        return _examples(rows, REACTION_TASKS, report, wanted=self.tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedLines:
    """Inputs and targets of one task in two aligned files, e.g. paragraphs and their actions."""

    inputs: str
    """File of inputs, without prompts."""
    targets: str
    """File of targets."""
    task: Seq2SeqTask = TASKS["paragraph_to_actions"]
    """The task of all lines."""

    def read(self, report: BadRows) -> list[Example]:
        """Read all examples."""
        return _examples(_aligned(self.inputs, self.targets, report), (self.task,), report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedJsonl:
    """The authors' form: a JSON object `{"source": prompt + input, "target": ...}` a line."""

    path: str
    """File of JSON lines. The task of each is known by its prompt."""

    def read(self, report: BadRows) -> list[Example]:
        """Read all examples."""
        return _prompted(_split(self.path, _json_pair, report), report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubTable:
    """A table that `datasets` reads: of the hub, or a local folder or file."""

    name: str
    """Name on the hub, a local folder, or a format (`parquet`, `csv`, `json`) with `files`."""
    split: str = "train"
    """Split of the data set."""
    files: tuple[str, ...] = ()
    """Local files of the format that `name` gives."""
    input: str = "source"
    """Column of inputs."""
    target: str = "target"
    """Column of targets."""
    task: Seq2SeqTask | None = None
    """Task of all rows, whose inputs have no prompt; None: inputs start with a prompt."""

    def read(self, report: BadRows) -> list[Example]:
        """Read all examples."""
        import datasets  # Slow to import, and local files of the other readers do without it.

        where = f"{self.name}[{self.split}]"
        try:
            table = datasets.load_dataset(
                self.name, data_files=list(self.files) or None, split=self.split
            )
        except Exception as error:  # It raises errors of many libraries.
            raise ValueError(f"datasets cannot load {where}: {error}") from error
        for column in (self.input, self.target):
            if column not in table.column_names:
                raise ValueError(
                    f"{where} has no column {column!r}; {suggestion(column, table.column_names)}"
                )
        report.rows[where] += len(table)
        rows = [
            Row(Place(where, number), str(left or ""), str(right or ""))
            for number, (left, right) in enumerate(
                zip(table[self.input], table[self.target], strict=True), 1
            )
        ]
        return (
            _prompted(rows, report) if self.task is None else _examples(rows, (self.task,), report)
        )


class Row(NamedTuple):
    """The two texts of a row."""

    place: Place
    """Where it stands."""
    left: str
    """SMILES, precursors, paragraph, ..."""
    right: str
    """Caption, product, actions, ..."""


def _split(path: str, split: Callable[[str], Sequence[str]], report: BadRows) -> Iterator[Row]:
    """Yield a row for each line; `split` raises ValueError with the reason where it cannot."""
    return _rows(path, 1, read_lines(path), split, report)


def _table(path: str, columns: tuple[str, str], report: BadRows) -> Iterator[Row]:
    """Yield two named columns of a TSV with a header, read without quoting."""
    first, *lines = read_lines(path)
    header = first.decode(errors="backslashreplace").split("\t")
    for column in columns:
        if column not in header:
            raise ValueError(f"{path} has no column {column!r}; its header is {', '.join(header)}")
    left, right = (header.index(column) for column in columns)

    def split(line: str) -> Sequence[str]:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise ValueError(f"{len(fields)} columns in place of {len(header)}")
        return fields[left], fields[right]

    return _rows(path, 2, lines, split, report)


def _aligned(left: str, right: str, report: BadRows) -> Iterator[Row]:
    """Yield the lines of two files that belong together, placed in the first."""
    lines, partners = read_lines(left), read_lines(right)
    if len(lines) != len(partners):
        raise ValueError(
            f"{left} has {len(lines):,} lines, {right} has {len(partners):,}: they must be aligned"
        )
    # A tab may stand in neither: it separates the two sides here.
    joined = [b"\t".join(pair) for pair in zip(lines, partners, strict=True)]
    return _rows(left, 1, joined, lambda line: line.split("\t"), report)


def _rows(
    file: str,
    start: int,
    lines: Sequence[bytes],
    split: Callable[[str], Sequence[str]],
    report: BadRows,
) -> Iterator[Row]:
    """Decode and split lines, the first of which has the number `start`."""
    report.rows[file] += len(lines)
    for number, line in enumerate(lines, start):
        place = Place(file, number)
        try:
            left, right = _two(split(line.decode()))
        except UnicodeDecodeError:
            report.add(place, "invalid UTF-8", line.decode(errors="backslashreplace"))
        except ValueError as error:
            report.add(place, str(error), line.decode())
        else:
            yield Row(place, left.strip(), right.strip())


def _two(fields: Sequence[str]) -> Sequence[str]:
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} columns in place of 2")
    return fields


def _unmapped_sides(line: str) -> Sequence[str]:
    """Split a mapped reaction into precursors, reagents included, and product."""
    sides = line.split(" ")[0].split(">")
    if len(sides) != 3:
        raise ValueError("not of the form reactants>reagents>product")
    return ".".join(side for side in sides[:2] if side), sides[2]


def _json_pair(line: str) -> Sequence[str]:
    """Read source and target of a JSON line."""
    try:
        fields = json.loads(line)
        pair = fields["source"], fields["target"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError('not a JSON object with "source" and "target"') from error
    if not all(isinstance(text, str) for text in pair):
        raise ValueError('"source" or "target" is not a string')
    if any("\ud800" <= char <= "\udfff" for text in pair for char in text):
        raise ValueError("half of a surrogate pair")  # JSON can escape what UTF-8 cannot write.
    return pair


def _prompted(rows: Iterable[Row], report: BadRows) -> list[Example]:
    """Tell the task of each row by its prompt."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        found = recognise(row.left)
        if found is None:
            report.add(row.place, "no known prompt", row.left)
        else:
            task, text = found
            by_task.setdefault(task.name, []).append(row._replace(left=text.strip()))
    return [e for name, mine in by_task.items() for e in _examples(mine, (TASKS[name],), report)]


def _examples(
    rows: Iterable[Row],
    directions: tuple[Seq2SeqTask, ...],
    report: BadRows,
    *,
    wanted: Sequence[str] | None = None,
    canonical: bool = False,
) -> list[Example]:
    """Check rows and turn them into examples.

    Args:
      rows: what was read.
      directions: the task from left to right and, where there is one, that from right to left.
      report: takes the rows that are left out.
      wanted: names of the directions to make examples of; None makes all.
      canonical: make the molecules of reactions canonical.
    """
    names = [task.name for task in directions]
    for name in wanted or ():
        check_choice("task", name, names)
    rows = list(rows)
    kinds = (directions[0].input_kind, directions[0].output_kind)
    columns: list[Sequence[str | None]] = []
    for texts, kind in zip(([r.left for r in rows], [r.right for r in rows]), kinds, strict=True):
        if kind in ("smiles", "reaction"):
            single, _ = chem.single_backslashes(texts)
            columns.append(standardise(single, canonical=canonical))
        else:
            columns.append(texts)
    kept = []
    for row, left, right in zip(rows, *columns, strict=True):
        if not row.left or not row.right:
            report.add(row.place, "empty field", f"{row.left}\t{row.right}")
        elif left is None or right is None:
            report.add(row.place, "unparsable SMILES", row.left if left is None else row.right)
        else:
            kept.append((left, right))
    examples = []
    for task, step in zip(directions, (1, -1), strict=False):
        if wanted is None or task.name in wanted:
            examples += [Example(task.name, *sides[::step]) for sides in kept]
    return examples
