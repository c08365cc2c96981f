"""A T5 as Hugging Face writes it: the keys of its weights, and its `config.json`."""

import os
from collections.abc import Mapping
from typing import Any

from common.nn.weights import Entry
from molt5_multitask.config import EOS, PAD, T5Config


def entries(config: T5Config) -> list[Entry]:
    """Say where each parameter is in a Hugging Face T5; `config.vocab_size` is the row count."""
    d, inner, ff = config.d_model, config.heads * config.d_kv, config.d_ff
    wide = {"wi": "wi"} if config.feed_forward == "relu" else {"gate": "wi_0", "wi": "wi_1"}
    attention = {"query": "q", "key": "k", "value": "v", "out": "o"}
    found = [Entry(name="embedding/table", keys=("shared.weight",), shape=(config.vocab_size, d))]
    if not config.tied:
        found.append(
            Entry(name="lm_head/table", keys=("lm_head.weight",), shape=(config.vocab_size, d))
        )
    for stack, layers, sublayers in (
        (
            "encoder",
            config.encoder_layers,
            {"attention": "SelfAttention", "feed_forward": "DenseReluDense"},
        ),
        (
            "decoder",
            config.decoder_layers,
            {
                "self_attention": "SelfAttention",
                "cross_attention": "EncDecAttention",
                "feed_forward": "DenseReluDense",
            },
        ),
    ):
        for i, (ours, theirs) in enumerate(sublayers.items()):
            names = attention if "attention" in ours else {**wide, "wo": "wo"}
            for name, letter in names.items():
                shape = {"out": (d, inner), "wo": (d, ff)}.get(
                    name, (inner, d) if names is attention else (ff, d)
                )
                found.append(
                    Entry(
                        name=f"{stack}/blocks/{ours}/{name}/kernel",
                        keys=tuple(
                            f"{stack}.block.{l}.layer.{i}.{theirs}.{letter}.weight"
                            for l in range(layers)
                        ),
                        shape=shape,
                        transpose=True,
                        stacked=True,
                    )
                )
            found.append(
                Entry(
                    name=f"{stack}/blocks/{ours}_norm/scale",
                    keys=tuple(
                        f"{stack}.block.{l}.layer.{i}.layer_norm.weight" for l in range(layers)
                    ),
                    shape=(d,),
                    stacked=True,
                )
            )
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found += [
            Entry(
                name=f"{stack}/relative_bias/table",
                keys=(bias,),
                shape=(config.buckets, config.heads),
            ),
            Entry(
                name=f"{stack}/final_norm/scale",
                keys=(f"{stack}.final_layer_norm.weight",),
                shape=(d,),
            ),
        ]
    return found


def parse_config(raw: Mapping[str, Any], *, where: str | os.PathLike[str]) -> T5Config:
    """Turn a Hugging Face config, of transformers 4 or 5, into ours.

    Version 5 sets `tie_word_embeddings` to true in every config and keeps what version 4 meant by
    it, besides tying, in `scale_decoder_outputs`. So the flag does not tell whether the output is
    tied: the weights do, and `from_pretrained` corrects `tied` and `vocab_size` by them.

    Args:
      raw: the JSON object.
      where: its file, for errors.

    Raises:
      ValueError: for a missing field, or a model that is not one of ours.
    """

    def need(field: str) -> Any:
        if raw.get(field) is None:
            raise ValueError(f"{where} has no {field!r}")
        return raw[field]

    for field, value in (
        ("model_type", "t5"),
        ("decoder_start_token_id", PAD),
        ("pad_token_id", PAD),
        ("eos_token_id", EOS),
    ):
        if raw.get(field) not in (value, None):
            raise ValueError(f"{where}: {field} = {raw[field]!r}; only {value!r} is supported")
    scale = raw.get("scale_decoder_outputs")
    if scale is None:
        scale = raw.get("tie_word_embeddings") is not False
    try:
        return T5Config(
            d_model=need("d_model"),
            d_ff=need("d_ff"),
            d_kv=need("d_kv"),
            heads=need("num_heads"),
            encoder_layers=need("num_layers"),
            decoder_layers=raw.get("num_decoder_layers") or need("num_layers"),
            vocab_size=need("vocab_size"),
            feed_forward=raw.get("feed_forward_proj") or "relu",
            tied=raw.get("tie_word_embeddings") is not False,
            scale_output=scale,
            dropout=raw.get("dropout_rate", 0.1),
            buckets=raw.get("relative_attention_num_buckets", 32),
            max_distance=raw.get("relative_attention_max_distance", 128),
            norm_eps=raw.get("layer_norm_epsilon", 1e-6),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def render_config(config: T5Config) -> dict[str, Any]:
    """Turn our config into one that transformers 4 and 5 both read as we mean it."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "d_kv": config.d_kv,
        "num_heads": config.heads,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "vocab_size": config.vocab_size,
        "feed_forward_proj": config.feed_forward,
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.scale_output,
        "dropout_rate": config.dropout,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": PAD,
        "dtype": "float32",
    }
