"""The training loop. Its order is fixed: evaluate, save, stop, fetch, step, lagged metrics."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from etils import epath

from common import distributed, faults
from common.checkpoint import Checkpoints
from common.config import to_dict
from common.data import prefetch, stack_steps
from common.data.arrays import Arrays
from common.experiment import Experiment
from common.goodput import GoodputLog
from common.mesh import await_simulated, local_examples, place
from common.perf import Ledger, Profiler
from common.preempt import Preempted, StopRequest, Watchdog
from common.progress import Progress
from common.reporter import Reporter
from common.setup import Setup, prepare
from common.state import TrainState
from common.task import Params
from common.writers import make_writers, write_manifest

logger = logging.getLogger(__name__)

ROLL_BACKS = 3
"""How often one start of a run may go back to a checkpoint."""


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


def _batches(setup: Setup, start: int, passed_over: int) -> Iterator[Arrays]:
    per_call = setup.experiment.step.per_call
    own = local_examples(setup.mesh, setup.examples)
    for step in range(start, setup.experiment.steps, per_call):
        yield stack_steps(setup.data, step + passed_over, per_call, own)


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
      FloatingPointError: when every step of a logging window was skipped as not finite, or one
        was and `step.nonfinite` says to stop, or going back did not help.
    """
    fault: faults.RollBack | None = None
    for _ in range(1 + ROLL_BACKS):
        try:
            return _train(experiment, description, fault)
        except faults.RollBack as found:
            logger.warning("rolling back: %s", found)
            fault = found
    raise FloatingPointError(f"{fault}, after going back {ROLL_BACKS} times; check the data")


def _train(experiment: Experiment[Any], description: str, fault: faults.RollBack | None) -> Result:
    """Train from the newest checkpoint, or from the newest one before a fault."""
    workdir, steps = experiment.workdir, experiment.steps
    per_call, save_every = experiment.step.per_call, experiment.checkpoint.every

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        ledger = stack.enter_context(Ledger())
        with ledger("init"):
            setup = prepare(experiment)
            mesh, evaluators, config = setup.mesh, setup.evaluators, to_dict(experiment)
            checkpoints: Checkpoints | None = None
            state: Any = None
            if workdir is not None:
                epath.Path(workdir).mkdir(parents=True, exist_ok=True)
                checkpoints = stack.enter_context(Checkpoints(workdir, experiment.checkpoint))
                checkpoints.adopt_config(config)
                write_manifest(workdir, config)
                through = None if fault is None else fault.step
                state = checkpoints.restore(setup.abstract_state, through=through)
            if state is None:
                state = setup.init_state()
            start = int(state.step)
            if fault is not None:
                state = faults.pass_over(state, fault)
        writers = make_writers(
            workdir,
            resume_step=start,
            tensorboard=experiment.log.tensorboard,
            wandb_project=experiment.log.wandb_project,
            config=config,
        )
        for writer in writers:
            stack.callback(writer.close)
        progress = stack.enter_context(
            Progress(steps, start=start, description=description, enabled=experiment.log.progress)
        )
        profiler = stack.enter_context(Profiler(experiment.log.profile, workdir))
        goodput = stack.enter_context(GoodputLog(workdir))
        goodput.write(start, ledger.seconds())
        report = Reporter(setup, writers, progress, ledger, goodput)

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
                goodput.write(step, ledger.seconds())

        batches = stack.enter_context(
            prefetch(
                _batches(setup, start, int(state.passed_over)),
                lambda batch: place(batch, mesh, leading_axes=1, count=setup.examples),
            )
        )
        watchdog = stack.enter_context(Watchdog(experiment.hang_timeout))
        distributed.barrier("first step")  # names a process that is late
        for step in range(start, steps, per_call):
            watchdog.alive()
            if step > start:  # what was due at the start was done before its checkpoint
                evaluate(step)
            stopping = stop.due()
            if step > start and (step % save_every == 0 or stopping):
                save(step)
            if stopping:
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
                await_simulated(window, mesh)
            # Only now, with this call under way, are the metrics of an earlier one fetched.
            report.flush()
            done = step + per_call
            if done % experiment.log.every == 0:
                report.metrics(done, window, state)
            report.progress(done)

        report.flush()
        if start < steps:
            evaluate(steps)
            save(steps)
            report.write(steps, {f"perf/seconds_{k}": v for k, v in ledger.seconds().items()})
            goodput.write(steps, ledger.seconds())
        else:
            logger.info("the run in %s is complete", workdir)
            for evaluator in evaluators:
                found = evaluator(state.eval_params, mesh)
                report.latest |= {f"{evaluator.name}/{k}": v for k, v in found.items()}
        return Result(state=state, metrics=dict(report.latest))
