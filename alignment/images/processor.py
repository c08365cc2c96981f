"""A preprocessing as Hugging Face writes it: `preprocessor_config.json`."""

import json
import math
import os
import pathlib
from typing import Any

from alignment.images.preprocess import PILLOW_FILTERS, Preprocessing


def read_processor(path: str | os.PathLike[str], *, name: str) -> Preprocessing:
    """Read the preprocessing of a model from its folder's `preprocessor_config.json`.

    Args:
      path: the file.
      name: what to call it, unless the file was written here and says so.

    Raises:
      ValueError: for a damaged file, or a preprocessing that is not one of ours.
    """
    try:
        raw = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if not raw.get("do_resize", True) or not raw.get("do_rescale", True):
            raise ValueError("images are not resized, or not scaled to [0, 1]")
        if not math.isclose(255 * raw.get("rescale_factor", 1 / 255), 1):
            raise ValueError(f"rescale_factor = {raw['rescale_factor']}")
        size, edge = raw["size"], None
        if raw.get("do_center_crop"):
            edge = size if isinstance(size, int) else size["shortest_edge"]
            size = raw["crop_size"]
        filters = {filter.value: ours for ours, filter in PILLOW_FILTERS.items()}
        normalised = raw.get("do_normalize", True)
        return Preprocessing(
            name=raw.get("preprocessing", name),
            size=_side(size),
            shortest_edge=edge,
            filter=raw.get("filter") or filters[raw["resample"]],
            mean=tuple(raw["image_mean"]) if normalised else (0.0, 0.0, 0.0),
            std=tuple(raw["image_std"]) if normalised else (1.0, 1.0, 1.0),
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing or not supported") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no preprocessing that is known here: {error}") from None


def _side(size: int | dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size["height"] != size["width"]:
        raise ValueError(f"{size} is no square")
    return size["height"]


def render_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """Turn a preprocessing into a config that transformers reads.

    It has no filter like OpenCV's: what stands there is the nearest, and ours beside it.
    """
    square = {"height": preprocessing.size, "width": preprocessing.size}
    edge = preprocessing.shortest_edge
    shape: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": square}
    if edge is not None:
        shape = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": edge},
            "do_center_crop": True,
            "crop_size": square,
        }
    nearest = PILLOW_FILTERS.get(preprocessing.filter, PILLOW_FILTERS["bicubic"])
    return {
        **shape,
        "do_resize": True,
        "resample": nearest.value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": True,
        "preprocessing": preprocessing.name,
        "filter": preprocessing.filter,
    }
