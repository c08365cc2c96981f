"""Features as a teacher sees them: read from a file, and mapped by its transform."""

import dataclasses

import numpy as np
from jaxtyping import Float

from alignment.features import Features
from alignment.judgments import Transform
from common.files import PathLike

BLOCK = 65_536
"""Rows that are transformed at once, so that no copy of all features is made in between."""


def read_transformed(path: PathLike, transform: PathLike | None) -> Features:
    """Read a features file, and transform the features where a transform is given.

    Raises:
      FileNotFoundError, ValueError: naming the file, if one is missing or not as it should be.
    """
    found = Features.read(path)
    if transform is None:
        return found
    try:
        mapped = apply_transform(Transform.read(transform), found.features, overwrite=True)
    except ValueError as error:
        raise ValueError(f"{path} with {transform}: {error}") from error
    return dataclasses.replace(found, features=mapped)


def apply_transform(
    transform: Transform, features: Float[np.ndarray, "n p"], *, overwrite: bool = False
) -> Float[np.ndarray, "n q"]:
    """Transform features block by block; float32.

    Args:
      transform: the transform.
      features: the features.
      overwrite: write over the features where the dimension stays: those of a whole ImageNet need
        not have room twice.
    """
    n, (p, q) = len(features), transform.weights.shape
    mapped = features if overwrite and p == q else np.empty((n, q), np.float32)
    for start in range(0, n, BLOCK):
        mapped[start : start + BLOCK] = transform(features[start : start + BLOCK])
    return mapped
