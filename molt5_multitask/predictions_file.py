"""A file of predictions that is written row by row and continued after a kill.

Beside `NAME` lies `NAME.json`, a record of all that the predictions depend on. A file is continued
only where the record is the same; a last line that was cut off is removed first.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from common.config import refuse_changes
from common.files import replace

_BREAKS = str.maketrans("\t\r\n", "   ")


class PredictionsFile:
    """Tab-separated rows under a header, without quoting."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Sequence[str],
        record: Mapping[str, Any],
        *,
        inputs: Sequence[str],
    ) -> None:
        """Begin the file, or find out how far it is.

        Args:
          path: the file.
          header: names of the columns; the first is the input.
          record: what the predictions depend on, as plain JSON.
          inputs: the inputs of all rows to come.

        Raises:
          ValueError: if there is a file that was not written from this record and these inputs.
        """
        self.path = pathlib.Path(path)
        self._columns = len(header)
        sidecar = self.path.with_name(self.path.name + ".json")
        head = _line(header)
        lines: list[bytes] = []
        if self.path.exists() and (data := self.path.read_bytes()):
            before = _read_record(self.path, sidecar)
            whole = data.rfind(b"\n") + 1
            lines = data[:whole].splitlines(keepends=True)
        if len(lines) > 1:
            refuse_changes(
                before,
                record,
                what=f"{self.path} was made",
                advice="give another output, or move it away",
            )
            if whole < len(data):
                os.truncate(self.path, whole)
        else:
            # The record is there, as a whole, before the first row is.
            replace(sidecar, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
            lines = [head]
            self.path.write_bytes(head)
        if lines[0] != head:
            raise self._foreign(1, "another header")
        self.done = len(lines) - 1
        """Rows that are there already."""
        if self.done > len(inputs):
            raise self._foreign(len(inputs) + 2, f"more rows than the {len(inputs):,} inputs")
        for number, (line, text) in enumerate(zip(lines[1:], inputs, strict=False), 2):
            if not line.startswith(_line([text])[:-1] + b"\t"):
                raise self._foreign(number, "another input than expected there")

    def append(self, rows: Sequence[Sequence[str]]) -> None:
        """Write rows, so that a kill leaves whole lines and at most one torn one."""
        assert all(len(row) == self._columns for row in rows)
        with self.path.open("ab") as file:
            file.write(b"".join(map(_line, rows)))
        self.done += len(rows)

    def _foreign(self, number: int, what: str) -> ValueError:
        return ValueError(
            f"{self.path}, line {number}: {what}; it is not the file that was begun here. "
            "Give another output, or move it away"
        )


def _line(fields: Sequence[str]) -> bytes:
    """Return a line of the file; tabs and line breaks within fields become spaces."""
    return ("\t".join(field.translate(_BREAKS) for field in fields) + "\n").encode()


def _read_record(path: pathlib.Path, sidecar: pathlib.Path) -> dict[str, Any]:
    if not sidecar.is_file():
        raise ValueError(
            f"{path} is there, but not {sidecar.name}, which says how it was made: it cannot be "
            "continued. Give another output, or move it away"
        )
    try:
        record = json.loads(sidecar.read_text())
    except ValueError as error:
        raise ValueError(f"{sidecar} is no JSON: {error}") from None
    return dict(record)
