"""Position embeddings of another grid of patches."""

import dataclasses
from typing import Literal, get_args

import jax
import numpy as np
import scipy.ndimage
from jaxtyping import Float

from alignment.vit.config import ViTConfig
from common.choices import check_choice
from common.task import Params

Resampling = Literal["bicubic", "bicubic_antialias", "bilinear_antialias", "linear"]
"""How the models' own code does it: ViT, DINO, DINOv2, CLIP and SigLIP in transformers; DINOv2 with
registers; SigLIP 2; big_vision, whose outermost positions stay where they are."""


def resize_model(
    config: ViTConfig, params: Params, image_size: int, *, method: Resampling = "bicubic"
) -> tuple[ViTConfig, Params]:
    """Return the model for images of another side, its position embeddings resampled.

    Args:
      config: architecture.
      params: parameters.
      image_size: new side of the images, pixels.
      method: how to resample; there is nothing to do where the grid stays.
    """
    check_choice("resampling", method, get_args(Resampling))
    new = dataclasses.replace(config, image_size=image_size)
    if new.grid == config.grid:
        return new, params
    positions = np.asarray(params["positions"], np.float32)
    first = int(config.class_token)
    table = positions[first:].reshape(config.grid, config.grid, config.width)
    patches = resample(table, new.grid, method).reshape(-1, config.width)
    return new, {**params, "positions": np.concatenate([positions[:first], patches])}


def resample(
    table: Float[np.ndarray, "g g d"], grid: int, method: Resampling
) -> Float[np.ndarray, "n n d"]:
    """Resample a square table of embeddings to `grid` rows and columns."""
    old, shape = len(table), (grid, grid, table.shape[-1])
    if method == "linear":
        factor = grid / old
        return scipy.ndimage.zoom(table, (factor, factor, 1), order=1)
    if method == "bicubic":
        weights = cubic_weights(old, grid)
        return np.einsum("ia,jb,abd->ijd", weights, weights, table, optimize=True)
    kernel = "cubic" if method == "bicubic_antialias" else "linear"
    return np.asarray(jax.image.resize(table, shape, kernel, antialias=True))


def cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix of a cubic interpolation without antialiasing.

    It is Keys' kernel with a = -0.75 (doi 10.1109/TASSP.1981.1163711), at the centres of pixels,
    the border repeated: that of torch and of OpenCV.
    """
    a = -0.75
    at = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    x = np.abs(at[:, None] - taps)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    weights = np.zeros((new, old), np.float32)
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    np.add.at(weights, (rows, taps.clip(0, old - 1)), np.where(x <= 1, near, far))
    return weights
