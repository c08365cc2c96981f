"""What is done to an image before a model sees it, by name.

preprocessing = named("alignet", 224)
pixels = preprocessing.resize(image)        # uint8 (224, 224, 3), on the host
inputs = preprocessing.normalise(pixels)    # float32, on a host or a device
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

import cv2
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8
from PIL import Image

from common.choices import check_choice, suggestion
from common.config import to_dict

Filter = Literal["opencv_cubic", "bicubic", "bilinear"]
Triple = tuple[float, float, float]
Pixels = TypeVar("Pixels", np.ndarray, Array)

cv2.setNumThreads(1)  # the images of a batch are spread over threads already

PILLOW_FILTERS: Mapping[Filter, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Pillow's filters by our names."""
_HALF = (0.5, 0.5, 0.5)
_IMAGENET: dict[str, Triple] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP: dict[str, Triple] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resizing to a square, and the scale of its pixels."""

    name: str
    """What it is called."""
    size: int
    """Side of the result, pixels."""
    filter: Filter
    """OpenCV's cubic interpolation, which skips pixels of larger images; or Pillow's filters, which
    average over them (antialiasing)."""
    shortest_edge: int | None = None
    """The image is scaled to this shortest edge and its middle cut out; if None, the whole image is
    stretched to the square."""
    mean: Triple = (0.0, 0.0, 0.0)
    """Subtracted from red, green and blue, which reach from 0 to 1."""
    std: Triple = (1.0, 1.0, 1.0)
    """Divides the differences."""

    def __post_init__(self) -> None:
        check_choice("filter", self.filter, get_args(Filter))
        if self.size < 1 or (self.shortest_edge or self.size) < self.size:
            raise ValueError(
                f"preprocessing {self.name}: size = {self.size} must be positive, and no more than "
                f"shortest_edge = {self.shortest_edge}"
            )

    def __str__(self) -> str:
        """Return all of it as JSON: what files of features say about their images."""
        return json.dumps(to_dict(self))

    def resize(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "S S 3"]:
        """Resize an RGB image; the result is rounded to 8 bits."""
        if self.shortest_edge is None:
            return self._scaled(image, self.size, self.size)
        height, width = image.shape[:2]
        short, long = min(height, width), max(height, width)
        longest_edge = int(self.shortest_edge * long / short)
        if height <= width:
            image = self._scaled(image, self.shortest_edge, longest_edge)
        else:
            image = self._scaled(image, longest_edge, self.shortest_edge)
        top, left = (image.shape[0] - self.size) // 2, (image.shape[1] - self.size) // 2
        return image[top : top + self.size, left : left + self.size]

    def normalise(self, images: Pixels) -> Pixels:
        """Return `(pixels / 255 - mean) / std` in float32 for uint8 images `(..., S, S, 3)`.

        Arrays of numpy stay such.
        """
        scaled = images.astype(np.float32) / np.float32(255)
        if self.mean == (0, 0, 0) and self.std == (1, 1, 1):
            return scaled
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def at(self, size: int) -> "Preprocessing":
        """Return the same for another side; the margin that is cut off keeps its share."""
        edge = self.shortest_edge
        if edge is not None:
            edge = round(edge * size / self.size)
        return dataclasses.replace(self, size=size, shortest_edge=edge)

    def _scaled(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[:2] == (height, width):
            return image
        if self.filter == "opencv_cubic":
            return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(
            Image.fromarray(image).resize((width, height), PILLOW_FILTERS[self.filter])
        )


PREPROCESSINGS: Mapping[str, Preprocessing] = {
    p.name: p
    for p in (
        Preprocessing(name="alignet", size=224, filter="opencv_cubic"),
        Preprocessing(name="vit", size=224, filter="bilinear", mean=_HALF, std=_HALF),
        Preprocessing(name="dino", size=224, shortest_edge=256, filter="bicubic", **_IMAGENET),
        Preprocessing(name="clip", size=224, shortest_edge=224, filter="bicubic", **_CLIP),
        Preprocessing(name="siglip", size=224, filter="bicubic", mean=_HALF, std=_HALF),
        Preprocessing(name="siglip2", size=224, filter="bilinear", mean=_HALF, std=_HALF),
    )
}
"""That of the published AligNet models, and those that the families of models were trained for."""


def named(name: str, size: int = 224) -> Preprocessing:
    """Return the preprocessing `name` for images of side `size`.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in PREPROCESSINGS:
        raise ValueError(f"no preprocessing {name!r}; {suggestion(name, PREPROCESSINGS)}")
    return PREPROCESSINGS[name].at(size)


def preprocess(
    name: str, image: UInt8[np.ndarray, "H W 3"], size: int = 224
) -> Float[np.ndarray, "S S 3"]:
    """Resize and normalise one image on the host."""
    preprocessing = named(name, size)
    return preprocessing.normalise(preprocessing.resize(image))
