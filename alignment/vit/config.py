"""The architecture of a vision transformer: its sizes, and the switches between the families."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from common.choices import check_choice, suggestion
from common.nn.mlp import Activation
from common.step import Remat
from common.task import ShardingRules

Pool = Literal["class", "map", "mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes and switches of a ViT (arXiv:2010.11929).

    The families differ in few things: CLIP (arXiv:2103.00020) normalises before the first block and
    projects at the end, DINOv2 (arXiv:2304.07193) scales its residual branches, SigLIP
    (arXiv:2303.15343) and SigLIP 2 pool by attention and have no class token.
    """

    image_size: int = 224
    """Side of the square images, pixels."""
    patch: int = 16
    """Side of a patch, pixels; where the images are no multiple of it, their last pixels are not
    seen."""
    width: int = 768
    """Width of the residual stream."""
    mlp: int = 3072
    """Width of the hidden layers."""
    layers: int = 12
    """Blocks."""
    heads: int = 12
    """Attention heads, of size width / heads."""
    activation: Activation = "gelu"
    """Activation of the hidden layers."""
    pool: Pool = "class"
    """What stands for the image: the class token, a learned probe that attends to all tokens (MAP,
    arXiv:2106.04560), or the mean of the patches' tokens."""
    class_token: bool = True
    """Put a learned token before the patches'."""
    registers: int = 0
    """Learned tokens without position (arXiv:2309.16588)."""
    layer_scale: float | None = None
    """Initial factor of each entry of the residual branches (arXiv:2103.17239); None for none."""
    pre_norm: bool = False
    """Normalise the tokens before the first block."""
    patch_bias: bool = True
    """Whether the map of the patches has a bias."""
    projection: int | None = None
    """Width of a last linear map of what stands for the image; None for none."""
    norm_eps: float = 1e-6
    """Added to the variance in the norms."""
    scan: bool = True
    """Run the blocks by `lax.scan`, which compiles one. Unrolled, they take about twice as long to
    compile, and on a CPU 10 to 15 % less a step (`benchmarks/`)."""
    remat: Remat = "none"
    """What the backward pass recomputes in each block: nothing, all but matrix products, or all."""

    def __post_init__(self) -> None:
        check_choice("model.activation", self.activation, get_args(Activation))
        check_choice("model.pool", self.pool, get_args(Pool))
        check_choice("model.remat", self.remat, get_args(Remat))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "registers" else 1
            if field.type is int and (not isinstance(value, int) or value < least):
                raise ValueError(f"model.{field.name} = {value!r} must be an integer >= {least}")
        if self.width % self.heads:
            raise ValueError(
                f"model.width = {self.width} is no multiple of model.heads = {self.heads}"
            )
        if self.image_size < self.patch:
            raise ValueError(
                f"model.image_size = {self.image_size} holds no patch of {self.patch} pixels"
            )
        if self.pool == "class" and not self.class_token:
            raise ValueError("model.pool = 'class' needs model.class_token")

    @property
    def grid(self) -> int:
        """Patches along a side of an image."""
        return self.image_size // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return int(self.class_token) + self.registers

    @property
    def features(self) -> int:
        """Width of the features of an image."""
        return self.projection or self.width

    def sharding_rules(self) -> ShardingRules:
        """Split matrices over `fsdp` along the width, and over `tensor` along heads and mlp."""
        rules: list[tuple[str, tuple[str | None, ...]]] = []
        for prefix, layers in (("blocks", (None,)), ("map_pool", ())):
            if prefix == "blocks" or self.pool == "map":
                rules += [
                    (f"{prefix}/attention/(query|key|value)/kernel", (*layers, "fsdp", "tensor")),
                    (f"{prefix}/attention/out/kernel", (*layers, "tensor", None, "fsdp")),
                    (f"{prefix}/mlp/wi/kernel", (*layers, "fsdp", "tensor")),
                    (f"{prefix}/mlp/wo/kernel", (*layers, "tensor", "fsdp")),
                ]
        if self.projection is not None:
            rules.append(("projection/kernel", ("fsdp", "tensor")))
        return [*rules, ("patch/kernel", (None, None, None, "fsdp")), (".*", ())]


