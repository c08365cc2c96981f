"""Features as a teacher sees them: read from a file, and mapped by its transform."""

import dataclasses

import numpy as np
from jaxtyping import Float

from alignment.features import Features
from alignment.files import PathLike
from alignment.judgments import Transform

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
        mapped = apply_transform(Transform.read(transform), found.features)
    except ValueError as error:
        raise ValueError(f"{path} with {transform}: {error}") from error
    return dataclasses.replace(found, features=mapped)


def apply_transform(
    transform: Transform, features: Float[np.ndarray, "n p"]
) -> Float[np.ndarray, "n q"]:
    """Transform features block by block; float32."""
    mapped = np.empty((len(features), transform.weights.shape[1]), np.float32)
    for start in range(0, len(features), BLOCK):
        mapped[start : start + BLOCK] = transform(features[start : start + BLOCK])
    return mapped
