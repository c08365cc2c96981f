"""The training state: one pytree of arrays, made by one jitted function in its final layout."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from common.mesh import like_parameters, parameter_shardings
from common.metrics import Metrics, widen
from common.rng import stream
from common.task import Params, ShardingRules, Task
from common.tree import join, named_leaves, split


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fault:
    """The first step of a logging window whose loss or gradient was not finite."""

    step: Array
    """The step, int32; -1 where all were finite."""
    batch: Array
    """Number of its batch, int32."""
    loss: Array
    """Whether the loss was not finite, bool."""
    gradient: Array
    """Whether the gradient of each trained parameter was not finite, bool (leaves,)."""

    @classmethod
    def none(cls, trained: Params) -> "Fault":
        """Return that all was finite."""
        leaves = len(jax.tree.leaves(trained))
        return cls(
            step=jnp.full((), -1, jnp.int32),
            batch=jnp.full((), -1, jnp.int32),
            loss=jnp.zeros((), bool),
            gradient=jnp.zeros((leaves,), bool),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on, besides the data."""

    step: Array
    """Optimizer steps taken, int32 scalar."""
    params: Params
    """All parameters, frozen ones included."""
    opt_state: Any
    """State of the optax optimizer, for the trained parameters."""
    ema: Params | None
    """Exponential moving average of the trained parameters, float32 at least: in bfloat16 it would
    not move, as its steps are less than half of a last digit. None where none is kept."""
    rng: Array
    """Key data of the run's random key."""
    window: Metrics
    """Sums of the training metrics since the last multiple of the logging cadence."""
    fault: Fault
    """What was not finite since then."""
    passed_over: Array
    """Batches that the run has passed over, int32: step s takes batch s + passed_over."""

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: the averaged ones where they are kept.

        All have the types of the parameters, so that evaluation, generation and export compute the
        same, and in the same memory, with an average and without. It is rounded once, here.
        """
        if self.ema is None:
            return self.params
        trained = jax.tree.map(lambda mean: mean is not None, self.ema, is_leaf=lambda x: x is None)
        params, frozen = split(self.params, trained)
        return join(optax.tree.cast_like(self.ema, params), frozen)


def make_init(
    task: Task,
    optimizer: optax.GradientTransformation,
    abstract_window: Metrics,
    trainable: Any,
    *,
    seed: int,
    keep_ema: bool,
) -> Callable[..., TrainState]:
    """Build the function that makes the state of step 0; to be jitted, or only shape-checked.

    It takes the parameters to start from; without any it draws them.

    Args:
      task: the task.
      optimizer: the optimizer.
      abstract_window: shapes of the step's metrics.
      trainable: which parameters train, see `common.optim.trainable`.
      seed: seed of parameters and random streams.
      keep_ema: whether the state holds averaged parameters.
    """

    def init(params: Params | None = None) -> TrainState:
        key = jax.random.key(seed)
        if params is None:
            params = task.init(stream(key, "init"))
        trained, _ = split(params, trainable)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(trained),
            ema=jax.tree.map(jnp.copy, widen(trained)) if keep_ema else None,
            rng=jax.random.key_data(key),
            window=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), abstract_window),
            fault=Fault.none(trained),
            passed_over=jnp.zeros((), jnp.int32),
        )

    return init


def lay_out(init: Callable[..., TrainState], rules: ShardingRules, mesh: Mesh) -> TrainState:
    """Return the state that `init` makes as `jax.ShapeDtypeStruct`s with their shardings."""
    state = jax.eval_shape(init)
    params = parameter_shardings(rules, state.params, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = dataclasses.replace(
        jax.tree.map(lambda _: replicated, state),
        params=params,
        opt_state=like_parameters(state.opt_state, state.params, params, mesh),
        ema=like_parameters(state.ema, state.params, params, mesh),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )


def place_params(params: Params, abstract: Params) -> Params:
    """Send parameters from the host to the devices, each in its layout.

    Args:
      params: the same arrays on every host.
      abstract: their shapes, types and shardings.

    Raises:
      ValueError: naming the parameters that are missing, left over or of another shape.
    """
    shapes, wanted = (
        {name: leaf.shape for name, leaf in named_leaves(t)} for t in (params, abstract)
    )
    wrong = [
        f"{name}: {shapes.get(name, 'missing')}, expected {wanted.get(name, 'no such parameter')}"
        for name in sorted(shapes.keys() | wanted.keys())
        if shapes.get(name) != wanted.get(name)
    ]
    if wrong:
        raise ValueError("the pretrained parameters do not fit the model:\n  " + "\n  ".join(wrong))

    def place(spec: jax.ShapeDtypeStruct, leaf: np.ndarray) -> Array:
        return jax.make_array_from_callback(
            spec.shape, spec.sharding, lambda index: np.asarray(leaf[index], spec.dtype)
        )

    return jax.tree.map(place, abstract, params)
