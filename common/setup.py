"""From a config to the parts of a run, checked but not yet computed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from common.data import Data
from common.evaluate import Evaluator, trace_evaluators
from common.experiment import Experiment
from common.flops import training_flops
from common.mesh import check_batch, make_mesh
from common.optim import make_optimizer, make_schedule, trainable
from common.start_from import take_parameters
from common.state import TrainState, lay_out, make_init, place_params
from common.step import abstract_metrics, make_train_step
from common.task import Task
from common.tree import named_leaves


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
    evaluators: tuple[Evaluator, ...]
    """What is computed on the parameters at a cadence."""
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
      ValueError: for a mesh, batch, sharding rule, parameter group or evaluator that does not fit,
        before any compute is spent.
    """
    mesh = make_mesh(experiment.mesh, devices)
    task = experiment.task
    evaluators = tuple(task.evaluators())
    _check_evaluators(evaluators, experiment)
    params = jax.eval_shape(task.init, jax.random.key(experiment.seed))
    _check_parameters(task, params)
    mask = trainable(experiment.optim, params)
    optimizer = make_optimizer(experiment.optim, params, steps=experiment.steps)
    data = task.data(batch_size=experiment.batch_size, seed=experiment.seed)
    spec = data.spec()
    examples = _count_examples(spec)
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
    trace_evaluators(evaluators, abstract_state.params, mesh)
    jitted_init = jax.jit(init, out_shardings=shardings, donate_argnums=0)

    def init_state() -> TrainState:
        params = task.pretrained()
        if params is not None:
            params = place_params(params, abstract_state.params)
        state = jitted_init(params)
        if experiment.start_from is None:
            return state
        # The state is made anew: the optimizer's may depend on the parameters.
        params = state.params
        del state
        return jitted_init(
            take_parameters(params, experiment.start_from, experiment.start_from_parameters)
        )

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
        evaluators=evaluators,
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, shardings.window)),
    )


def _check_evaluators(evaluators: Sequence[Evaluator], experiment: Experiment[Any]) -> None:
    per_call, best = experiment.step.per_call, experiment.checkpoint.keep_best
    for evaluator in evaluators:
        if evaluator.every < 1 or evaluator.every % per_call:
            raise ValueError(
                f"evaluator {evaluator.name!r} runs every {evaluator.every} steps; that must be a "
                f"positive multiple of step.per_call = {per_call}"
            )
    names = [evaluator.name for evaluator in evaluators]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"two evaluators are called {', '.join(twice)}: their numbers would be mixed up; give "
            "each a name of its own"
        )
    if best is not None and not any(best.startswith(f"{name}/") for name in names):
        raise ValueError(
            f"checkpoint.keep_best = {best!r} is no number of an evaluator; it must begin with "
            + (" or ".join(f"{name}/" for name in names) or "its name, and this task has none")
        )


def _check_parameters(task: Task, params: Any) -> None:
    named = named_leaves(params)
    if not named:
        raise ValueError(f"{type(task).__name__}.init returns no parameters: {params!r}")
    if empty := [f"{name} {leaf.shape}" for name, leaf in named if not leaf.size]:
        raise ValueError(
            f"parameters without elements cannot be saved: {', '.join(empty)}; leave them out"
        )


def _count_examples(spec: Any) -> int:
    """Return the length of the first axis of a batch, which all of its arrays share."""
    lengths = {name: leaf.shape[0] if leaf.shape else 0 for name, leaf in spec.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            "a batch needs at least one array, and all with the examples along the first axis; "
            f"their lengths are {lengths}"
        )
    return int(next(iter(lengths.values())))
