"""What a project tells the core about one training task."""

import abc
from collections.abc import Sequence
from typing import Any

from jax import Array

from common.data import Data
from common.evaluate import Evaluator
from common.metrics import Metrics
from common.rng import Rngs

Params = Any
"""Pytree of arrays: the parameters."""
Batch = Any
"""Pytree of arrays with the examples along the first axis."""
ShardingRules = Sequence[tuple[str, tuple[str | None, ...]]]
"""`(pattern, axes)`: the mesh axis, or None, for each dimension of the parameters that match."""


class Task(abc.ABC):
    """One training task. Subclasses are frozen dataclasses, so that a task is its own config.

    Only `init`, `loss` and `data` must be given.
    """

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Make the initial parameters from a typed key; traced once, for all devices."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch, rngs: Rngs) -> Metrics:
        """Return the metrics of a batch, as sums over its examples.

        The entry "loss" must be a `Mean`: its total is what is differentiated, its weight what the
        gradient is divided by once all microbatches and devices have been summed.
        """

    @abc.abstractmethod
    def data(self, *, batch_size: int, seed: int) -> Data:
        """Make the training data, in global batches of `batch_size`."""

    def evaluators(self) -> Sequence[Evaluator]:
        """Return what is computed on the parameters at a cadence; nothing by default."""
        return ()

    def pretrained(self) -> Params | None:
        """Return parameters on the host to start from, in place of those that `init` draws.

        They are read when a run starts at step 0, and not when it resumes.
        """
        return None

    def sharding_rules(self) -> ShardingRules:
        """Say how parameters are laid out over the mesh; by default every device holds all."""
        return ((".*", ()),)

    def step_metrics(
        self,
        params: Params,  # noqa: ARG002
        grads: Params,  # noqa: ARG002
        updates: Params,  # noqa: ARG002
    ) -> Metrics:
        """Return metrics of an optimizer step that see its gradient and updates; none by default.

        They are logged beside those of the loss, and merged over steps as those are.

        Args:
          params: the trained parameters before the update; None is in the place of frozen ones.
          grads: the gradient of the mean loss, likewise.
          updates: what is added to the parameters, likewise.
        """
        return {}
