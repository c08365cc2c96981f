"""From a config to the parts of a run, checked but not yet computed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from common.data import Data
from common.evaluate import Evaluator, check_evaluators
from common.experiment import Experiment
from common.mesh import check_batch, make_mesh
from common.optim import make_optimizer
from common.state import TrainState, lay_out, make_init, place_params
from common.step import abstract_metrics, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a run, ready to compile; nothing has been computed on a device yet."""

    experiment: Experiment[Any]
    """The config."""
    mesh: Mesh
    """The device mesh."""
    data: Data
    """The training data."""
    examples: int
    """Length of the first axis of a batch: where examples come in groups, their number."""
    abstract_state: TrainState
    """Shapes and shardings of the training state."""
    init_state: Callable[[], TrainState]
    """Makes the state of step 0 on the devices, every array directly in its layout."""
    evaluators: tuple[Evaluator, ...]
    """What is computed on the parameters at a cadence."""
    train_step: Any
    """Jitted `(state, batches) -> (state, metrics)`; it takes over the state's memory."""


def prepare(experiment: Experiment[Any], devices: Sequence[jax.Device] | None = None) -> Setup:
    """Check the config against the devices and build mesh, data, optimizer and step.

    Args:
      experiment: the config.
      devices: those of the mesh; all that there are by default.

    Raises:
      ValueError: for a mesh, batch, sharding rule, parameter group or evaluator that does not fit,
        before any compute is spent.
    """
    mesh = make_mesh(experiment.mesh, devices)
    task = experiment.task
    evaluators = tuple(task.evaluators())
    for evaluator in evaluators:
        _check_cadence(evaluator, experiment.step.per_call)
    params = jax.eval_shape(task.init, jax.random.key(experiment.seed))
    optimizer = make_optimizer(experiment.optim, params, steps=experiment.steps)
    data = task.data(batch_size=experiment.batch_size, seed=experiment.seed)
    spec = data.spec()
    lengths = {name: leaf.shape[0] for name, leaf in spec.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the arrays of a batch hold different numbers of examples: {lengths}")
    examples = next(iter(lengths.values()))
    check_batch(experiment.batch_size, examples, experiment.step.accumulate, mesh)
    init = make_init(
        task,
        optimizer,
        abstract_metrics(task, experiment.step, params, spec),
        seed=experiment.seed,
        keep_ema=experiment.step.ema_decay is not None,
    )
    abstract_state = lay_out(init, task.sharding_rules(), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    check_evaluators(evaluators, abstract_state.eval_params, mesh)
    jitted_init = jax.jit(init, out_shardings=shardings, donate_argnums=0)

    def init_state() -> TrainState:
        params = task.pretrained()
        if params is None:
            return jitted_init()
        return jitted_init(place_params(params, abstract_state.params))

    step = make_train_step(task, optimizer, experiment.step, log_every=experiment.log.every)
    return Setup(
        experiment=experiment,
        mesh=mesh,
        data=data,
        examples=examples,
        abstract_state=abstract_state,
        init_state=init_state,
        evaluators=evaluators,
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, shardings.window)),
    )


def _check_cadence(evaluator: Evaluator, per_call: int) -> None:
    if evaluator.every < 1 or evaluator.every % per_call:
        raise ValueError(
            f"evaluator {evaluator.name!r} runs every {evaluator.every} steps; that must be a "
            f"positive multiple of step.per_call = {per_call}"
        )
