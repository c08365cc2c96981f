"""From a config to the parts of a run, checked but not yet computed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from common.data import Data
from common.evaluate import Evaluator
from common.experiment import Experiment
from common.flops import training_flops
from common.mesh import check_batch, make_mesh
from common.optim import make_optimizer, make_schedule, trainable
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
    trainable: Any
    """Which parameters train: a tree of bools."""
    abstract_state: TrainState
    """Shapes and shardings of the training state."""
    init_state: Callable[[], TrainState]
    """Makes the state of step 0 on the devices, every array directly in its layout."""
    train_step: Any
    """Jitted `(state, batches) -> (state, metrics)`; it takes over the state's memory."""

    @functools.cached_property
    def flops(self) -> float:
        """Model FLOPs of one optimizer step, see `common.flops`; the loss is traced once."""
        return training_flops(
            self.experiment.task,
            self.experiment.step,
            self.abstract_state.params,
            self.data.spec(),
            self.trainable,
        )


def prepare(experiment: Experiment[Any], devices: Sequence[jax.Device] | None = None) -> Setup:
    """Check the config against the devices and build mesh, data, optimizer and step.

    Args:
      experiment: the config.
      devices: those of the mesh; all that there are by default.

    Raises:
      ValueError: for a mesh, batch, sharding rule or parameter group that does not fit, before any
        compute is spent.
    """
    mesh = make_mesh(experiment.mesh, devices)
    task = experiment.task
    for evaluator in task.evaluators():
        _check_cadence(evaluator, experiment.step.per_call)
    params = jax.eval_shape(task.init, jax.random.key(experiment.seed))
    mask = trainable(experiment.optim, params)
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
        abstract_metrics(task, experiment.step, params, spec, mask),
        mask,
        seed=experiment.seed,
        keep_ema=experiment.step.ema_decay is not None,
    )
    abstract_state = lay_out(init, task.sharding_rules(), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    jitted_init = jax.jit(init, out_shardings=shardings, donate_argnums=0)

    def init_state() -> TrainState:
        params = task.pretrained()
        if params is None:
            return jitted_init()
        return jitted_init(place_params(params, abstract_state.params))

    step = make_train_step(
        task,
        optimizer,
        make_schedule(experiment.optim, steps=experiment.steps),
        experiment.step,
        mask,
        log_every=experiment.log.every,
    )
    return Setup(
        experiment=experiment,
        mesh=mesh,
        data=data,
        examples=examples,
        trainable=mask,
        abstract_state=abstract_state,
        init_state=init_state,
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, shardings.window)),
    )


def _check_cadence(evaluator: Evaluator, per_call: int) -> None:
    if evaluator.every < 1 or evaluator.every % per_call:
        raise ValueError(
            f"evaluator {evaluator.name!r} runs every {evaluator.every} steps; that must be a "
            f"positive multiple of step.per_call = {per_call}"
        )
