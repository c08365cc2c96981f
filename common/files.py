"""The files of a run's folder, on a disk or in a bucket (`gs://`): whole, or line by line."""

import contextlib
import os
import pathlib
import tempfile
import uuid
import warnings
from collections.abc import Iterator

from etils import epath

PathLike = str | os.PathLike[str]


def is_remote(path: PathLike) -> bool:
    """Whether a path is the address of an object store."""
    return "://" in os.fspath(path)


def absolute(path: PathLike) -> epath.Path:
    """Return the whole path; an address in a bucket is whole already."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def user_cache() -> pathlib.Path | None:
    """Return this project's folder below the user's cache; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if base.startswith("~") else pathlib.Path(base) / "jax-three-papers"


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
    """Give a file to write that replaces `path`, whose folder is made, when the block ends well.

    A crash leaves the old content or the new. Several processes may write the same file.
    """
    if is_remote(path):  # objects are written whole or not at all
        with tempfile.TemporaryDirectory() as folder:
            draft = pathlib.Path(folder, epath.Path(path).name)
            yield draft
            epath.Path(path).write_bytes(draft.read_bytes())
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def replace(path: PathLike, content: bytes) -> None:
    """Replace the content of a file in one step; see `replacing`."""
    with replacing(path) as draft:
        draft.write_bytes(content)


@contextlib.contextmanager
def local_folder(path: PathLike) -> Iterator[pathlib.Path]:
    """Give a folder on this machine whose files end up in `path`.

    It is `path` itself, made if it is not there; for a bucket, a temporary folder whose files are
    sent when the block ends. So libraries that write to a disk only can write results, too.
    """
    if not is_remote(path):
        folder = pathlib.Path(path)
        with explained(path):
            folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        yield folder
        with explained(path):
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    target = epath.Path(path) / file.relative_to(folder).as_posix()
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())


@contextlib.contextmanager
def local_copy(path: PathLike) -> Iterator[pathlib.Path]:
    """Give a file on this machine with the content of `path`: itself, or fetched for the block."""
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = pathlib.Path(temporary) / epath.Path(path).name
        copy.write_bytes(epath.Path(path).read_bytes())
        yield copy


class AppendingFile:
    """A file that grows by lines, each of which is written at once.

    Object stores cannot append: there, every line writes the whole file.
    """

    def __init__(self, path: PathLike) -> None:
        """Open the file, and make its folder.

        A last line that a crash tore is dropped with a warning: the next one would continue it.

        Raises:
          OSError: saying what to do, if it cannot be written.
        """
        self._path = epath.Path(path)
        with explained(path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            old = self._path.read_bytes() if self._path.exists() else b""
            whole = old[: old.rfind(b"\n") + 1]
            if torn := old[len(whole) :]:
                warnings.warn(f"dropped a torn last line of {self._path}: {torn!r}", stacklevel=3)
                replace(path, whole)
            self._content = whole if is_remote(path) else b""
            self._file = None if is_remote(path) else open(path, "ab", buffering=0)  # noqa: SIM115

    def append(self, line: bytes) -> None:
        """Add a line."""
        with explained(self._path):
            if self._file is None:
                self._content += line
                self._path.write_bytes(self._content)
                return
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def explained(path: PathLike) -> Iterator[None]:
    """Say what could not be written, and what to do about it."""
    try:
        yield
    except OSError as error:
        advice = "free space there, check its permissions, or choose another workdir"
        message = f"cannot write {os.fspath(path)} ({error.strerror}): {advice}"
        raise OSError(error.errno, message) from error
