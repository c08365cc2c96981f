"""The `.npz` files between the stages: nothing is unpickled, and a file is whole or not there."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from common.files import PathLike, replacing


def read_arrays(path: PathLike, required: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Read all arrays of a `.npz` file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no `.npz` file, is damaged, holds pickled objects or lacks an array.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy have an error of their own for each damage
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} has no array {', '.join(map(repr, missing))}; it holds "
            f"{', '.join(map(repr, arrays)) or 'nothing'}"
        )
    return arrays


def read_array(path: PathLike) -> np.ndarray:
    """Read a `.npy` file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no `.npy` file, is damaged or holds pickled objects.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as .npy: {error}") from error


def write_arrays(path: PathLike, arrays: Mapping[str, Any]) -> None:
    """Write a `.npz` file: never half of one."""
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
