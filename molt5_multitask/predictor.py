"""A model with its vocabulary that predicts for one task, from texts to texts.

found = predict(["CCO"], task="molecule_to_text", model="runs/my_run")
print(found[0].outputs[0])
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import tyro
from jax.sharding import Mesh

from common.task import Params
from molt5_multitask import chem
from molt5_multitask.config import T5Config
from molt5_multitask.decoding import BeamSearch, Decoder, Sampling, Search
from molt5_multitask.evaluate import SMILES_KINDS, find_task
from molt5_multitask.pretrained import Pretrained, from_pretrained
from molt5_multitask.tasks import Seq2SeqTask
from molt5_multitask.tokenizer import Encoded, Tokenizer

logger = logging.getLogger(__name__)

WINDOW = 16
"""Batches that are sorted by length together, and written together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was predicted for one input, best first."""

    outputs: list[str]
    """The texts."""
    scores: list[float]
    """Their scores: log probability by length, see the search."""
    ranks: list[int]
    """Rank of each by its score, from 1: 1, 2, ... unless valid ones were put first."""
    valid: list[bool] | None
    """Whether RDKit reads each as a molecule; None where this was not asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to decode."""

    prompt: str | None = None
    """Prompt, with its last space, in place of the task's own; '' for a model without prompts."""
    search: Annotated[BeamSearch, tyro.conf.arg(name="")] = BeamSearch(beams=5, best=5)
    """Beam search."""
    sample: bool = False
    """Draw samples in place of searching."""
    sampling: Sampling = Sampling()
    """How samples are drawn."""
    valid_first: bool = False
    """Put outputs that RDKit reads before the others. All are kept; the columns `rank` give
    the order by score, and `valid` what RDKit said."""
    max_length: int = 512
    """Most tokens of an output, the start token and eos included."""
    max_input_length: int = 512
    """Most tokens of an input with its prompt and eos; longer ones are cut at their end."""
    rows: int = 16
    """Inputs of a batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type to compute in."""

    @property
    def method(self) -> Search:
        """The search, or the sampling."""
        return self.sampling if self.sample else self.search

    @property
    def best(self) -> int:
        """Outputs of each input."""
        return self.sampling.samples if self.sample else self.search.best


class Predictor:
    """A model with its vocabulary, for one task."""

    def __init__(
        self,
        config: T5Config,
        params: Params,
        tokenizer: Tokenizer,
        task: str | Seq2SeqTask,
        *,
        options: Options = Options(),
        mesh: Mesh | None = None,
    ) -> None:
        """Send the model to the devices.

        Args:
          config: architecture.
          params: parameters.
          tokenizer: vocabulary.
          task: the task or its name.
          options: how to decode.
          mesh: devices to compute on; the first one by default.

        Raises:
          ValueError: for an unknown task, a vocabulary with more ids than the model, a prompt that
            leaves no room for an input, `valid_first` where outputs are no molecules.
        """
        self.task = asked_task(task, options)
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the vocabulary has {tokenizer.vocab_size:,} ids, the model rows for "
                f"{config.vocab_size:,}: they do not belong together"
            )
        tokenizer.check_prompt(self.task, options.max_input_length)
        self.options, self._tokenizer = options, tokenizer
        self._decoder = Decoder(
            config,
            params,
            options.method,
            max_length=options.max_length,
            rows=options.rows,
            dtype=options.dtype,
            mesh=mesh,
        )

    def __call__(self, texts: Sequence[str]) -> list[Prediction]:
        """Predict for inputs without their prompt."""
        return [row for rows in self.stream(self.encode(texts)) for row in rows]

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode inputs behind the prompt; warns where some are too long and are cut."""
        longest = self.options.max_input_length
        encoded = self._tokenizer.encode_sources(self.task, texts, longest)
        if cut := int((encoded.cut > 0).sum()):
            logger.warning(
                "%s of %s inputs are longer than %s tokens and were cut at their end",
                f"{cut:,}",
                f"{len(texts):,}",
                longest,
            )
        return encoded

    def stream(
        self,
        encoded: Encoded,
        *,
        start: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[list[Prediction]]:
        """Predict from row `start` on, a window of rows at a time, in their order.

        Args:
          encoded: what `encode` returns.
          start: first row.
          progress: called with the number of rows that are done.
        """
        window = WINDOW * self.options.rows
        for first in range(start, len(encoded), window):
            rows = range(first, min(first + window, len(encoded)))
            found: dict[int, Prediction] = {}
            sources = [encoded[row].tolist() for row in rows]
            for i, decoded in self._decoder(sources, first_number=first):
                found[i] = self._prediction(decoded.ids, decoded.scores)
                if progress is not None:
                    progress(first + len(found))
            yield [found[i] for i in range(len(rows))]

    def _prediction(self, ids: Sequence[Sequence[int]], scores: list[float]) -> Prediction:
        outputs = [self._tokenizer.decode_output(self.task, text) for text in ids]
        ranks = list(range(1, len(outputs) + 1))
        if not self.options.valid_first:
            return Prediction(outputs=outputs, scores=scores, ranks=ranks, valid=None)
        # RDKit reads the empty string, which is no answer.
        valid = [bool(text) and chem.is_valid(text) for text in outputs]
        order = sorted(range(len(outputs)), key=lambda i: not valid[i])
        return Prediction(
            outputs=[outputs[i] for i in order],
            scores=[scores[i] for i in order],
            ranks=[ranks[i] for i in order],
            valid=[valid[i] for i in order],
        )


def asked_task(task: str | Seq2SeqTask, options: Options) -> Seq2SeqTask:
    """Return the task with the prompt to use.

    Raises:
      ValueError: for an unknown task, or `valid_first` where outputs are no molecules.
    """
    found = find_task(task) if isinstance(task, str) else task
    if options.valid_first and found.output_kind not in SMILES_KINDS:
        raise ValueError(
            f"valid_first: the outputs of {found.name} are of kind {found.output_kind}, "
            "which RDKit does not read"
        )
    return found if options.prompt is None else dataclasses.replace(found, prompt=options.prompt)


def predict(
    texts: Sequence[str],
    *,
    task: str | Seq2SeqTask,
    model: str,
    options: Options = Options(),
    mesh: Mesh | None = None,
) -> list[Prediction]:
    """Predict for inputs without their prompt.

    Args:
      texts: the inputs.
      task: the task or its name.
      model: see `load`.
      options: how to decode.
      mesh: devices to compute on; the first one by default.
    """
    asked_task(task, options)
    checkpoint, tokenizer = load(model)
    return Predictor(
        checkpoint.config, checkpoint.params, tokenizer, task, options=options, mesh=mesh
    )(texts)


def load(model: str) -> tuple[Pretrained, Tokenizer]:
    """Read a model with its vocabulary.

    Args:
      model: folder of a checkpoint, or of a training run that has left one (`export`), or name on
        the hub.

    Raises:
      ValueError: for files that do not fit each other.
      FileNotFoundError: if there is no such model.
    """
    export = pathlib.Path(model) / "export"
    checkpoint = from_pretrained(export if export.is_dir() else model)
    return checkpoint, Tokenizer.load(checkpoint.folder)
