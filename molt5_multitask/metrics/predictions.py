"""Files of predictions: what MolT5 writes, and what `molt5_multitask.predict` writes."""

import dataclasses
import pathlib
from collections.abc import Sequence

INPUTS = ("input", "SMILES", "description")
REFERENCES = ("reference", "ground truth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Rows of a file of predictions."""

    references: Sequence[str]
    """What should have been written."""
    outputs: Sequence[Sequence[str]]
    """What was written, best first."""
    inputs: Sequence[str] | None
    """What the model was given, if the file says so."""


def read_predictions(path: str | pathlib.Path, *, reference: bool = True) -> Predictions:
    """Read tab-separated predictions with a header, quoting off.

    The columns are found by name, in any order, and others are passed over: the reference
    (`reference` or `ground truth`), the outputs (`output`, or `output_1`, `output_2`, ...), and
    the input if there is one (`input`, `SMILES` or `description`).

    Args:
      path: the file.
      reference: whether a column of references must be there; otherwise none is read.

    Raises:
      ValueError: if the file is empty, not UTF-8, lacks a column, or a row has more or fewer fields
        than the header; the message names file and line.
      FileNotFoundError: if there is no such file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no predictions file {path}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    header = lines[0].split("\t")
    inputs = [header.index(name) for name in INPUTS if name in header]
    wanted = _column(path, header, REFERENCES, "the reference") if reference else None
    numbered: list[int] = []
    while (name := f"output_{len(numbered) + 1}") in header:
        numbered.append(header.index(name))
    outputs = numbered or [_column(path, header, ("output", "output_1"), "the output")]
    if len(lines) == 1:
        raise ValueError(f"{path} has a header, but no rows")
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(row)} tab-separated fields, where the header has "
                f"{len(header)} ({', '.join(header)}); no field may hold a tab or a line break"
            )
    return Predictions(
        references=[] if wanted is None else [row[wanted] for row in rows],
        outputs=[[row[column] for column in outputs] for row in rows],
        inputs=[row[inputs[0]] for row in rows] if inputs else None,
    )


def _column(path: pathlib.Path, header: list[str], names: Sequence[str], what: str) -> int:
    found = [header.index(name) for name in names if name in header]
    if len(found) != 1:
        have = ", ".join(repr(name) for name in header)
        fault = "no" if not found else "more than one"
        raise ValueError(
            f"{path}, line 1: {fault} column for {what} ({' or '.join(map(repr, names))}); the "
            f"columns are {have}. A tab-separated file with a header is expected"
        )
    return found[0]
