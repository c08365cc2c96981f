"""Files of labelled triplets, in the layout of the published AligNet data set.

    ROOT/{uncertainty_distillation|untransformed}/{train|val}_{sampling}.npz
    ROOT/filenames.npz

A file holds `similarities` float32 (n, 3), the similarities [s01, s02, s12] of a triplet's pairs
with s01 the largest, so that image 2 is the odd one; and `indices` int32 (n, 3), rows of the
images, whose names are in `filenames.npz` once. The published files repeat `filenames` (n, 3) for
every triplet; they are read, too, and matched by name.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from alignment.files import read_arrays, write_arrays
from alignment.judgments import check_triplets
from common.files import PathLike, replacing

Labels = Literal["uncertainty_distillation", "untransformed"]
"""Whose similarities they are: the human-aligned teacher's, or the teacher's own."""
Split = Literal["train", "val"]
ARRAYS = {"similarities": np.float32, "indices": np.int32}


def triplet_path(root: PathLike, labels: Labels, split: Split, sampling: str) -> pathlib.Path:
    """Return where a file of the data set lies."""
    return pathlib.Path(root) / labels / f"{split}_{sampling}.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTriplets:
    """Triplets of images with soft labels, checked when made.

    Raises:
      ValueError: with the first row at fault, where images repeat, an index has no image, a label
        is not finite, or the first pair is not the most similar one.
    """

    indices: Int[np.ndarray, "n 3"]
    """int32: rows of the images; the odd one last."""
    similarities: Float[np.ndarray, "n 3"]
    """float32: of the pairs (0, 1), (0, 2), (1, 2). The target is their softmax."""
    images: int
    """Number of images that the rows refer to."""

    def __post_init__(self) -> None:
        check_triplets(self.indices, self.images)
        s = self.similarities
        if s.shape != self.indices.shape or s.dtype.kind != "f":
            raise ValueError(
                f"similarities must be floats of shape {self.indices.shape}, got {s.dtype} of "
                f"shape {s.shape}"
            )
        for what, wrong in (
            ("are not finite", ~np.isfinite(s).all(1)),
            ("have another pair than the first as the most similar one", s.argmax(1) != 0),
        ):
            if bad := np.flatnonzero(wrong).tolist():
                raise ValueError(
                    f"{len(bad)} of {len(s)} rows of similarities {what}; the first is row "
                    f"{bad[0]} (0-based): {s[bad[0]].tolist()}"
                )

    @classmethod
    def read(cls, path: PathLike, names: np.ndarray) -> "LabelledTriplets":
        """Read a file of triplets.

        Args:
          path: the file.
          names: str (images,), the images in the order in which they will be used. Triplets are
            matched to them by name: the file's own `filenames`, or those of `filenames.npz` in its
            folder or the one above.

        Raises:
          FileNotFoundError, ValueError: naming the file, and the row where one is at fault.
        """
        path = pathlib.Path(path)
        arrays = read_arrays(path, required=("similarities",))
        try:
            indices = _rows(path, arrays, np.asarray(names))
            return cls(
                indices=indices,
                similarities=arrays["similarities"].astype(np.float32, copy=False),
                images=len(names),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _rows(path: pathlib.Path, arrays: dict[str, np.ndarray], names: np.ndarray) -> np.ndarray:
    """Return int32 (n, 3): the triplets as rows of `names`."""
    if "filenames" in arrays:
        used, inverse = np.unique(arrays["filenames"], return_inverse=True)
        rows = _find(used.astype(str), names)  # files hold str or bytes
        return rows[inverse.reshape(arrays["filenames"].shape)]
    if "indices" not in arrays:
        raise ValueError("neither `filenames` nor `indices` say which images the triplets are of")
    for folder in (path.parent, path.parent.parent):
        if (folder / "filenames.npz").is_file():
            listed = read_arrays(folder / "filenames.npz", required=("filenames",))["filenames"]
            indices = check_triplets(arrays["indices"], len(listed))
            if np.array_equal(listed, names):
                return indices
            used = np.unique(indices)
            rows = np.full(len(listed), -1, np.int32)
            rows[used] = _find(listed[used], names)
            return rows[indices]
    raise ValueError(
        "the images behind `indices` are not known: filenames.npz is neither in the folder of the "
        "file nor in the one above"
    )


def _find(wanted: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Return int32: the row of each wanted name."""
    known = {name: row for row, name in enumerate(names.tolist())}
    rows = np.array([known.get(name, -1) for name in wanted.tolist()], np.int32)
    if missing := np.flatnonzero(rows < 0).tolist():
        raise ValueError(
            f"{len(missing)} of {len(wanted)} images of the triplets are not among the "
            f"{len(names)} given, such as {str(wanted[missing[0]])!r}"
        )
    return rows


def write_filenames(root: PathLike, names: np.ndarray) -> pathlib.Path:
    """Write the names of the images once for all triplets of the folder.

    Raises:
      ValueError: where the folder is of other images.
    """
    path = pathlib.Path(root) / "filenames.npz"
    if path.is_file():
        if not np.array_equal(read_arrays(path, required=("filenames",))["filenames"], names):
            raise ValueError(
                f"{path} lists other images than the features; write to another folder"
            )
    else:
        write_arrays(path, {"filenames": names})
    return path


@contextlib.contextmanager
def streamed(path: PathLike, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Open arrays `similarities` and `indices` of `count` rows that lie on disk, to be filled.

    When all is well they become the `.npz` file, in one step; otherwise nothing is left of them.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        parts = {name: folder / f"{name}.npy" for name in ARRAYS}
        yield {
            name: np.lib.format.open_memmap(file, "w+", ARRAYS[name], (count, 3))
            for name, file in parts.items()
        }
        with replacing(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            for file in parts.values():
                archive.write(file, file.name)
                file.unlink()
    finally:
        shutil.rmtree(folder)
