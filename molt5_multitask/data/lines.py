"""Lines of plain, compressed and archived text files, with their numbers."""

import bz2
import gzip
import lzma
import pathlib
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

from common.choices import suggestion

_OPEN: dict[str, Callable[[pathlib.Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


def read_lines(path: str) -> list[bytes]:
    """Read the lines of a file, without their ends, decompressed as its name tells.

    Args:
      path: a text file, plain or `.gz`, `.bz2` or `.xz`; or a file within a `.zip` or `.tar`
        archive of any compression, e.g. `data.zip/train/a.txt`; or an archive of one file.

    Raises:
      ValueError: for a file that is not there, is damaged or empty.
    """
    file = pathlib.Path(path)
    member = None
    if archive := next((p for p in file.parents if p.is_file()), None):
        file, member = archive, file.relative_to(archive).as_posix()
    if not file.is_file():
        beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = f"; {suggestion(file.name, sorted(beside))}" if beside else ""
        raise ValueError(f"there is no file {path}{hint}")
    try:
        data = _read(file, member)
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    # Only line feeds end a line: text may hold other characters that Unicode takes for line ends.
    lines = data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    if lines == [b""]:
        raise ValueError(f"{path} is empty")
    return [line.removesuffix(b"\r") for line in lines]


def _read(file: pathlib.Path, member: str | None) -> bytes:
    name = file.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            return archive.read(_choose(file, names, member))
    if ".tar" in name or name.endswith(".tgz"):
        with tarfile.open(file) as tar:
            names = [info.name for info in tar.getmembers() if info.isfile()]
            stream = tar.extractfile(_choose(file, names, member))
            assert stream is not None
            return stream.read()
    if member is not None:
        raise ValueError(f"{file} is a file, and no archive that could hold {member}")
    with _OPEN.get(file.suffix.lower(), lambda p: p.open("rb"))(file) as plain:
        data: bytes = plain.read()
    return data


def _choose(file: pathlib.Path, names: list[str], member: str | None) -> str:
    """Return the member that is asked for, or the only one."""
    if member is None and len(names) == 1:
        return names[0]
    if member is None:
        listed = ", ".join(f"{file}/{name}" for name in names[:20])
        raise ValueError(f"{file} holds {len(names)} files; name one: {listed}")
    if member not in names:
        raise ValueError(f"{file} holds no {member}; {suggestion(member, names)}")
    return member
