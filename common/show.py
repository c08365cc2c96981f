"""The parameter table, shapes and shardings of an experiment, without compute."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding

from common.experiment import Experiment
from common.perf import param_count
from common.setup import prepare
from common.tree import named_leaves, split


def bytes_per_device(tree: Any) -> int:
    """Return the bytes of a tree of arrays, or of their shapes, that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _size(count: float, unit: str = "") -> str:
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.4g} {prefix}{unit}".rstrip()
        count /= 1000
    return f"{count:.4g} T{unit}"


def _spec(leaf: Any) -> str:
    assert isinstance(leaf.sharding, NamedSharding)
    return str(tuple(leaf.sharding.spec)) if any(leaf.sharding.spec) else "replicated"


def describe(experiment: Experiment[Any]) -> str:
    """Describe mesh, batch, parameters and state memory of an experiment as text.

    Raises:
      ValueError: as `common.setup.prepare` does.
    """
    setup = prepare(experiment)
    state = setup.abstract_state
    rows = [
        (name, str(leaf.shape), str(leaf.dtype), f"{math.prod(leaf.shape):,}", _spec(leaf))
        for name, leaf in named_leaves(state.params)
    ]
    header = ("parameter", "shape", "type", "count", "sharding")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    count = param_count(state.params)
    trained, _ = split(state.params, setup.trainable)
    training = param_count(trained)
    lines = [
        f"mesh: {dict(setup.mesh.shape)} on {setup.mesh.devices.flat[0].platform}",
        *[
            f"batch[{name!r}]: {leaf.shape} {leaf.dtype}, "
            f"{experiment.step.accumulate} microbatch(es)"
            for name, leaf in setup.data.spec().items()
        ],
        "",
        line(header),
        *map(line, rows),
        "",
        f"parameters: {count:,} ({training:,} trained, {count - training:,} frozen)",
        f"memory per device: parameters {_size(bytes_per_device(state.params), 'B')}, "
        f"optimizer {_size(bytes_per_device(state.opt_state), 'B')}, "
        f"whole state {_size(bytes_per_device(state), 'B')}",
        f"operations per step: {_size(setup.flops, 'FLOP')}",
    ]
    return "\n".join(lines)
