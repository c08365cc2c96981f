"""Sets of images, addressed by row: a folder, a `.npz` file, or a data set of Hugging Face."""

import abc
import collections
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from alignment.files import read_arrays
from alignment.images.decode import BadImageError, File, check_header, decode
from common.files import PathLike

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
"""Suffixes of image files, in any case."""
HUB = "datasets:"


class ImageSource(abc.ABC):
    """Images by row, with a name each, and classes where the source has them."""

    names: np.ndarray
    """str (n,): a different name for each image; the same rows on every host."""
    labels: Int[np.ndarray, "n"] | None = None
    """Class of each image."""
    label_names: np.ndarray | None = None
    """str: names of the classes."""
    coarse: Int[np.ndarray, "n"] | None = None
    """Coarser class of each image."""
    coarse_names: np.ndarray | None = None
    """str: names of the coarser classes."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @abc.abstractmethod
    def image(self, row: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return one image as RGB; may be called from several threads.

        Raises:
          BadImageError: naming row and file, if it cannot be used.
        """

    def check(self, row: int) -> None:  # noqa: B027  (nothing to check is a good default)
        """Check what can be seen of an image without decoding it; raises BadImageError."""

    def read(self, rows: Sequence[int]) -> list[UInt8[np.ndarray, "H W 3"]]:
        """Return several images, each of its own size."""
        return [self.image(row) for row in rows]


def open_images(source: PathLike, *, split: str = "train") -> ImageSource:
    """Open a set of images.

    Args:
      source: folder of image files; a `.npz` file, see `ArrayImages`; folder of a data set of
        Hugging Face (`save_to_disk`); or `datasets:NAME`, which `datasets.load_dataset` is given.
      split: which part of a data set.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it holds no images, or is damaged.
    """
    path = pathlib.Path(source)
    if str(source).startswith(HUB):
        return DatasetImages(load_dataset(str(source).removeprefix(HUB), split))
    if path.suffix == ".npz":
        return ArrayImages.open(path)
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return DatasetImages(load_dataset(path, split))
    if path.is_dir():
        return FolderImages(path)
    raise FileNotFoundError(
        f"no images at {source}: it is neither a folder nor a .npz file; for a data set on the "
        f"Hugging Face hub say {HUB}NAME"
    )


class FolderImages(ImageSource):
    """The image files of a folder and of those within it, ordered by their path.

    Where all of them lie in folders within the folder, the first of these is the class.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = pathlib.Path(folder)

        def refuse(error: OSError) -> None:
            raise error

        # Without a question to the system about each file, which is slow on a network's disk.
        files = [
            pathlib.Path(inner, name).relative_to(folder)
            for inner, _, names in os.walk(self.folder, onerror=refuse)
            for name in names
            if not name.startswith(".")
        ]
        images = [p for p in files if p.suffix.lower() in SUFFIXES]
        if not images:
            raise ValueError(f"{folder} holds no image files ({', '.join(SUFFIXES)})")
        if len(files) > len(images):
            logger.warning("%s: %s files are no images", folder, f"{len(files) - len(images):,}")
        self.names = np.array(sorted(p.as_posix() for p in images))
        if all(len(p.parts) > 1 for p in images):
            first = np.array([name.partition("/")[0] for name in self.names])
            self.label_names, self.labels = np.unique(first, return_inverse=True)

    def image(self, row: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode the file."""
        return decode(self._file(row), where=self._where(row))

    def check(self, row: int) -> None:
        """Check the header of the file."""
        check_header(self._file(row), where=self._where(row))

    def _file(self, row: int) -> pathlib.Path:
        return self.folder / self.names[row]

    def _where(self, row: int) -> str:
        return f"{self._file(row)} (row {row})"


