"""Metrics that merge exactly across microbatches, steps, hosts and evaluation batches.

A metric is a pytree of sums, so that merging two of them is an addition leaf by leaf and the
all-zero metric is the empty one; `compute` turns the sums into the number that is reported. Means
of means, which are wrong for uneven batches, cannot be written down.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Metric(Protocol):
    """A pytree of sums with a final value."""

    def compute(self) -> Array:
        """Return the value that the sums stand for."""
        ...


Metrics = Mapping[str, Any]
"""Metric by name; the leaves are `Metric`s (or any pytree of sums with `compute`)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A weighted mean: `total / weight`."""

    total: Array
    """Sum of weight times value."""
    weight: Array
    """Sum of the weights."""

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> "Mean":
        """Sum `values`, each counted with its weight (one by default; broadcast to `values`)."""
        if weights is None:
            return cls(jnp.sum(values), jnp.asarray(values.size, jnp.float32))
        weights = jnp.broadcast_to(weights, values.shape)
        return cls(jnp.sum(values * weights), jnp.sum(weights).astype(jnp.float32))

    def compute(self) -> Array:
        """Return the mean; NaN when nothing was counted."""
        return self.total / self.weight


def merge(a: Metrics, b: Metrics) -> Metrics:
    """Add two sets of metrics with the same names."""
    return jax.tree.map(jnp.add, a, b)


def compute(metrics: Metrics) -> dict[str, float]:
    """Fetch the metrics to the host and return their values; a vector gives `name/0`, `name/1`, ...

    This waits for the device: call it for metrics of an earlier step, after the next one has been
    dispatched.
    """
    host = jax.device_get(dict(metrics))
    values: dict[str, float] = {}
    for name, metric in host.items():
        with np.errstate(invalid="ignore", divide="ignore"):  # an empty mean is NaN
            value = np.asarray(metric.compute())
        if value.ndim == 0:
            values[name] = float(value)
        else:
            values |= {f"{name}/{i}": float(v) for i, v in enumerate(value.ravel())}
    return values
