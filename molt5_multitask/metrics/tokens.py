"""The tokens that caption BLEU and METEOR are counted on: part of the definition of the metric."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from molt5_multitask.metrics.scores import UnavailableError

TokenKind = Literal["scibert", "t5", "whitespace"]
HUB_NAMES = {"scibert": "allenai/scibert_scivocab_uncased", "t5": "google-t5/t5-base"}
FILES = {"scibert": "vocab.txt", "t5": "tokenizer.json"}
MAX_PIECES = 512
"""Longer texts are cut, as in MolT5's scripts; no caption of ChEBI-20 reaches it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionTokens:
    """A way to split captions, with the name that tables carry."""

    kind: TokenKind
    """Values of different kinds are not comparable."""
    name: str
    """What a table says."""
    split: Callable[[Sequence[str]], list[list[str]]]
    """Splits a batch of texts."""


def load_tokens(kind: TokenKind, vocabulary: str | None) -> CaptionTokens:
    """Make the tokens of the captions.

    Args:
      kind: "scibert", the definition that published tables use unless they say otherwise; "t5"
        (MolReGPT and others, 0.03 to 0.05 BLEU higher on the same outputs); or "whitespace".
      vocabulary: a folder or file, or a name on the hub, with `vocab.txt` ("scibert") or
        `tokenizer.json` ("t5"); not needed for "whitespace".

    Raises:
      UnavailableError: if the vocabulary is not named.
      ValueError: if it cannot be found or read.
    """
    if kind == "whitespace":
        return CaptionTokens(
            kind=kind,
            name="whitespace-separated words",
            split=lambda texts: [text.split() for text in texts],
        )
    if vocabulary is None:
        raise UnavailableError(
            f"needs the {kind} vocabulary: --vocabulary with a file or folder that holds "
            f"{FILES[kind]}, or the hub name {HUB_NAMES[kind]}"
        )
    return _load(kind, str(vocabulary))


@functools.cache
def _load(kind: TokenKind, vocabulary: str) -> CaptionTokens:
    path = find_file(vocabulary, FILES[kind])
    if kind == "t5":
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return CaptionTokens(
            kind=kind,
            name=f"T5 pieces ({tokenizer.get_vocab_size():,})",
            split=lambda texts: _pieces(tokenizer, texts),
        )
    lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    table = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if "[UNK]" not in table:
        raise ValueError(f"{path} is no WordPiece vocabulary: it has no line [UNK]")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def split(texts: Sequence[str]) -> list[list[str]]:
        # No piece crosses a space: each word is cut once, however often the captions repeat it.
        words = list({word: None for text in texts for word in text.split(" ")})
        known = dict(zip(words, _pieces(tokenizer, words), strict=True))
        return [
            [piece for word in text.split(" ") for piece in known[word]][:MAX_PIECES]
            for text in texts
        ]

    return CaptionTokens(
        kind=kind, name=f"SciBERT uncased word pieces ({len(table):,})", split=split
    )


def _pieces(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[str]]:
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [encoding.tokens[:MAX_PIECES] for encoding in encodings]


def find_file(where: str, name: str) -> pathlib.Path:
    """Find a file: `where` is the file, a folder that holds one `*name`, or a name on the hub.

    Raises:
      ValueError: if there is no such file, or more than one.
    """
    path = pathlib.Path(where)
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / name] if (path / name).is_file() else sorted(path.glob(f"*{name}"))
        if len(found) != 1:
            raise ValueError(
                f"{path} must hold one file {name}; it holds "
                + (", ".join(file.name for file in found) or "none")
            )
        return found[0]
    from huggingface_hub import hf_hub_download  # only where a hub name is given
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(hf_hub_download(where, name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{where} is neither a file nor a folder, nor could {name} be read from the hub "
            f"under that name ({type(error).__name__})"
        ) from error
