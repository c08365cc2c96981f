"""Turn the shared photographs into plain `.npz` files, with their own reader.

    python -m benchmarks.alignment.decode_images

They are stored as the coefficients of their JPEG files. Sets that are there already are left.
"""

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Decode the shared photographs."""

    data: pathlib.Path = pathlib.Path("../shared/data/images")
    """Folder with `read_images.py` and the sets."""
    output: pathlib.Path = pathlib.Path("runs/alignment/images")
    """Folder to write to."""
    sets: tuple[str, ...] = (
        "tiny_imagenet_train",
        "tiny_imagenet_test",
        "cifar10_train",
        "cifar10_test",
    )
    """Names of the sets."""


def reader(data: pathlib.Path) -> Callable[[pathlib.Path], dict[str, np.ndarray]]:
    """Return the function that decodes a set."""
    spec = importlib.util.spec_from_file_location("read_images", data / "read_images.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{data} has no read_images.py")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


def run(arguments: Arguments) -> dict[str, pathlib.Path]:
    """Decode the sets that are missing, and return the file of each."""
    load = reader(arguments.data)
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = {name: arguments.output / f"{name}.npz" for name in arguments.sets}
    for name, path in files.items():
        if not path.exists():
            draft = path.with_name(f".{path.name}")
            with draft.open("wb") as file:
                np.savez(file, **load(arguments.data / f"{name}.npz"))
            os.replace(draft, path)
            print(f"written: {path}")
    return files


if __name__ == "__main__":
    run(tyro.cli(Arguments))
