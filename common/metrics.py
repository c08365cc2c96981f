"""Metrics that merge exactly across microbatches, steps, hosts and evaluation batches.

A metric is a pytree of sums, so that merging two of them is an addition leaf by leaf and the
all-zero metric is the empty one; `compute` turns the sums into the number that is reported. Means
of means, which are wrong for uneven batches, cannot be written down.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Num, Shaped


class Metric(Protocol):
    """A pytree of sums with a final value."""

    def compute(self) -> Array:
        """Return the value that the sums stand for."""
        ...


AnyArray = Array | np.ndarray
"""What is summed up, in a traced function or on the host."""

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
    def of(
        cls,
        values: Num[AnyArray, "*n"] | Bool[AnyArray, "*n"],
        weights: Num[AnyArray, "..."] | Bool[AnyArray, "..."] | None = None,
    ) -> "Mean":
        """Sum `values`, each counted with its weight (one by default; broadcast to `values`).

        Sums are float32 at least, whatever the type of the values.
        """
        values = _widened(values)
        if weights is None:
            return cls(jnp.sum(values), jnp.asarray(values.size, jnp.float32))
        weights = _widened(jnp.broadcast_to(weights, values.shape))
        return cls(jnp.sum(values * weights), jnp.sum(weights).astype(jnp.float32))

    def compute(self) -> Array:
        """Return the mean; NaN when nothing was counted."""
        return self.total / self.weight


def _widened(sums: Shaped[AnyArray, "*n"]) -> Num[AnyArray, "*n"]:
    """Give sums a type in which adding up a run loses nothing that matters."""
    return sums.astype(jnp.promote_types(sums.dtype, jnp.float32))


def widen(tree: Any) -> Any:
    """Give all sums of a tree float32 at least (in bfloat16, 256 + 1 is 256); keep integers."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.integer) else _widened(x), tree)


def merge(a: Metrics, b: Metrics) -> Metrics:
    """Add two sets of metrics with the same names, in float32 at least."""
    return jax.tree.map(jnp.add, widen(a), widen(b))


def check(found: Any, where: str, *, reserved: Collection[str] = ()) -> None:
    """Refuse what is no dictionary of metrics by names that are free.

    Args:
      found: what a function returned, with arrays or shapes as leaves.
      where: the function, for the error messages.
      reserved: names that it must not use.

    Raises:
      TypeError: naming the entry that is no metric.
      ValueError: naming the entry whose name is taken.
    """
    if not isinstance(found, Mapping):
        raise TypeError(f"{where} must return a dict of metrics by name; got {found!r}")
    for name, metric in found.items():
        if not callable(getattr(metric, "compute", None)):
            raise TypeError(
                f"{where} must return metrics, and its entry {name!r} is {metric!r}; sum up values "
                f"with common.Mean.of(values), or give a pytree of sums with a method compute()"
            )
        if name in reserved:
            raise ValueError(
                f"{where} must not name a metric {name!r}, which is logged for every run; rename it"
            )


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
