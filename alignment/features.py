"""Features of a set of images or objects, with the name of each row."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from alignment.files import read_arrays, write_arrays
from common.files import PathLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """The features of n images, checked when made.

    Raises:
      ValueError: for features that are no finite matrix, or names and labels that do not fit it.
    """

    features: Float[np.ndarray, "n p"]
    """One row for each image, float32."""
    names: np.ndarray
    """str (n,): the images' names, each different. Files are matched by names, never by rows."""
    model: str = ""
    """The model that made them."""
    preprocessing: str = ""
    """The preprocessing of its input."""
    labels: Int[np.ndarray, "n"] | None = None
    """Fine class of each image, where the source has classes."""
    label_names: np.ndarray | None = None
    """str: names of the fine classes."""
    coarse: Int[np.ndarray, "n"] | None = None
    """Coarse class of each image."""
    coarse_names: np.ndarray | None = None
    """str: names of the coarse classes."""

    def __post_init__(self) -> None:
        check_matrix(self.features, what="features")
        n = len(self.features)
        if self.names.shape != (n,):
            raise ValueError(f"{n} rows of features, but names of shape {self.names.shape}")
        if repeated := [name for name, count in Counter(self.names.tolist()).items() if count > 1]:
            raise ValueError(f"the name {repeated[0]!r} occurs more than once")
        pairs = (
            ("labels", self.labels, self.label_names),
            ("coarse", self.coarse, self.coarse_names),
        )
        for what, labels, known in pairs:
            if labels is None:
                continue
            if labels.shape != (n,):
                raise ValueError(f"{n} rows of features, but {what} of shape {labels.shape}")
            if known is not None and not ((labels >= 0) & (labels < len(known))).all():
                raise ValueError(f"{what} must be 0 to {len(known) - 1}, the rows of {what} names")

    @classmethod
    def read(cls, path: PathLike) -> Self:
        """Read a features file.

        Raises:
          FileNotFoundError, ValueError: naming the file, if it is missing or not as it should be.
        """
        arrays = read_arrays(path, required=("features", "names"))
        fields = {f.name for f in dataclasses.fields(cls)}
        known: dict[str, Any] = {
            k: str(v) if v.ndim == 0 else v for k, v in arrays.items() if k in fields
        }
        if arrays["features"].dtype.kind == "f":
            known["features"] = arrays["features"].astype(np.float32, copy=False)
        try:
            return cls(**known)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def ordered(self, names: Sequence[str]) -> Self:
        """Return the rows of `names`, in that order.

        A name is that of a row, or of its file without folder and ending: `things/cat.jpg` is the
        row of `cat`.

        Raises:
          ValueError: for a name that no row has, or more than one.
        """
        known = {name: [row] for row, name in enumerate(self.names.tolist())}
        stems: dict[str, list[int]] = {}
        for name, rows in known.items():
            stems.setdefault(pathlib.PurePosixPath(name).stem, []).extend(rows)
        found = [known.get(name, stems.get(name, [])) for name in names]
        for what, wrong in (
            ("no row", [n for n, rows in zip(names, found, strict=True) if not rows]),
            ("several rows", [n for n, rows in zip(names, found, strict=True) if len(rows) > 1]),
        ):
            if wrong:
                raise ValueError(
                    f"{len(wrong)} of {len(names)} names have {what} of features, the first is "
                    f"{wrong[0]!r}; the features' first name is {str(self.names[0])!r}"
                )
        order = np.array(found)[:, 0]
        per_row = ("features", "names", "labels", "coarse")
        values = {name: getattr(self, name) for name in per_row}
        return dataclasses.replace(
            self, **{name: v[order] for name, v in values.items() if v is not None}
        )

    def write(self, path: PathLike) -> None:
        """Write a features file."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        write_arrays(path, {name: value for name, value in fields.items() if value is not None})


def check_matrix(matrix: np.ndarray, *, what: str) -> None:
    """Raise ValueError where `matrix` is not a matrix of finite floats, with the first bad row."""
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        raise ValueError(
            f"{what} must be a matrix of floats, got {matrix.dtype} of shape {matrix.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(matrix).all(1))
    if bad.size:
        raise ValueError(
            f"{what}: {bad.size} of {len(matrix)} rows hold NaN or infinity, the first is row "
            f"{bad[0]} (0-based)"
        )
