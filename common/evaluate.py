"""Evaluators: what is computed on the parameters every so many steps, and at the end."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from common import metrics
from common.data import prefetch
from common.data.arrays import Arrays
from common.distributed import to_host
from common.mesh import await_simulated, batch_sharding, local_examples, place, round_up


class Evaluator(Protocol):
    """Computes named numbers from the parameters (the averaged ones, where an EMA is kept)."""

    @property
    def name(self) -> str:
        """Prefix of the reported numbers: `name/number`."""
        ...

    @property
    def every(self) -> int:
        """Cadence in steps; an evaluator also runs at the end of training."""
        ...

    def __call__(self, params: Any, mesh: Mesh) -> Mapping[str, float]:
        """Evaluate the parameters; called on every host."""
        ...


@runtime_checkable
class Checked(Protocol):
    """An evaluator that can be checked before training, as one that computes on the mesh should."""

    def check(self, params: Any, mesh: Mesh) -> None:
        """Refuse what cannot work, from the shapes and shardings of the parameters alone."""
        ...


def trace_evaluators(evaluators: Iterable[Evaluator], params: Any, mesh: Mesh) -> None:
    """Trace the evaluators that have a `check`; an error gets a note that names its evaluator."""
    for evaluator in evaluators:
        if isinstance(evaluator, Checked):
            try:
                evaluator.check(params, mesh)
            except Exception as error:
                error.add_note(f"This was found in evaluator {evaluator.name!r}, before training.")
                raise


class HeldOutData(Protocol):
    """Rows to evaluate on, addressed by their numbers."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch; rounded up to a multiple of the devices that rows are split over."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def take(self, rows: np.ndarray) -> Arrays:
        """Return rows along the first axis of each array; a process asks for its own ones only."""
        ...

    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Return the shapes and types of one row, without reading anything."""
        ...


Step = Callable[[Any, Any], Any]
"""Jitted function of parameters and a batch. The last batch is filled up by repeating a row; the
entry "weight" of a batch, float32, is one for real rows and zero for the filling."""


def check(step: Step, params: Any, data: HeldOutData, mesh: Mesh) -> Any:
    """Trace a step on the shapes of a batch, and return the shapes of its outputs.

    Args:
      step: the step.
      params: shapes and shardings of the parameters.
      data: the data, of which only `batch_size` and `spec` are used.
      mesh: the mesh.
    """
    size, sharding = round_up(data.batch_size, mesh), batch_sharding(mesh)
    rows = {**data.spec(), "weight": jax.ShapeDtypeStruct((), np.float32)}
    batch = {
        name: jax.ShapeDtypeStruct((size, *row.shape), row.dtype, sharding=sharding)
        for name, row in rows.items()
    }
    return jax.eval_shape(step, params, batch)


@contextlib.contextmanager
def _outputs(
    step: Step, params: Any, data: HeldOutData, mesh: Mesh
) -> Generator[Iterator[tuple[int, Any]]]:
    """Run a step on all batches; give the number of real rows and the outputs of each.

    Each process makes the rows of its own devices, in a thread and ahead of time, and every process
    runs the same number of batches.
    """
    count, size = len(data), round_up(data.batch_size, mesh)
    own = local_examples(mesh, size)

    def batches() -> Iterator[tuple[int, Arrays]]:
        for first in range(0, count, size):
            rows = first + own
            real = rows < count
            batch = data.take(np.where(real, rows, 0))
            yield min(size, count - first), {**batch, "weight": real.astype(np.float32)}

    def send(item: tuple[int, Arrays]) -> tuple[int, Any]:
        return item[0], place(item[1], mesh, count=size)

    def run(placed: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for real, batch in placed:
            found = step(params, batch)
            await_simulated(found, mesh)
            yield real, found

    with prefetch(batches(), send) as placed:
        yield run(placed)


def evaluate(step: Step, params: Any, data: HeldOutData, mesh: Mesh) -> dict[str, float]:
    """Merge the metrics of all rows, each counted once; to be called by all processes.

    Args:
      step: returns the metrics of a batch, as sums that honour `batch["weight"]`.
      params: the parameters.
      data: the rows.
      mesh: the mesh.

    Returns:
      The values of the metrics; empty where there are no rows.
    """
    total = None
    with _outputs(step, params, data, mesh) as outputs:
        for _, part in outputs:
            total = part if total is None else metrics.merge(total, part)
            await_simulated(total, mesh)
    return {} if total is None else metrics.compute(total)


def map_rows(step: Step, params: Any, data: HeldOutData, mesh: Mesh) -> Any:
    """Return what a step makes of each row, in order; to be called by all processes.

    Args:
      step: returns arrays with the rows of the batch along their first axis.
      params: the parameters.
      data: the rows, one at least.
      mesh: the mesh.

    Returns:
      The outputs of all rows as NumPy arrays, on every process.
    """
    parts, last = [], None
    with _outputs(step, params, data, mesh) as outputs:
        for real, found in outputs:
            if last is not None:  # fetched while the devices work on the next batch
                parts.append(_fetch(*last))
            last = real, found
    if last is None:
        raise ValueError("there are no rows to evaluate on")
    parts.append(_fetch(*last))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _fetch(real: int, outputs: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:real], to_host(outputs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsEvaluator:
    """Merges `metrics(params, batch)` over all rows of a data set, each counted once."""

    name: str
    """Prefix of the reported numbers."""
    every: int
    """Cadence in steps."""
    data: HeldOutData
    """The rows to evaluate on."""
    metrics: Callable[[Any, Any], metrics.Metrics]
    """Metrics of a batch, as sums that honour `batch["weight"]`, see `Step`."""

    @functools.cached_property
    def _step(self) -> Step:
        return jax.jit(self.metrics)

    def check(self, params: Any, mesh: Mesh) -> None:
        """Trace the metrics."""
        found = check(self._step, params, self.data, mesh)
        metrics.check(found, f"the metrics of evaluator {self.name!r}")

    def __call__(self, params: Any, mesh: Mesh) -> Mapping[str, float]:
        """Evaluate all rows."""
        return evaluate(self._step, params, self.data, mesh)