def _sizes(width: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    return {"width": width, "mlp": mlp, "layers": layers, "heads": heads}


_TINY: dict[str, Any] = {"image_size": 32, "patch": 8, **_sizes(64, 128, 2, 4)}
_TI = _sizes(192, 768, 12, 3)
_S = _sizes(384, 1536, 12, 6)
_B = _sizes(768, 3072, 12, 12)
_L = _sizes(1024, 4096, 24, 16)
_SO400M = _sizes(1152, 4304, 27, 16)

_VIT: dict[str, Any] = {"norm_eps": 1e-12}
_DINOV2: dict[str, Any] = {"layer_scale": 1.0, "patch": 14, "image_size": 518}
_REGISTERS: dict[str, Any] = {**_DINOV2, "registers": 4}
_CLIP: dict[str, Any] = {
    "activation": "quick_gelu",
    "pre_norm": True,
    "patch_bias": False,
    "norm_eps": 1e-5,
}
_SIGLIP: dict[str, Any] = {"activation": "gelu_tanh", "pool": "map", "class_token": False}

PRESETS: Mapping[str, ViTConfig] = {
    "vit-tiny": ViTConfig(**_VIT | _TINY),
    "vit-ti16": ViTConfig(**_VIT, **_TI),
    "vit-s16": ViTConfig(**_VIT, **_S),
    "vit-b16": ViTConfig(**_VIT, **_B),
    "vit-b32": ViTConfig(**_VIT, **_B, patch=32),
    "vit-l16": ViTConfig(**_VIT, **_L),
    "dino-s16": ViTConfig(**_VIT, **_S),
    "dino-s8": ViTConfig(**_VIT, **_S, patch=8),
    "dino-b16": ViTConfig(**_VIT, **_B),
    "dino-b8": ViTConfig(**_VIT, **_B, patch=8),
    "dinov2-tiny": ViTConfig(**_DINOV2 | _TINY),
    "dinov2-s14": ViTConfig(**_DINOV2, **_S),
    "dinov2-b14": ViTConfig(**_DINOV2, **_B),
    "dinov2-l14": ViTConfig(**_DINOV2, **_L),
    "dinov2-reg-tiny": ViTConfig(**_REGISTERS | _TINY),
    "dinov2-reg-s14": ViTConfig(**_REGISTERS, **_S),
    "dinov2-reg-b14": ViTConfig(**_REGISTERS, **_B),
    "dinov2-reg-l14": ViTConfig(**_REGISTERS, **_L),
    "clip-tiny": ViTConfig(**_CLIP | _TINY, projection=48),
    "clip-b32": ViTConfig(**_CLIP, **_B, patch=32, projection=512),
    "clip-b16": ViTConfig(**_CLIP, **_B, projection=512),
    "clip-l14": ViTConfig(**_CLIP, **_L, patch=14, projection=768),
    "clip-l14-336": ViTConfig(**_CLIP, **_L, patch=14, image_size=336, projection=768),
    "siglip-tiny": ViTConfig(**_SIGLIP | _TINY),
    "siglip-b16": ViTConfig(**_SIGLIP, **_B),
    "siglip-l16-256": ViTConfig(**_SIGLIP, **_L, image_size=256),
    "siglip-so400m14": ViTConfig(**_SIGLIP, **_SO400M, patch=14),
    "siglip-so400m14-384": ViTConfig(**_SIGLIP, **_SO400M, patch=14, image_size=384),
    "siglip2-b16": ViTConfig(**_SIGLIP, **_B),
    "siglip2-l16-256": ViTConfig(**_SIGLIP, **_L, image_size=256),
    "siglip2-so400m14": ViTConfig(**_SIGLIP, **_SO400M, patch=14),
    "siglip2-so400m14-384": ViTConfig(**_SIGLIP, **_SO400M, patch=14, image_size=384),
    "siglip2-so400m16-256": ViTConfig(**_SIGLIP, **_SO400M, image_size=256),
}
"""The published architectures, and one of each kind for tests; the side is 224 pixels unless the
name says more, and 518 for DINOv2."""


def preset(name: str, **changes: Any) -> ViTConfig:
    """Return the preset `name` with some fields changed.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; {suggestion(name, PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)
