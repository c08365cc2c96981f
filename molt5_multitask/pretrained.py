"""Exchange with Hugging Face: folders with a `config.json` and weights, in and out.

checkpoint = from_pretrained("t5-small")            # or a folder
model = bind(checkpoint.config, checkpoint.params)
save_pretrained("out", checkpoint.config, checkpoint.params, tokenizer=checkpoint.folder)
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping

import jax
import numpy as np

from common.nn.hub import download, read_json
from common.nn.weights import (
    StoredTensor,
    check_keys,
    export,
    load,
    open_safetensors,
    write_safetensors,
)
from common.task import Params
from molt5_multitask.config import EOS, PAD, T5Config
from molt5_multitask.hf_format import entries, parse_config, render_config
from molt5_multitask.model import init
from molt5_multitask.torch_bin import open_torch_bin

TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Original v1.0 files hold this table, which no T5 uses.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model from a checkpoint."""

    config: T5Config
    """Its architecture; dropout, scan and remat may be replaced freely."""
    params: Params
    """Its parameters, float32, on the host."""
    folder: pathlib.Path
    """Where it was read from; the tokenizer's files may be there too."""


def from_pretrained(
    name: str | os.PathLike[str], *, vocab_multiple: int = 1, revision: str | None = None
) -> Pretrained:
    """Read a T5 from a folder, or from the Hugging Face hub.

    Weights are looked for as `model.safetensors`, `model.safetensors.index.json` (several files)
    and `pytorch_model.bin` (read without executing it, see `torch_bin`), in this order. The number
    of embedding rows is taken from the file.

    Args:
      name: folder, or name on the hub.
      vocab_multiple: see `T5Config.vocab_multiple`.
      revision: branch, tag or commit on the hub.

    Raises:
      FileNotFoundError: if there is no such folder and the hub does not give it, or a file lacks.
      ValueError: for a config that is no T5 of ours, weights that do not fit it, or damaged files.
    """
    folder = pathlib.Path(name)
    if not folder.is_dir():
        folder = _download(str(name), revision)
    raw = read_json(folder / "config.json")
    stored = _without_aliases(_open_weights(folder), folder)
    if "lm_head.weight" not in stored and raw.get("tie_word_embeddings") is False:
        raise ValueError(
            f"{folder}: config.json says tie_word_embeddings = false, but the weights have no "
            "lm_head.weight of their own; save the whole T5ForConditionalGeneration"
        )
    config = dataclasses.replace(
        parse_config(raw, where=folder / "config.json"),
        vocab_size=stored["shared.weight"].shape[0],
        tied="lm_head.weight" not in stored,
    )
    expected = entries(config)
    check_keys(stored, (key for entry in expected for key in entry.keys), where=folder)
    like = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    params = load(expected, stored, like)
    config = dataclasses.replace(config, vocab_multiple=vocab_multiple)
    return Pretrained(config=config, params=_with_rows(params, config.vocab_rows), folder=folder)


def save_pretrained(
    folder: str | os.PathLike[str],
    config: T5Config,
    params: Params,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
) -> None:
    """Write a folder that `transformers` (4 and 5) loads, and `from_pretrained` too.

    Args:
      folder: where to; made if it is not there.
      config: architecture.
      params: parameters; arrays of lower precision are written as float32.
      tokenizer: folder whose tokenizer files are copied along.

    Raises:
      FileNotFoundError: if `tokenizer` holds no tokenizer file.
    """
    folder = pathlib.Path(folder)
    copies = []
    if tokenizer is not None:
        copies = [p for name in TOKENIZER_FILES if (p := pathlib.Path(tokenizer) / name).is_file()]
        if not copies:
            raise FileNotFoundError(
                f"{tokenizer} holds no tokenizer: none of {', '.join(TOKENIZER_FILES)}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(params))
    tensors = export(entries(config), _with_rows(params, config.vocab_size))
    write_safetensors(folder / "model.safetensors", tensors)
    generation = {"decoder_start_token_id": PAD, "eos_token_id": EOS, "pad_token_id": PAD}
    for name, content in (
        ("config.json", render_config(config)),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for path in copies:
        if path.resolve().parent != folder.resolve():
            shutil.copyfile(path, folder / path.name)


def _open_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            return open_safetensors(folder / name)
    if (folder / "pytorch_model.bin").is_file():
        return open_torch_bin(folder / "pytorch_model.bin")
    raise FileNotFoundError(
        f"{folder} holds no weights: neither model.safetensors, model.safetensors.index.json nor "
        "pytorch_model.bin"
    )


def _without_aliases(
    stored: Mapping[str, StoredTensor], folder: pathlib.Path
) -> dict[str, StoredTensor]:
    """Drop other names of the embedding, an output projection that equals it, and the unused key.

    Raises:
      ValueError: without an embedding, or where an alias differs from it.
    """
    if "shared.weight" not in stored:
        raise ValueError(f"{folder}: the weights have no 'shared.weight'; is it a T5?")
    kept = {key: tensor for key, tensor in stored.items() if key != _UNUSED}
    for alias in (*_ALIASES, "lm_head.weight"):
        if alias not in kept:
            continue
        tensor, embedding = kept[alias], kept["shared.weight"]
        same = tensor.shape == embedding.shape and np.array_equal(tensor.read(), embedding.read())
        if not same and alias in _ALIASES:
            raise ValueError(
                f"{tensor.file}: {alias} {tensor.shape} differs from shared.weight "
                f"{embedding.shape}, which both stacks of a T5 read"
            )
        if same:
            del kept[alias]
    return kept


def _with_rows(params: Params, rows: int) -> Params:
    """Cut the vocabulary tables to `rows`, or pad them with zeros."""

    def resize(table: np.ndarray) -> np.ndarray:
        return np.pad(table[:rows], ((0, max(0, rows - len(table))), (0, 0)))

    return {
        name: {"table": resize(child["table"])} if name in ("embedding", "lm_head") else child
        for name, child in params.items()
    }


def _download(name: str, revision: str | None) -> pathlib.Path:
    """Fetch config, weights and tokenizer from the hub, or find them in its cache."""
    files = ["config.json", "model*.safetensors*", *TOKENIZER_FILES]
    folder = download(name, files, revision=revision)
    if list(folder.glob("model*.safetensors*")):
        return folder
    return download(name, ["pytorch_model.bin"], revision=revision)
