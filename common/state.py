"""The training state: one pytree of arrays, made by one jitted function in its final layout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from common.mesh import like_parameters, parameter_shardings
from common.metrics import Metrics
from common.rng import stream
from common.task import Params, Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on, besides the data."""

    step: Array
    """Optimizer steps taken, int32 scalar."""
    params: Params
    """Trainable parameters."""
    opt_state: Any
    """State of the optax optimizer."""
    ema: Params | None
    """Exponential moving average of the parameters; None where none is kept."""
    rng: Array
    """Key data of the run's random key."""
    window: Metrics
    """Sums of the training metrics since the last multiple of the logging cadence."""

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: the averaged ones where they are kept."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateMaker:
    """Makes the training state of a task; its shapes and shardings cost no compute."""

    task: Task
    """The task."""
    optimizer: optax.GradientTransformation
    """The optimizer."""
    abstract_window: Metrics
    """Shapes of the step's metrics."""
    seed: int
    """Seed of parameters and random streams."""
    keep_ema: bool
    """Whether the state holds averaged parameters."""

    def _init(self) -> TrainState:
        key = jax.random.key(self.seed)
        params = self.task.init(stream(key, "init"))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params) if self.keep_ema else None,
            rng=jax.random.key_data(key),
            window=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.abstract_window),
        )

    def abstract(self, mesh: Mesh) -> TrainState:
        """Return the state as `jax.ShapeDtypeStruct`s with their shardings."""
        state = jax.eval_shape(self._init)
        params = parameter_shardings(self.task.sharding_rules(), state.params, mesh)
        replicated = NamedSharding(mesh, PartitionSpec())
        shardings = dataclasses.replace(
            jax.tree.map(lambda _: replicated, state),
            params=params,
            opt_state=like_parameters(state.opt_state, state.params, params, mesh),
            ema=params if self.keep_ema else None,
        )
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            shardings,
        )

    def make(self, mesh: Mesh) -> TrainState:
        """Initialise the state on the devices, every array directly in its layout."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract(mesh))
        return jax.jit(self._init, out_shardings=shardings)()
