"""The training loop. Its order is fixed: evaluate, save, stop, fetch, step, lagged metrics."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from common import metrics
from common.checkpoint import Checkpoints
from common.config import to_dict
from common.data import Data, prefetch, stack_steps
from common.data.arrays import Arrays
from common.evaluate import Evaluator
from common.experiment import Experiment
from common.mesh import check_batch, make_mesh, place
from common.optim import make_optimizer
from common.perf import Ledger, Profiler, utilization
from common.preempt import Preempted, StopRequest
from common.progress import Progress
from common.state import StateMaker, TrainState
from common.step import abstract_metrics, make_train_step
from common.task import Params
from common.writers import Writer, make_writers, write_manifest

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run leaves in memory."""

    state: TrainState
    """The final training state."""
    metrics: dict[str, float]
    """The last logged training metrics and the final evaluation."""

    @property
    def params(self) -> Params:
        """The parameters to use: the averaged ones where they are kept."""
        return self.state.eval_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a run, ready to compile; nothing has been computed on a device yet."""

    experiment: Experiment
    """The config."""
    mesh: jax.sharding.Mesh
    """The device mesh."""
    data: Data
    """The training data."""
    state_maker: StateMaker
    """Makes the state, or its shapes and shardings."""
    train_step: Any
    """Jitted `(state, batches) -> (state, metrics)`; it takes over the state's memory."""


def prepare(experiment: Experiment) -> Setup:
    """Check the config against the devices and build mesh, data, optimizer and step.

    Raises:
      ValueError: for a mesh, batch, sharding rule or parameter group that does not fit, before any
        compute is spent.
    """
    mesh = make_mesh(experiment.mesh)
    check_batch(experiment.batch_size, experiment.step.accumulate, mesh)
    task = experiment.task
    for evaluator in task.evaluators():
        _check_cadence(evaluator, experiment.step.per_call)
    params = jax.eval_shape(task.init, jax.random.key(experiment.seed))
    optimizer = make_optimizer(experiment.optim, params, steps=experiment.steps)
    data = task.data(batch_size=experiment.batch_size, seed=experiment.seed)
    state_maker = StateMaker(
        task=task,
        optimizer=optimizer,
        abstract_window=abstract_metrics(task, experiment.step, params, data.spec()),
        seed=experiment.seed,
        keep_ema=experiment.step.ema_decay is not None,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state_maker.abstract(mesh))
    step = make_train_step(task, optimizer, experiment.step, log_every=experiment.log.every)
    return Setup(
        experiment=experiment,
        mesh=mesh,
        data=data,
        state_maker=state_maker,
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
    )


def _check_cadence(evaluator: Evaluator, per_call: int) -> None:
    if evaluator.every < 1 or evaluator.every % per_call:
        raise ValueError(
            f"evaluator {evaluator.name!r} runs every {evaluator.every} steps; that must be a "
            f"positive multiple of step.per_call = {per_call}"
        )


class _Reporter:
    """Writes what the loop finds out, training metrics one call late."""

    def __init__(
        self, setup: Setup, writers: tuple[Writer, ...], progress: Progress, ledger: Ledger
    ) -> None:
        self._setup, self._writers, self._progress = setup, writers, progress
        self._ledger = ledger
        self._pending: tuple[int, metrics.Metrics] | None = None
        self.latest: dict[str, float] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.latest |= values
        for writer in self._writers:
            writer.write(step, values)

    def metrics(self, step: int, window: metrics.Metrics) -> None:
        """Take the metrics of the window that ends at `step`, still being computed."""
        self._pending = (step, window)

    def flush(self) -> None:
        """Fetch and write the metrics taken last."""
        if self._pending is None:
            return
        (step, window), self._pending = self._pending, None
        with self._ledger("step"):
            values = metrics.compute(window)
        if values["skipped"] == 1:
            raise FloatingPointError(
                f"loss or gradient was not finite in any step of the logging window that ends at "
                f"{step}: lower optim.learning_rate, set optim.clip_norm, or check the data"
            )
        self.write(step, {f"train/{name}": value for name, value in values.items()})
        self._write_speed(step)

    def _write_speed(self, step: int) -> None:
        experiment = self._setup.experiment
        every = experiment.log.every
        self._ledger.completed(steps=every, examples=every * experiment.batch_size)
        speed = self._ledger.rates()
        flops = experiment.task.flops(experiment.batch_size)
        if speed and flops is not None:
            devices = list(self._setup.mesh.devices.flat)
            speed |= utilization(flops, speed["steps_per_second"], devices)
        speed["goodput"] = self._ledger.goodput()
        self.write(step, {f"perf/{name}": value for name, value in speed.items()})

    def progress(self, step: int) -> None:
        self._progress.update(step, self.latest)


