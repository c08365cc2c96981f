"""The multitask T5 as a training task of the core."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax import Array

from common import Data, Evaluator, Mean, Task
from common.data.arrays import WHOLE, Arrays, Part
from common.metrics import Metrics
from common.rng import Rngs
from common.task import Batch, Params, ShardingRules
from molt5_multitask.corpus import Corpus, SyntheticCorpus
from molt5_multitask.data.batches import MixedData
from molt5_multitask.data.files import FileCorpus
from molt5_multitask.data.mixing import Mixing
from molt5_multitask.losses import LossConfig, sequence_loss
from molt5_multitask.model import T5Config, bind, init
from molt5_multitask.pretrained import from_pretrained
from molt5_multitask.tokenizer import Tokenizer
from molt5_multitask.validation import GenerationScores, ValidationLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskT5(Task):
    """One T5 trained on all tasks at once, told apart by their prompts."""

    model: T5Config
    """Architecture."""
    corpus: SyntheticCorpus | FileCorpus
    """Where the examples come from."""
    tasks: tuple[str, ...] | None = None
    """Names of the tasks to train and evaluate; None takes all that the corpus has."""
    vocabulary: str | None = None
    """Folder of a T5 vocabulary, or its name on the hub; None takes the synthetic corpus's own."""
    start_from: str | None = None
    """Folder or name on the hub of the checkpoint to start from; None draws random weights."""
    input_length: int = 512
    """Tokens of a row of inputs; longer sources are cut at their end, never in the prompt."""
    target_length: int = 512
    """Tokens of a row of targets; longer ones are cut."""
    packed: bool = True
    """Put several examples into a row, which none of them sees of the others."""
    mixing: Mixing = Mixing(strategy="equal")
    """How often each task is drawn; the paper repeats small tasks until all are equal."""
    augment: float = 0.0
    """Share of the inputs that are molecules or reactions to write in a random atom order."""
    loss_config: LossConfig = LossConfig()
    """The training loss."""
    eval_every: int = 1000
    """Cadence in steps of the validation loss."""
    eval_rows: int = 512
    """Held-out rows of each task that the validation loss is computed on, the first ones."""
    eval_batch: int = 64
    """Rows of an evaluation batch, and of a batch that is decoded."""
    generate_every: int | None = None
    """Cadence in steps at which held-out rows are decoded and scored; None never does."""
    generate_rows: int = 64
    """Rows of each task that are decoded for it."""
    test_rows: int = 200
    """Held-out rows of each task that are decoded and scored after training, the first ones."""

    def __post_init__(self) -> None:
        if self.loss_config.on_padding and self.packed:
            raise ValueError(
                "loss_config.on_padding trains on padding, of which packed rows have none that is "
                "like the published trainer's: set packed = False"
            )

    @functools.cached_property
    def _corpus(self) -> Corpus:
        """The examples of all tasks, on which the vocabulary is trained."""
        return self.corpus.make()

    @functools.cached_property
    def examples(self) -> Corpus:
        """The training and held-out examples.

        Raises:
          ValueError: if the corpus has no examples of a task that is named.
        """
        if self.tasks is None:
            return self._corpus
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"task.tasks must name one task or several different ones; {self.tasks}"
            )
        known = [name for name, rows in self._corpus.train.items() if rows]
        if unknown := [name for name in self.tasks if name not in known]:
            raise ValueError(
                f"task.tasks: the corpus has no examples of {', '.join(unknown)}, only of "
                + ", ".join(known)
            )
        return Corpus(*({name: side.get(name, []) for name in self.tasks} for side in self._corpus))

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary.

        Raises:
          ValueError: if there is none, or the model has fewer rows than it has pieces.
        """
        if self.vocabulary is not None:
            tokenizer = Tokenizer.load(self.vocabulary)
        elif isinstance(self.corpus, SyntheticCorpus):
            tokenizer = self.corpus.tokenizer(self._corpus)
        else:
            raise ValueError(
                "task.vocabulary is not given: name the folder or the model on the hub whose T5 "
                "vocabulary is to be used, e.g. t5-small"
            )
        if tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"the vocabulary has {tokenizer.vocab_size} pieces, the model rows for "
                f"{self.model.vocab_size}: set task.model.vocab_size"
            )
        return tokenizer

    def init(self, key: Array) -> Params:
        """Draw the parameters."""
        return init(self.model, key)

    def pretrained(self) -> Params | None:
        """Read the checkpoint to start from.

        Raises:
          ValueError: if its architecture is not that of `model`, naming the fields.
        """
        if self.start_from is None:
            return None
        found = from_pretrained(self.start_from, vocab_multiple=self.model.vocab_multiple)
        # What may differ between a checkpoint and a run that starts from it.
        free = ("dropout", "dropout_shared", "scan", "remat")
        wrong = [
            f"{field.name}: {getattr(found.config, field.name)} in the checkpoint, "
            f"{getattr(self.model, field.name)} in the config"
            for field in dataclasses.fields(T5Config)
            if field.name not in free
            and getattr(found.config, field.name) != getattr(self.model, field.name)
        ]
        if wrong:
            raise ValueError(f"{self.start_from} does not fit task.model:\n  " + "\n  ".join(wrong))
        return found.params

    def loss(self, params: Params, batch: Batch, rngs: Rngs) -> Metrics:
        """Return the loss of a packed batch, and how full its rows are."""
        return {
            "loss": sequence_loss(bind(self.model, params), batch, self.loss_config, rngs),
            "filled_inputs": Mean.of((batch["input_segments"] > 0).astype(np.float32)),
            "filled_targets": Mean.of((batch["target_segments"] > 0).astype(np.float32)),
        }

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Make the mixed training data; the corpus is read when the first batch is."""
        return _TrainingData(self, batch_size=batch_size, seed=seed)

    def mixed_data(self, *, batch_size: int, seed: int) -> MixedData:
        """Encode and mix the training examples, once for every batch size and seed."""
        key = batch_size, seed
        if key not in self._mixed:
            self._mixed[key] = MixedData(
                self.examples.train,
                self.tokenizer,
                batch_size=batch_size,
                seed=seed,
                input_length=self.input_length,
                target_length=self.target_length,
                packed=self.packed,
                mixing=self.mixing,
                augment=self.augment,
            )
        return self._mixed[key]

    @functools.cached_property
    def _mixed(self) -> dict[tuple[int, int], MixedData]:
        return {}

    def evaluators(self) -> Sequence[Evaluator]:
        """Return the validation loss, and the scores of what the model writes, of each task."""
        found: list[Evaluator] = [ValidationLoss(task=self)]
        if self.generate_every is not None:
            found.append(GenerationScores(task=self))
        return found

    def sharding_rules(self) -> ShardingRules:
        """Lay the parameters out over `fsdp` and `tensor`."""
        return self.model.sharding_rules()


class _TrainingData(Data):
    def __init__(self, task: MultitaskT5, *, batch_size: int, seed: int) -> None:
        self._task, self._batch_size, self._seed = task, batch_size, seed

    def batch(self, step: int, part: Part = WHOLE) -> Arrays:
        mixed = self._task.mixed_data(batch_size=self._batch_size, seed=self._seed)
        return mixed.batch(step, part)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        lengths = {"input": self._task.input_length, "target": self._task.target_length}
        return {
            name: jax.ShapeDtypeStruct((self._batch_size, length), np.int32)
            for side, length in lengths.items()
            for name in (f"{side}s", f"{side}_segments")
        }
