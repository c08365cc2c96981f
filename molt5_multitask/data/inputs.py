"""Files of inputs to predict from: a column of a table, or one input a line."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from common.choices import suggestion
from molt5_multitask.data.lines import read_lines

INPUT_COLUMNS = ("input", "source")
"""Columns that inputs are read from where none is named and there are several."""
REFERENCE_COLUMNS = ("reference", "ground truth")
"""Columns of references that are taken over where none is named."""
COMPRESSIONS = (".gz", ".bz2", ".xz")
FORMATS = (".csv", ".tsv", ".txt", ".jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Rows of a file of inputs."""

    file: str
    """The file."""
    texts: Sequence[str]
    """The inputs."""
    lines: Sequence[int]
    """The line of each, from 1; for a quoted field of several lines the last one."""
    references: Sequence[str] | None
    """What should be written, if the file says so."""


class _Row(NamedTuple):
    line: int
    fields: Sequence[str]


def read_inputs(path: str, *, column: str | None = None, reference: str | None = None) -> Inputs:
    """Read the inputs of a `.csv`, `.tsv`, `.txt` or `.jsonl` file, which may be compressed.

    `.csv` has a header and quoted fields, `.tsv` a header and no quoting, `.jsonl` an object a
    line. `.txt` is one input a line, or like `.tsv` where its first line holds a tab or a column
    is named.

    Args:
      path: the file.
      column: column of the inputs; else the only one, or `input` or `source`.
      reference: column of the references; else `reference` or `ground truth` if there is one.

    Raises:
      ValueError: naming file, line and column, if the file is not there, empty or of another
        format, a column is missing, or a row is not UTF-8, has an empty input, or more or fewer
        fields than the header.
    """
    names = [s for s in pathlib.Path(path).suffixes if s.lower() not in COMPRESSIONS]
    kind = names[-1].lower() if names else ""
    if kind not in FORMATS:
        raise ValueError(f"{path} must be one of {', '.join(FORMATS)} (compressed or not)")
    lines = [_decoded(path, number, line) for number, line in enumerate(read_lines(path), 1)]
    if kind == ".txt" and "\t" not in lines[0] and column is None:
        if reference is not None:
            raise ValueError(f"{path} is one input a line, without a column {reference!r}")
        rows = [_Row(number, [line]) for number, line in enumerate(lines, 1)]
        header: Sequence[str] = ["input"]
        place, expected = 0, None
    else:
        parse = {".csv": _csv_rows, ".jsonl": _json_rows}.get(kind, _tsv_rows)
        first, *rows = parse(path, lines)
        header = first.fields
        place = _input_column(path, header, column)
        expected = _reference_column(path, header, reference)
    if not rows:
        raise ValueError(f"{path} has a header, but no rows")
    for row in rows:
        if len(row.fields) != len(header):
            raise ValueError(
                f"{path}, line {row.line}: {len(row.fields)} fields, where the header has "
                f"{len(header)} ({', '.join(header)})"
            )
        if not row.fields[place].strip():
            raise ValueError(f"{path}, line {row.line}: column {header[place]!r} is empty")
    return Inputs(
        file=path,
        texts=[row.fields[place].strip() for row in rows],
        lines=[row.line for row in rows],
        references=None if expected is None else [row.fields[expected].strip() for row in rows],
    )


def _decoded(path: str, number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x}); save it as UTF-8"
        ) from None


def _tsv_rows(path: str, lines: Sequence[str]) -> Iterator[_Row]:
    del path
    for number, line in enumerate(lines, 1):
        yield _Row(number, line.split("\t"))


def _csv_rows(path: str, lines: Sequence[str]) -> Iterator[_Row]:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    try:
        for fields in reader:
            yield _Row(reader.line_num, fields)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _json_rows(path: str, lines: Sequence[str]) -> Iterator[_Row]:
    """Yield the keys of the first object as a header, then the values of all."""
    keys: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
        if not keys:
            keys = list(fields)
            yield _Row(0, keys)
        for key in keys:
            if not isinstance(fields.get(key, ""), str | int | float):
                raise ValueError(f"{path}, line {number}: {key!r} is not a string")
        yield _Row(number, [str(fields.get(key, "")) for key in keys])


def _input_column(path: str, header: Sequence[str], column: str | None) -> int:
    if column is not None:
        return _column(path, header, column)
    if len(header) == 1:
        return 0
    for name in INPUT_COLUMNS:
        if name in header:
            return header.index(name)
    raise ValueError(
        f"{path} has the columns {', '.join(header)}: say which one holds the inputs (--column)"
    )


def _reference_column(path: str, header: Sequence[str], column: str | None) -> int | None:
    if column is not None:
        return _column(path, header, column)
    return next((header.index(name) for name in REFERENCE_COLUMNS if name in header), None)


def _column(path: str, header: Sequence[str], name: str) -> int:
    if name not in header:
        raise ValueError(f"{path} has no column {name!r}; {suggestion(name, header)}")
    return header.index(name)
