"""Evaluators: what is computed on the parameters every so many steps, and at the end."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from common import metrics
from common.data import OnePass
from common.mesh import await_simulated, place


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsEvaluator:
    """Merges `metrics(params, batch)` over all rows of a data set, each counted once.

    The last batch is filled up with rows of weight zero (`batch["weight"]`), so that every host
    and every batch has the same shape.
    """

    name: str
    """Prefix of the reported numbers."""
    every: int
    """Cadence in steps."""
    data: OnePass
    """The rows to evaluate on."""
    metrics: Callable[[Any, Any], metrics.Metrics]
    """Metrics of a batch, as sums that honour `batch["weight"]`."""

    @functools.cached_property
    def _step(self) -> Callable[..., metrics.Metrics]:
        return jax.jit(self.metrics)

    def __call__(self, params: Any, mesh: Mesh) -> Mapping[str, float]:
        """Evaluate all rows."""
        total = None
        for i in range(len(self.data)):
            part = self._step(params, place(self.data.batch(i), mesh))
            total = part if total is None else metrics.merge(total, part)
            await_simulated(total, mesh)
        return {} if total is None else metrics.compute(total)
