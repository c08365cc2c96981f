"""The architecture of a T5: its sizes, and the three switches between versions 1.0 and 1.1."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from common.choices import check_choice, suggestion
from common.step import Remat
from common.task import ShardingRules

FeedForward = Literal["relu", "gated-gelu"]

PAD, EOS = 0, 1
"""Ids of padding, which also starts the decoder, and of the end of a text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes and switches of a T5 (arXiv:1910.10683)."""

    d_model: int = 512
    """Width of the residual stream."""
    d_ff: int = 2048
    """Width of the feed-forward layers."""
    d_kv: int = 64
    """Width of an attention head; heads * d_kv need not be d_model."""
    heads: int = 8
    """Attention heads."""
    encoder_layers: int = 6
    """Blocks of the encoder."""
    decoder_layers: int = 6
    """Blocks of the decoder."""
    vocab_size: int = 32128
    """Ids that the model can read and write."""
    vocab_multiple: int = 1
    """The embedding gets spare rows up to a multiple of this, so that it divides over devices;
    they are never predicted, and cut off on export."""
    feed_forward: FeedForward = "relu"
    """`wo(relu(wi x))` (v1.0), or `wo(gelu(gate x) * wi x)` with the tanh form of GELU (v1.1, after
    arXiv:2002.05202)."""
    tied: bool = True
    """Project to the vocabulary with the embedding (v1.0) instead of a matrix of its own (v1.1)."""
    scale_output: bool = True
    """Multiply the last decoder state by d_model^-0.5 before that projection (v1.0)."""
    dropout: float = 0.1
    """Probability of dropout: on embeddings, attention weights, inside the feed-forward, on each
    residual branch and after the last norm."""
    dropout_shared: bool = False
    """Share the draws along the length, as T5 was pre-trained; transformers draws each anew."""
    buckets: int = 32
    """Buckets of relative positions."""
    max_distance: int = 128
    """Distance from which all relative positions fall into the last bucket."""
    norm_eps: float = 1e-6
    """Added to the mean square in the norms."""
    scan: bool = True
    """Run the blocks by `lax.scan`, which compiles one. Unrolled, they take about twice as long to
    compile, and on a CPU 10 to 15 % less a step (`benchmarks/`)."""
    remat: Remat = "none"
    """What the backward pass recomputes in each block: nothing, all but matrix products, or all."""

    def __post_init__(self) -> None:
        check_choice("model.feed_forward", self.feed_forward, get_args(FeedForward))
        check_choice("model.remat", self.remat, get_args(Remat))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise ValueError(f"model.{field.name} = {value!r} must be a positive integer")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout = {self.dropout} must lie in [0, 1)")
        if self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"model.buckets = {self.buckets} must be a multiple of 4, and model.max_distance = "
                f"{self.max_distance} more than half of it"
            )

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding, the spare ones included."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

    def sharding_rules(self) -> ShardingRules:
        """Split matrices over `fsdp` along d_model, and over `tensor` along heads, d_ff and ids."""
        table = ("tensor", "fsdp")
        rules: list[tuple[str, tuple[str | None, ...]]] = [
            ("embedding/table", table),
            (".*/(query|key|value)/kernel", (None, "fsdp", "tensor", None)),
            (".*attention/out/kernel", (None, "tensor", None, "fsdp")),
            (".*/(wi|gate)/kernel", (None, "fsdp", "tensor")),
            (".*/wo/kernel", (None, "tensor", "fsdp")),
            (".*/relative_bias/table", (None, "tensor")),
            (".*norm/scale", ()),
        ]
        return rules if self.tied else [*rules, ("lm_head/table", table)]


def _sizes(d_model: int, d_ff: int, layers: int, heads: int, d_kv: int = 64) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "d_ff": d_ff,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "heads": heads,
        "d_kv": d_kv,
    }


_V1_1: dict[str, Any] = {"feed_forward": "gated-gelu", "tied": False, "scale_output": False}

PRESETS: Mapping[str, T5Config] = {
    "t5-tiny": T5Config(**_sizes(64, 128, 2, 4, 16)),
    "t5-small": T5Config(**_sizes(512, 2048, 6, 8)),
    "t5-base": T5Config(**_sizes(768, 3072, 12, 12)),
    "t5-large": T5Config(**_sizes(1024, 4096, 24, 16)),
    "t5-3b": T5Config(**_sizes(1024, 16384, 24, 32, 128)),
    "t5-v1_1-tiny": T5Config(**_sizes(64, 96, 2, 3, 16), **_V1_1),
    "t5-v1_1-small": T5Config(**_sizes(512, 1024, 8, 6), **_V1_1),
    "t5-v1_1-base": T5Config(**_sizes(768, 2048, 12, 12), **_V1_1),
    "t5-v1_1-large": T5Config(**_sizes(1024, 2816, 24, 16), **_V1_1),
    "t5-v1_1-3b": T5Config(**_sizes(2048, 5120, 24, 32), **_V1_1),
}
"""The published sizes (3b is called xl in version 1.1), and one of each version for tests."""


def preset(name: str, **changes: Any) -> T5Config:
    """Return the preset `name` with some fields changed.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; {suggestion(name, PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)
