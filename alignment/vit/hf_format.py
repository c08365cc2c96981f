"""A vision transformer as Hugging Face writes it: the keys of its weights, and its `config.json`.

The keys are those of transformers 4, in which the published checkpoints are; version 5 reads them
too, and `normalise` turns what it writes into them.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from alignment.vit.config import ViTConfig
from alignment.vit.model import init
from common.nn.mlp import Activation
from common.nn.weights import Entry, StoredTensor
from common.tree import named_leaves

Architecture = Literal["vit", "dinov2", "dinov2_with_registers", "clip", "siglip", "siglip2"]
"""The model types of transformers; DINO v1 is a `vit`, and SigLIP 2 with fixed sizes a `siglip`."""

_CLASSES: Mapping[Architecture, str] = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
}
_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_VIT_NAMES = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "registers": "embeddings.register_tokens",
    "patch": "embeddings.patch_embeddings.projection",
    "blocks": "encoder.layer.{}",
    "blocks/attention_norm": "layernorm_before",
    "blocks/attention/query": "attention.attention.query",
    "blocks/attention/key": "attention.attention.key",
    "blocks/attention/value": "attention.attention.value",
    "blocks/attention/out": "attention.output.dense",
    "blocks/mlp_norm": "layernorm_after",
    "blocks/mlp/wi": "intermediate.dense",
    "blocks/mlp/wo": "output.dense",
    "final_norm": "layernorm",
}
_DINOV2_NAMES = _VIT_NAMES | {
    "blocks/attention_norm": "norm1",
    "blocks/attention_scale": "layer_scale1.lambda1",
    "blocks/mlp_norm": "norm2",
    "blocks/mlp/wi": "mlp.fc1",
    "blocks/mlp/wo": "mlp.fc2",
    "blocks/mlp_scale": "layer_scale2.lambda1",
}
_CLIP_NAMES = {
    "class_token": "vision_model.embeddings.class_embedding",
    "positions": "vision_model.embeddings.position_embedding.weight",
    "patch": "vision_model.embeddings.patch_embedding",
    "pre_norm": "vision_model.pre_layrnorm",
    "blocks": "vision_model.encoder.layers.{}",
    "blocks/attention_norm": "layer_norm1",
    "blocks/attention/query": "self_attn.q_proj",
    "blocks/attention/key": "self_attn.k_proj",
    "blocks/attention/value": "self_attn.v_proj",
    "blocks/attention/out": "self_attn.out_proj",
    "blocks/mlp_norm": "layer_norm2",
    "blocks/mlp/wi": "mlp.fc1",
    "blocks/mlp/wo": "mlp.fc2",
    "final_norm": "vision_model.post_layernorm",
    "projection": "visual_projection",
    "map_pool/probe": "vision_model.head.probe",
    "map_pool/attention/query": "vision_model.head.attention.q_proj",
    "map_pool/attention/key": "vision_model.head.attention.k_proj",
    "map_pool/attention/value": "vision_model.head.attention.v_proj",
    "map_pool/attention/out": "vision_model.head.attention.out_proj",
    "map_pool/norm": "vision_model.head.layernorm",
    "map_pool/mlp/wi": "vision_model.head.mlp.fc1",
    "map_pool/mlp/wo": "vision_model.head.mlp.fc2",
}
_NAMES: Mapping[Architecture, Mapping[str, str]] = {
    "vit": _VIT_NAMES,
    "dinov2": _DINOV2_NAMES,
    "dinov2_with_registers": _DINOV2_NAMES,
    "clip": _CLIP_NAMES,
    "siglip": _CLIP_NAMES,
}
# Stored with leading axes of length 1.
_THREE_AXES = {_VIT_NAMES[name] for name in ("class_token", "positions", "registers")} | {
    _CLIP_NAMES["map_pool/probe"]
}
_PROBE = "vision_model.head.attention"
_FUSED = ("q_proj", "k_proj", "v_proj")  # which torch keeps in one tensor there
_MASK = "embeddings.mask_token"  # of DINOv2's training only
_UNUSED = re.compile(
    r"text_model\..*|text_projection\..*|logit_(scale|bias)|(.*\.)?position_ids|classifier\..*"
    r"|pooler\..*|embeddings\.mask_token"
)
_RENAMED: tuple[tuple[str, str], ...] = (
    (r"^(vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^(embeddings\.(class|patch|position)_embedding\b|pre_layrnorm|post_layernorm|head\.|"
     r"encoder\.layers\.)", r"vision_model.\1"),
    (r"^layers\.", "encoder.layer."),
    (r"^(encoder\.layer\.\d+\.)attention\.([qkv])_proj\.", r"\1attention.attention.\2."),
    (r"\.attention\.attention\.q\.", ".attention.attention.query."),
    (r"\.attention\.attention\.k\.", ".attention.attention.key."),
    (r"\.attention\.attention\.v\.", ".attention.attention.value."),
    (r"^(encoder\.layer\.\d+\.attention\.)o_proj\.", r"\1output.dense."),
)  # fmt: skip
_RENAMED_VIT = (
    (r"^(encoder\.layer\.\d+\.)mlp\.fc1\.", r"\1intermediate.dense."),
    (r"^(encoder\.layer\.\d+\.)mlp\.fc2\.", r"\1output.dense."),
)


def architecture(config: ViTConfig) -> Architecture:
    """Return the model type of transformers that holds such a model.

    Raises:
      ValueError: if there is none.
    """
    found: Architecture
    example: dict[str, Any]
    if config.pool == "map":
        found, example = "siglip", {"pool": "map", "class_token": False}
    elif config.layer_scale is not None:
        found = "dinov2_with_registers" if config.registers else "dinov2"
        example = {"layer_scale": config.layer_scale, "registers": config.registers}
    elif config.pre_norm:
        found = "clip"
        example = {"pre_norm": True, "patch_bias": False, "projection": config.projection}
    else:
        found, example = "vit", {}
    like = ViTConfig(**{"pool": config.pool} | example)
    for name in ("class_token", "registers", "layer_scale", "pre_norm", "patch_bias", "projection"):
        if getattr(config, name) != getattr(like, name):
            raise ValueError(
                f"transformers has no model with model.{name} = {getattr(config, name)!r} beside "
                f"the other settings; the nearest, {found}, has {getattr(like, name)!r}"
            )
    if found.startswith("dinov2") and config.mlp % config.width:
        raise ValueError(
            f"{found} needs model.mlp, {config.mlp}, as a multiple of model.width, {config.width}"
        )
    return found


def entries(config: ViTConfig) -> list[Entry]:
    """Say where each parameter is in a checkpoint, as `normalise` makes it."""
    names = _NAMES[architecture(config)]
    found = []
    for name, leaf in named_leaves(jax.eval_shape(lambda: init(config, jax.random.key(0)))):
        module, _, parameter = name.rpartition("/")
        stacked = module.startswith("blocks")
        ours = leaf.shape[1:] if stacked else leaf.shape
        shape = ours
        if parameter in ("kernel", "bias", "scale"):
            key = f"{names[module]}.{'bias' if parameter == 'bias' else 'weight'}"
            shape = (math.prod(ours),)
        else:
            key = names[name]
            if key in _THREE_AXES:
                shape = (1,) * (3 - len(ours)) + ours
        if parameter == "kernel":
            # All axes but the last are inputs, or the first alone.
            inputs = math.prod(ours[:-1]) if module.endswith(("out", "patch")) else ours[0]
            shape = (math.prod(ours) // inputs, inputs)
        layers = [f"{names['blocks'].format(l)}.{key}" for l in range(config.layers)]
        found.append(
            Entry(
                name=name,
                keys=tuple(layers) if stacked else (key,),
                shape=shape,
                transpose=parameter == "kernel",
                stacked=stacked,
            )
        )
    return found


def normalise(stored: Mapping[str, StoredTensor], kind: Architecture) -> dict[str, StoredTensor]:
    """Return the tensors of the vision tower under the keys and in the shapes of `entries`.

    Towers of other modalities, classifiers and poolers behind the class token are left out. The map
    of the patches becomes (d, p * p * 3), and what attention pooling keeps in one becomes three.
    """
    found: dict[str, StoredTensor] = {}
    renamed = (*_RENAMED, *(_RENAMED_VIT if kind == "vit" else ()))
    for key, tensor in stored.items():
        for pattern, replacement in renamed:
            key = re.sub(pattern, replacement, key)
        if _UNUSED.fullmatch(key):
            continue
        if key.startswith(f"{_PROBE}.in_proj_"):
            last = key.removeprefix(f"{_PROBE}.in_proj_")
            for part, name in enumerate(_FUSED):
                found[f"{_PROBE}.{name}.{last}"] = _third(tensor, part)
        elif len(tensor.shape) == 4:
            found[key] = _rows_of_pixels(tensor)
        else:
            found[key] = tensor
    return found


def _third(tensor: StoredTensor, part: int) -> StoredTensor:
    size = tensor.shape[0] // 3

    def read() -> np.ndarray:
        return tensor.read()[part * size : (part + 1) * size]

    return StoredTensor(
        file=tensor.file, key=tensor.key, shape=(size, *tensor.shape[1:]), read=read
    )


def _rows_of_pixels(tensor: StoredTensor) -> StoredTensor:
    shape = (tensor.shape[0], math.prod(tensor.shape[1:]))

    def read() -> np.ndarray:
        return tensor.read().transpose(0, 2, 3, 1).reshape(shape)

    return StoredTensor(file=tensor.file, key=tensor.key, shape=shape, read=read)


def denormalise(tensors: Mapping[str, np.ndarray], config: ViTConfig) -> dict[str, np.ndarray]:
    """Return the tensors as transformers keeps them, from those under the keys of `entries`."""
    kind, p = architecture(config), config.patch
    found = dict(tensors)
    patch = f"{_NAMES[kind]['patch']}.weight"
    kernel = found[patch].reshape(config.width, p, p, 3)
    found[patch] = np.ascontiguousarray(kernel.transpose(0, 3, 1, 2))
    if kind == "siglip":
        for last in ("weight", "bias"):
            parts = [
                found.pop(f"{_PROBE}.{name}.{last}") for name in ("q_proj", "k_proj", "v_proj")
            ]
            found[f"{_PROBE}.in_proj_{last}"] = np.concatenate(parts)
    if kind.startswith("dinov2"):
        found[_MASK] = np.zeros((1, config.width), np.float32)
    return found


def parse_config(
    raw: Mapping[str, Any], *, where: str | os.PathLike[str]
) -> tuple[Architecture, ViTConfig]:
    """Turn a Hugging Face config into ours, and say which architecture it is.

    Fields that are missing have the defaults of transformers, which published configs rely on.

    Args:
      raw: the JSON object.
      where: its file, for errors.

    Raises:
      ValueError: for a model that is not one of ours.
    """
    kind: Architecture = str(raw.get("model_type")).removesuffix("_vision_model")  # type: ignore[assignment]
    if kind not in (*_NAMES, "siglip2"):
        raise ValueError(
            f"{where}: model_type = {raw.get('model_type')!r}; the vision models known are "
            f"{', '.join(_NAMES)} and siglip2"
        )
    raw = {**raw, **(raw.get("vision_config") or {})}
    for field, value in (
        ("num_channels", 3),
        ("qkv_bias", True),
        ("use_swiglu_ffn", False),
        ("vision_use_head", True),
    ):
        if raw.get(field, value) != value:
            raise ValueError(f"{where}: {field} = {raw[field]!r}; only {value!r} is supported")
    activation = raw.get(
        "hidden_act",
        {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh", "siglip2": "gelu_pytorch_tanh"}.get(
            kind, "gelu"
        ),
    )
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{where}: hidden_act = {activation!r}; known are {', '.join(_ACTIVATIONS)}"
        )
    patch = _side(raw, "patch_size", {"clip": 32, "dinov2": 14}.get(kind, 16), where)
    width = raw.get("hidden_size", 768)
    switches: dict[str, Any] = {}
    if kind.startswith("siglip"):
        switches = {"pool": "map", "class_token": False}
    elif kind == "clip":
        switches = {"pre_norm": True, "patch_bias": False}
    elif kind.startswith("dinov2"):
        switches = {"layer_scale": raw.get("layerscale_value", 1.0)}
        if kind == "dinov2_with_registers":
            switches["registers"] = raw.get("num_register_tokens", 4)
    if kind == "siglip2":
        image_size = math.isqrt(raw.get("num_patches", 256)) * patch
    else:
        image_size = _side(raw, "image_size", 224, where)
    if raw.get("alignment_pool") is not None:
        switches["pool"] = raw["alignment_pool"]
    default_eps = {"vit": 1e-12, "clip": 1e-5}.get(kind, 1e-6)
    try:
        return kind, ViTConfig(
            image_size=image_size,
            patch=patch,
            width=width,
            mlp=raw.get("intermediate_size", 3072)
            if not kind.startswith("dinov2")
            else int(width * raw.get("mlp_ratio", 4)),
            layers=raw.get("num_hidden_layers", 12),
            heads=raw.get("num_attention_heads", 12),
            activation=_ACTIVATIONS[activation],
            norm_eps=raw.get("layer_norm_eps", default_eps),
            **switches,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _side(raw: Mapping[str, Any], field: str, default: int, where: Any) -> int:
    value = raw.get(field, default)
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{where}: {field} = {value}; only squares are supported")
    return int(sides.pop())


def render_config(config: ViTConfig) -> dict[str, Any]:
    """Turn our config into one that transformers 4 and 5 both read as we mean it.

    Raises:
      ValueError: if transformers has no such model.
    """
    kind = architecture(config)
    theirs = {ours: name for name, ours in _ACTIVATIONS.items() if name != "gelu_new"}
    found: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": f"{kind}_vision_model" if kind in ("clip", "siglip") else kind,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": theirs[config.activation],
        "layer_norm_eps": config.norm_eps,
        "dtype": "float32",
    }
    if kind.startswith("dinov2"):
        found |= {"mlp_ratio": config.mlp // config.width, "layerscale_value": config.layer_scale}
        found |= {"apply_layernorm": True, "reshape_hidden_states": True}
        if config.registers:
            found["num_register_tokens"] = config.registers
    else:
        found["intermediate_size"] = config.mlp
    if config.projection is not None:
        found |= {
            "architectures": ["CLIPVisionModelWithProjection"],
            "projection_dim": config.projection,
        }
    if config.pool == "mean":
        found["alignment_pool"] = config.pool
    return found
