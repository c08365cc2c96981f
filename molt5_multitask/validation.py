"""What is computed on held-out rows: the loss of a token, and scores of what the model writes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from common import evaluate as evaluation
from common.data.arrays import Arrays
from common.distributed import to_host
from common.metrics import Metrics
from common.task import Batch, Params
from molt5_multitask.data.packing import lay_out
from molt5_multitask.decoding import BeamSearch, Decoder
from molt5_multitask.evaluate import Options, evaluate
from molt5_multitask.losses import LossConfig, sequence_loss
from molt5_multitask.metrics.scores import track
from molt5_multitask.model import bind
from molt5_multitask.tasks import TASKS, Example

if TYPE_CHECKING:
    from molt5_multitask.training import MultitaskT5


def one_in_a_row(task: MultitaskT5, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Encode examples of one task, one in a row, as arrays of a training batch."""
    name = examples[0].task
    sides = {
        "input": (
            task.tokenizer.encode_sources(
                TASKS[name], [e.input for e in examples], task.input_length
            ),
            task.input_length,
        ),
        "target": (
            task.tokenizer.encode_many([e.target for e in examples], task.target_length),
            task.target_length,
        ),
    }
    arrays: dict[str, np.ndarray] = {}
    for side, (encoded, length) in sides.items():
        rows = len(encoded)
        ids, segments = lay_out(encoded.ids, encoded.lengths, np.arange(rows), rows, length)
        arrays |= {f"{side}s": ids, f"{side}_segments": segments}
    return arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutRows:
    """Held-out examples of one task, one in a row; encoded when they are evaluated."""

    task: MultitaskT5
    """The training task."""
    examples: Sequence[Example]
    """The examples."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.task.eval_batch

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, rows: np.ndarray) -> Arrays:
        """Encode rows."""
        return one_in_a_row(self.task, [self.examples[row] for row in rows])

    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a row."""
        lengths = {"input": self.task.input_length, "target": self.task.target_length}
        return {
            name: jax.ShapeDtypeStruct((length,), np.int32)
            for side, length in lengths.items()
            for name in (f"{side}s", f"{side}_segments")
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Mean negative log-likelihood of a target token on held-out rows, by task."""

    task: MultitaskT5
    """The training task."""
    name: str = "valid"
    """Prefix of the numbers."""

    @property
    def every(self) -> int:
        """Cadence in steps."""
        return self.task.eval_every

    @functools.cached_property
    def _step(self) -> Any:
        def step(params: Params, batch: Batch) -> Metrics:
            filled_up = batch["weight"][:, None] == 0
            segments = jnp.where(filled_up, 0, batch["target_segments"])
            model = bind(self.task.model, params)
            return {
                "loss": sequence_loss(model, {**batch, "target_segments": segments}, LossConfig())
            }

        return jax.jit(step)

    def check(self, params: Params, mesh: Mesh) -> None:
        """Trace the loss; nothing is read."""
        evaluation.check(self._step, params, HeldOutRows(task=self.task, examples=()), mesh)

    def __call__(self, params: Params, mesh: Mesh) -> Mapping[str, float]:
        """Return the loss of each task, and their mean."""
        found = {}
        for name, examples in self.task.examples.held_out.items():
            rows = HeldOutRows(task=self.task, examples=examples[: self.task.eval_rows])
            for key, value in evaluation.evaluate(self._step, params, rows, mesh).items():
                found[f"{name}/{key}"] = value
        return {**found, "loss": float(np.mean(list(found.values())))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutWriter:
    """Lets the model write the outputs of held-out rows, greedily; compiled once."""

    task: MultitaskT5
    """The training task."""
    rows: int
    """Rows of each task, the first ones."""

    @functools.cached_property
    def _decoder(self) -> Decoder:
        task = self.task
        like = jax.eval_shape(task.init, jax.random.key(0))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        search, length = BeamSearch(), task.target_length + 1
        return Decoder(task.model, zeros, search, max_length=length, rows=task.eval_batch)

    def __call__(
        self, params: Params, *, progress: bool = False
    ) -> dict[str, tuple[list[Example], list[str]]]:
        """Return the examples of each task and what was written for them."""
        task = self.task
        self._decoder.use(params)
        found = {}
        for name, held_out in task.examples.held_out.items():
            examples = held_out[: self.rows]
            inputs = [e.input for e in examples]
            encoded = task.tokenizer.encode_sources(TASKS[name], inputs, task.input_length)
            sources = [encoded[i].tolist() for i in range(len(encoded))]
            outputs = [""] * len(examples)
            counter = track(range(len(examples)), f"decoding {name}", enabled=progress)
            for _, (row, best) in zip(counter, self._decoder(sources), strict=True):
                outputs[row] = task.tokenizer.decode_output(TASKS[name], best.ids[0])
            if examples:
                found[name] = examples, outputs
        return found


def score(examples: Sequence[Example], outputs: Sequence[str]) -> dict[str, float]:
    """Return the metrics of one task that cost little, and the exact match of the strings."""
    references = [e.target for e in examples]
    scores = evaluate(
        examples[0].task,
        references,
        outputs,
        inputs=[e.input for e in examples],
        options=Options(meteor=False, fcd=False),
    )
    equal = [output == reference for output, reference in zip(outputs, references, strict=True)]
    return {"exact match": float(np.mean(equal)), **scores.values}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationScores:
    """Scores of what the model writes for held-out rows, by task."""

    task: MultitaskT5
    """The training task."""
    name: str = "generate"
    """Prefix of the numbers."""

    @property
    def every(self) -> int:
        """Cadence in steps."""
        assert self.task.generate_every is not None
        return self.task.generate_every

    @functools.cached_property
    def _writer(self) -> HeldOutWriter:
        return HeldOutWriter(task=self.task, rows=self.task.generate_rows)

    def __call__(self, params: Params, mesh: Mesh) -> Mapping[str, float]:  # noqa: ARG002
        """Return the scores of each task, and the mean exact match."""
        scores = {name: score(*pair) for name, pair in self._writer(to_host(params)).items()}
        found = {f"{name}/{key}": v for name, row in scores.items() for key, v in row.items()}
        exact = [row["exact match"] for row in scores.values()]
        return {**found, "exact match": float(np.mean(exact))}