def _batches(setup: Setup, start: int) -> Iterator[Arrays]:
    per_call = setup.experiment.step.per_call
    for step in range(start, setup.experiment.steps, per_call):
        yield stack_steps(setup.data, step, per_call)


def train(experiment: Experiment[Any], *, description: str = "") -> Result:
    """Train, resuming from the newest checkpoint in the work folder if there is one.

    Args:
      experiment: the config.
      description: what the progress bar says, such as "iteration 2".

    Returns:
      The final state and metrics.

    Raises:
      ValueError: for a config that cannot work, or that does not fit the checkpoints it meets.
      Preempted: after SIGTERM or Ctrl-C, once the state has been saved; the same command resumes.
      FloatingPointError: when every step of a logging window was skipped as not finite.
    """
    setup = prepare(experiment)
    workdir, mesh, steps = experiment.workdir, setup.mesh, experiment.steps
    per_call, save_every = experiment.step.per_call, experiment.checkpoint.every
    evaluators = tuple(experiment.task.evaluators())

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        ledger = stack.enter_context(Ledger())
        with ledger("init"):
            checkpoints: Checkpoints | None = None
            state: Any = None
            if workdir is not None:
                pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
                checkpoints = stack.enter_context(Checkpoints(workdir, experiment.checkpoint))
                checkpoints.adopt_config(to_dict(experiment))
                write_manifest(workdir, to_dict(experiment))
                state = checkpoints.restore(setup.state_maker.abstract(mesh))
            if state is None:
                state = setup.state_maker.make(mesh)
            start = int(state.step)
        writers = make_writers(
            workdir,
            resume_step=start,
            tensorboard=experiment.log.tensorboard,
            wandb_project=experiment.log.wandb_project,
            config=to_dict(experiment),
        )
        for writer in writers:
            stack.callback(writer.close)
        progress = stack.enter_context(
            Progress(steps, start=start, description=description, enabled=experiment.log.progress)
        )
        profiler = stack.enter_context(Profiler(experiment.log.profile, workdir))
        report = _Reporter(setup, writers, progress, ledger)

        def evaluate(step: int) -> None:
            for evaluator in evaluators:
                if step % evaluator.every == 0 or step == steps:
                    report.flush()
                    with ledger("eval"):
                        found = evaluator(state.eval_params, mesh)
                    report.write(step, {f"{evaluator.name}/{k}": v for k, v in found.items()})

        def save(step: int) -> None:
            if checkpoints is not None:
                # Lines logged after the checkpoint would be lost to a run that resumes from it.
                report.flush()
                with ledger("save"):
                    checkpoints.save(step, state)

        batches = stack.enter_context(
            prefetch(_batches(setup, start), lambda b: place(b, mesh, leading_axes=1))
        )
        for step in range(start, steps, per_call):
            if step > start:  # what was due at the start was done before its checkpoint
                evaluate(step)
                if step % save_every == 0 or stop.requested:
                    save(step)
            if stop.requested:
                report.flush()
                raise Preempted(
                    f"stopped at step {step} of {steps}; "
                    + (f"the same command resumes in {workdir}" if workdir else "nothing was saved")
                )
            profiler.before_step(step, state)
            with ledger("data"):
                batch = next(batches)
            with ledger("compile" if step == start else "step"):
                state, window = setup.train_step(state, batch)
            # Only now, with this call under way, are the metrics of an earlier one fetched.
            report.flush()
            done = step + per_call
            if done % experiment.log.every == 0:
                report.metrics(done, window)
            report.progress(done)

        report.flush()
        if start < steps:
            evaluate(steps)
            save(steps)
            report.write(steps, {f"perf/seconds_{k}": v for k, v in ledger.seconds().items()})
        else:
            logger.info("the run in %s is complete", workdir)
            for evaluator in evaluators:
                found = evaluator(state.eval_params, mesh)
                report.latest |= {f"{evaluator.name}/{k}": v for k, v in found.items()}
        return Result(state=state, metrics=dict(report.latest))
