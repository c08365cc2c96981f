"""Text to token ids and back, for T5 vocabularies and the small one of the embedded corpus.

The vocabulary is a unigram model of `tokenizers`. Three ids are fixed: pad 0 (also the decoder's
start), eos 1, unknown 2. Each sequence ends in eos; where it is too long its end is cut, never the
prompt, and what was cut is counted.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import processors

from molt5_multitask import restore, spiece
from molt5_multitask.tasks import Seq2SeqTask

PAD, EOS, UNKNOWN = 0, 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of many texts, one after another in one array."""

    ids: np.ndarray
    """int32 (tokens,): the ids of all texts, each ending in eos."""
    ends: np.ndarray
    """int64 (texts,): where each text ends in `ids`."""
    cut: np.ndarray
    """int64 (texts,): tokens that each text lost because it was too long."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, eos included."""
        return np.diff(self.ends, prepend=0)

    @property
    def unknown(self) -> np.ndarray:
        """Whether each text holds characters that the vocabulary cannot write."""
        counts = np.concatenate([[0], np.cumsum(self.ids == UNKNOWN)])
        return np.diff(counts[self.ends], prepend=0) > 0

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where some texts begin in `ids`, and how many tokens they have."""
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        return starts, self.ends[rows] - starts

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]


class Tokenizer:
    """A unigram vocabulary with pad 0, eos 1 and unknown 2."""

    def __init__(
        self, backend: tokenizers.Tokenizer, *, origin: str = "the given vocabulary"
    ) -> None:
        """Wrap a vocabulary of `tokenizers`.

        Raises:
          ValueError: if pad, eos or unknown have other ids than T5's.
        """
        for token, expected in (("<pad>", PAD), ("</s>", EOS), (restore.UNKNOWN, UNKNOWN)):
            if (found := backend.token_to_id(token)) != expected:
                raise ValueError(
                    f"{origin}: {token} has id {found}, T5 needs {expected};"
                    " is this a T5 vocabulary?"
                )
        self._backend = backend
        self._prompt_tokens = functools.lru_cache(self._count)

    @classmethod
    def load(cls, name: str | pathlib.Path) -> "Tokenizer":
        """Read `tokenizer.json`, or else `spiece.model`, of a folder or of a model on the hub.

        A folder is read without a network.

        Raises:
          ValueError: for a folder without either file, a name that the hub does not give, or a
            vocabulary that is not T5's.
        """
        folder = pathlib.Path(name)
        if not folder.is_dir():
            folder = _from_hub(str(name))
        if (file := folder / "tokenizer.json").is_file():
            return cls(tokenizers.Tokenizer.from_file(str(file)), origin=str(file))
        if (file := folder / "spiece.model").is_file():
            return cls(spiece.read(file), origin=str(file))
        raise ValueError(f"{name} has neither a tokenizer.json nor a spiece.model")

    def save(self, folder: str | pathlib.Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers reads as T5's."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
        )
        backend.save(str(path / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": restore.UNKNOWN,
        }
        (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    @property
    def vocab_size(self) -> int:
        """Number of ids that have a string (32,100 for T5; its models may have more rows)."""
        return self._backend.get_vocab_size()

    def _count(self, text: str) -> int:
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def check_prompt(self, task: Seq2SeqTask, max_length: int) -> None:
        """Raise ValueError where a prompt leaves no room for an input token and eos."""
        needed = self._prompt_tokens(task.prompt.rstrip()) + 2
        if needed > max_length:
            raise ValueError(
                f"task {task.name}: its prompt, one input token and eos are {needed} tokens, longer"
                f" than the maximum of {max_length}; raise the maximum input length"
            )

    def encode_many(self, texts: Sequence[str], max_length: int | None = None) -> Encoded:
        """Encode texts as they are; each ends in eos, with at most `max_length` tokens in all."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        kept = [e.ids[: max_length - 1] if max_length else e.ids for e in encodings]
        lengths = np.array([len(ids) + 1 for ids in kept], np.int64)
        ends = np.cumsum(lengths)
        ids = np.full(int(lengths.sum()), EOS, np.int32)
        # Every place is written but the last of each text, which stays eos.
        inside = np.ones(len(ids), bool)
        inside[ends - 1] = False
        ids[inside] = np.fromiter((i for row in kept for i in row), np.int32)
        cut = np.array([len(e.ids) for e in encodings], np.int64) - (lengths - 1)
        return Encoded(ids=ids, ends=ends, cut=cut)

    def encode_sources(
        self, task: Seq2SeqTask, inputs: Sequence[str], max_length: int | None = None
    ) -> Encoded:
        """Encode `prompt + input` for each input; where too long, the end of the input is cut.

        Raises:
          ValueError: if the prompt would be cut.
        """
        if max_length is not None:
            self.check_prompt(task, max_length)
        return self.encode_many([task.prompt + text for text in inputs], max_length)

    def encode_source(
        self, task: Seq2SeqTask, text: str, max_length: int | None = None
    ) -> list[int]:
        """Encode one `prompt + input`, ending in eos."""
        return self.encode_sources(task, [text], max_length)[0].tolist()

    def encode_target(self, text: str, max_length: int | None = None) -> list[int]:
        """Encode one target, ending in eos."""
        return self.encode_many([text], max_length)[0].tolist()

    def decode_output(self, task: Seq2SeqTask, ids: Sequence[int]) -> str:
        """Turn generated ids into the text that the task asks for.

        Cut at the first eos, without pads (thus also without the decoder's start), unknown pieces
        restored as the output kind says. Ids without a string, as a model with more rows than the
        vocabulary may write them, are passed over.
        """
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        text = self._backend.decode([i for i in ids if i != PAD], skip_special_tokens=False)
        return restore.restore(text, task.output_kind).strip()


def _from_hub(name: str) -> pathlib.Path:
    """Fetch the tokenizer files of a model on the hub, or find them in its local cache."""
    import huggingface_hub  # Slow to import, and most runs read a folder.

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=["tokenizer.json", "spiece.model"]
            )
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is not a folder, and the hub does not give it: {error}"
        ) from error
