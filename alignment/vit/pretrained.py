"""Hugging Face checkpoints of vision transformers, in and out.

checkpoint = from_pretrained("google/siglip-base-patch16-224")     # or a folder
model = bind(checkpoint.config, checkpoint.params)
save_pretrained("out", checkpoint.config, checkpoint.params, preprocessing=checkpoint.preprocessing)
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from alignment.images.preprocess import Preprocessing, named
from alignment.images.processor import read_processor, render_processor
from alignment.vit.config import ViTConfig
from alignment.vit.hf_format import (
    Architecture,
    denormalise,
    entries,
    normalise,
    parse_config,
    render_config,
)
from alignment.vit.model import init
from alignment.vit.positions import Resampling, resize_model
from common.nn.hub import download, read_json
from common.nn.weights import check_keys, export, load, open_safetensors, write_safetensors
from common.task import Params

_NATIVE: Mapping[Architecture, str] = {
    "vit": "vit",
    "dinov2": "dino",
    "dinov2_with_registers": "dino",
    "clip": "clip",
    "siglip": "siglip",
    "siglip2": "siglip2",
}
_RESAMPLING: Mapping[Architecture, Resampling] = {
    "dinov2_with_registers": "bicubic_antialias",
    "siglip2": "bilinear_antialias",
}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROCESSOR = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model from a checkpoint."""

    config: ViTConfig
    """Its architecture; scan and remat may be replaced freely."""
    params: Params
    """Its parameters, float32, on the host."""
    preprocessing: Preprocessing
    """What it expects to be done to its images, for `config.image_size`."""
    folder: pathlib.Path
    """Where it was read from."""


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    resampling: Resampling | None = None,
    revision: str | None = None,
) -> Pretrained:
    """Read a vision transformer from a folder, or from the Hugging Face hub.

    Of models of images and texts it is the tower of images, with its projection where there is one
    (CLIP). Without a `preprocessor_config.json` the preprocessing is the family's.

    Args:
      name: folder, or name on the hub.
      image_size: side of the images, pixels; by default what the preprocessing gives (224 for
        DINOv2, whose positions are stored for 518). Positions are resampled where they must.
      resampling: how; by default as transformers does it for the architecture.
      revision: branch, tag or commit on the hub.

    Raises:
      FileNotFoundError: if there is no such folder and the hub does not give it, or a file lacks.
      ValueError: for a config that is no ViT of ours, weights that do not fit it, or damaged files.
    """
    folder = pathlib.Path(name)
    if not folder.is_dir():
        folder = download(
            str(name), ["config.json", PROCESSOR, "model*.safetensors*"], revision=revision
        )
    kind, config = parse_config(read_json(folder / "config.json"), where=folder / "config.json")
    stored = normalise(open_safetensors(_weights(folder)), kind)
    if "visual_projection.weight" in stored:
        width = stored["visual_projection.weight"].shape[0]
        config = dataclasses.replace(config, projection=width)
    expected = entries(config)
    check_keys(stored, (key for entry in expected for key in entry.keys), where=folder)
    like = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    params = load(expected, stored, like)
    if (folder / PROCESSOR).is_file():
        preprocessing = read_processor(folder / PROCESSOR, name=_NATIVE[kind])
        image_size = image_size or preprocessing.size
    else:
        preprocessing = named(_NATIVE[kind])
    image_size = image_size or config.image_size
    config, params = resize_model(
        config, params, image_size, method=resampling or _RESAMPLING.get(kind, "bicubic")
    )
    return Pretrained(
        config=config,
        params=params,
        preprocessing=preprocessing.at(image_size),
        folder=folder,
    )


def save_pretrained(
    folder: str | os.PathLike[str],
    config: ViTConfig,
    params: Params,
    *,
    preprocessing: Preprocessing,
) -> None:
    """Write a folder that `transformers` (4 and 5) loads, and `from_pretrained` too.

    Args:
      folder: where to; made if it is not there.
      config: architecture; `vit.hf_format.architecture` says which of transformers' it becomes.
      params: parameters; arrays of lower precision are written as float32.
      preprocessing: what the model expects to be done to its images.

    Raises:
      ValueError: if transformers has no such model, or the preprocessing gives another size.
    """
    if preprocessing.size != config.image_size:
        raise ValueError(
            f"the preprocessing {preprocessing.name} gives images of {preprocessing.size} pixels, "
            f"the model takes {config.image_size}"
        )
    files = {"config.json": render_config(config), PROCESSOR: render_processor(preprocessing)}
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(params))
    tensors = denormalise(export(entries(config), params), config)
    write_safetensors(folder / WEIGHTS[0], tensors)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _weights(folder: pathlib.Path) -> pathlib.Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no weights: neither {' nor '.join(WEIGHTS)}")