class ArrayImages(ImageSource):
    """Images of one size in memory.

    A file holds `images`, uint8 (n, H, W, 3), or without the last axis where they are grey. It may
    hold names (`names`, `filename`, `filenames` or `source`; row numbers otherwise), classes as
    numbers or words (`labels`, `wnid` or `label`; `label_names` or `class_names`), and `coarse`
    with `coarse_names`.
    """

    _NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        "names": ("names", "filename", "filenames", "source"),
        "labels": ("labels", "wnid", "label"),
        "label_names": ("label_names", "class_names"),
        "coarse": ("coarse",),
        "coarse_names": ("coarse_names",),
    }

    def __init__(self, images: UInt8[np.ndarray, "n H W *C"], **known: np.ndarray) -> None:
        """Take images in memory; `known` are `names`, `labels` and the others of a source.

        Raises:
          ValueError: for images of another type or shape, other numbers of names or labels, or a
            name that occurs twice.
        """
        grey = images.ndim == 3
        if images.dtype != np.uint8 or not (
            grey or (images.ndim == 4 and images.shape[3] in (1, 3))
        ):
            raise ValueError(
                f"images must be uint8 of shape (n, H, W, 3) or (n, H, W), not {images.dtype} of "
                f"{images.shape}"
            )
        n = len(images)
        self.images = images[..., None] if grey else images
        """The images, with 1 or 3 channels."""
        self.names = _strings(known.get("names", np.arange(n).astype(str)))
        labels, self.label_names = known.get("labels"), known.get("label_names")
        if labels is not None and labels.dtype.kind in "US":
            self.label_names, labels = np.unique(_strings(labels), return_inverse=True)
        self.labels = labels
        self.coarse, self.coarse_names = known.get("coarse"), known.get("coarse_names")
        for what, values in (("names", self.names), ("labels", labels), ("coarse", self.coarse)):
            if values is not None and values.shape != (n,):
                raise ValueError(f"{n} images, but {what} of shape {values.shape}")
        counts = collections.Counter(self.names.tolist())
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"the name {twice[0]!r} occurs more than once")

    @classmethod
    def open(cls, path: PathLike) -> "ArrayImages":
        """Read a file.

        Raises:
          FileNotFoundError, ValueError: naming the file, if it is missing or not as it should be.
        """
        arrays = read_arrays(path, required=("images",))
        known = {}
        for ours, theirs in cls._NAMES.items():
            if found := [name for name in theirs if name in arrays]:
                known[ours] = arrays[found[0]]
        try:
            return cls(arrays["images"], **known)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def image(self, row: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the image."""
        image = self.images[row]
        return image if image.shape[-1] == 3 else image.repeat(3, axis=-1)


class DatasetImages(ImageSource):
    """The images of a Hugging Face data set, from its first column of images.

    The classes are those of its first column of class labels, and of one whose name begins with
    "coarse". Names are row numbers.
    """

    def __init__(self, dataset: Any) -> None:
        import datasets  # slow to import

        columns = {
            kind: [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
            for kind in (datasets.Image, datasets.ClassLabel)
        }
        if not columns[datasets.Image]:
            raise ValueError(f"the data set has no column of images, only {list(dataset.features)}")
        self._column = columns[datasets.Image][0]
        # As bytes, so that all sources are decoded alike.
        images = dataset.select_columns([self._column])
        self._images = images.cast_column(self._column, datasets.Image(decode=False))
        self.names = np.arange(len(dataset)).astype(str)
        for name in columns[datasets.ClassLabel]:
            what, values = np.array(dataset.features[name].names), np.array(dataset[name])
            if name.startswith("coarse"):
                self.coarse_names, self.coarse = what, values
            elif self.labels is None:
                self.label_names, self.labels = what, values

    def image(self, row: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode the image."""
        return decode(self._file(row), where=f"row {row} of the data set")

    def check(self, row: int) -> None:
        """Check the image's header."""
        check_header(self._file(row), where=f"row {row} of the data set")

    def _file(self, row: int) -> File:
        found = self._images[int(row)][self._column]
        if found is None:
            raise BadImageError(f"row {row} of the data set is empty")
        return pathlib.Path(found["path"]) if found["bytes"] is None else found["bytes"]


def load_dataset(name: PathLike, split: str) -> Any:
    """Load a part of a Hugging Face data set from its folder, or by its name.

    Raises:
      FileNotFoundError, ValueError: if there is none, or no such part.
    """
    import datasets  # slow to import

    if pathlib.Path(name).is_dir() and list(pathlib.Path(name).glob("dataset_*.json")):
        loaded = datasets.load_from_disk(str(name))
        if isinstance(loaded, datasets.Dataset):
            return loaded
        if split not in loaded:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(loaded)}")
        return loaded[split]
    try:
        return datasets.load_dataset(str(name), split=split)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"the data set {name} with split {split!r} cannot be had: {error}"
        ) from None


def _strings(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
