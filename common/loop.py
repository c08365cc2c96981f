"""The training loop. Its order is fixed: stop, save, evaluate, fetch, step, lagged metrics."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, NoReturn

from etils import epath

from common import distributed, faults
from common.checkpoint import Checkpoints
from common.config import to_dict
from common.data import prefetch, stack_steps
from common.data.arrays import Arrays
from common.evaluate import Evaluator
from common.experiment import Experiment
from common.goodput import GoodputLog
from common.lock import WorkdirLock
from common.mesh import await_simulated, local_examples, place
from common.perf import Ledger, Profiler
from common.preempt import Preempted, StopRequest, Watchdog
from common.progress import Progress
from common.reporter import Reporter, heading, read_past
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
    """The last value of everything that was logged, also by earlier starts of the run."""

    @property
    def params(self) -> Params:
        """The parameters to use: the averaged ones where they are kept."""
        return self.state.eval_params


def _batches(setup: Setup, start: int, passed_over: int) -> Iterator[Arrays]:
    per_call = setup.experiment.step.per_call
    own = local_examples(setup.mesh, setup.examples)
    for step in range(start, setup.experiment.steps, per_call):
        yield stack_steps(setup.data, step + passed_over, per_call, own)


def _warn_of_batch_size(old: int, new: int, step: int) -> None:
    first, last = sorted((step * old, step * new))
    what = "skipped" if new > old else "seen again"
    logger.warning(
        "batch_size was %d up to step %d and is %d now: batches are numbered by the step, so that "
        "the examples %d to %d of the data's order are %s",
        *(old, step, new, first, last - 1, what),
    )


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
      RuntimeError: when another run writes to the work folder, or no checkpoint can be read.
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
    per_call, log_every = experiment.step.per_call, experiment.log.every

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        ledger = stack.enter_context(Ledger())
        with ledger("init"):
            setup = prepare(experiment)
            mesh = setup.mesh
            # What is kept must be comparable.
            config = {} if workdir is None else to_dict(experiment)
            checkpoints: Checkpoints | None = None
            state: Any = None
            changed: dict[str, tuple[Any, Any]] = {}
            if workdir is not None:
                epath.Path(workdir).mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(WorkdirLock(workdir))
                checkpoints = stack.enter_context(Checkpoints(workdir, experiment.checkpoint))
                changed = checkpoints.adopt_config(config)
                write_manifest(workdir, config)
                through = None if fault is None else fault.step
                state = checkpoints.restore(setup.abstract_state, through=through)
            if state is None:
                state = setup.init_state()
            start = step = saved = int(state.step)
            if start < steps:
                _ = setup.flops  # traced here, not in the first window's time
            if start and "batch_size" in changed:
                _warn_of_batch_size(*changed["batch_size"], start)
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
        past = read_past(workdir, start, experiment.checkpoint.keep_best)
        if checkpoints is not None:
            for at, numbers in past.evaluated:
                checkpoints.evaluated(at, numbers)
        progress = stack.enter_context(
            Progress(
                steps,
                start=start,
                description=description,
                enabled=experiment.log.progress,
                heading=heading(setup, start) if start < steps else None,
            )
        )
        profiler = stack.enter_context(Profiler(experiment.log.profile, workdir))
        goodput = stack.enter_context(GoodputLog(workdir))
        goodput.write(start, ledger.seconds())
        report = Reporter(
            setup, writers, progress, ledger, goodput, start=start, latest=past.latest
        )

        def save() -> None:
            """Save the state of `step`, once."""
            nonlocal saved
            if checkpoints is None or step == saved:
                return
            # Lines logged after the checkpoint would be lost to a run that resumes from it.
            report.flush()
            with ledger("save"):
                lock.check()
                checkpoints.save(step, state)
            saved = step
            goodput.write(step, ledger.seconds())

        def evaluate(evaluator: Evaluator) -> None:
            report.flush()
            with ledger("eval"):
                found = evaluator(state.eval_params, mesh)
                found = {f"{evaluator.name}/{k}": float(v) for k, v in found.items()}
                found = distributed.agree(found)
            report.write(step, found)
            if checkpoints is not None:
                checkpoints.evaluated(step, found)

        def end() -> NoReturn:
            save()
            report.flush()
            raise Preempted(
                f"stopped at step {step} of {steps}; "
                + (f"the same command resumes in {workdir}" if workdir else "nothing was saved")
            )

        batches = stack.enter_context(
            prefetch(
                _batches(setup, start, int(state.passed_over)),
                lambda batch: place(batch, mesh, leading_axes=1, count=setup.examples),
                while_waiting=lambda: end() if stop.due_in_wait() else None,
            )
        )
        watchdog = stack.enter_context(Watchdog(experiment.hang_timeout))
        distributed.barrier("first step")  # names a process that is late
        while True:
            watchdog.alive()
            # 1. Stop, if asked to, without what else is due here: the run that resumes does it.
            if stop.due():
                end()
            # 2. Save: before what may fail, so that this costs no step that was taken.
            due = [e for e in setup.evaluators if _is_due(e, step, steps)]
            if step == start:  # what a run that ended here has logged, is done
                due = [e for e in due if not past.has_logged(e.name)]
            clock = step % log_every == 0
            if due or step == steps or (checkpoints and checkpoints.due(step, look_at_clock=clock)):
                save()
            # 3. Evaluate what is due.
            for evaluator in due:
                evaluate(evaluator)
            if due and stop.due():  # asked for during a long evaluation
                end()
            if step == steps:
                report.flush()
                break
            # 4. Fetch; a signal in the wait for data ends the run at this boundary.
            profiler.before_step(step, state)
            with ledger("init" if step == start else "data"):
                batch = next(batches)
            # 5. Step.
            with ledger("compile" if step == start else "step"):
                state, window = setup.train_step(state, batch)
                await_simulated(window, mesh)
            # 6. Only now, with this call under way, are the metrics of an earlier one fetched.
            report.flush()
            step += per_call
            if step % log_every == 0 or step == steps:
                report.metrics(step, window, state)
            report.progress(step)

        if start < steps:
            report.write(steps, {f"perf/seconds_{k}": v for k, v in ledger.seconds().items()})
            goodput.write(steps, ledger.seconds())
        else:
            logger.info("the run in %s is complete", workdir)
        return Result(state=state, metrics=dict(report.latest))


def _is_due(evaluator: Evaluator, step: int, steps: int) -> bool:
    return step > 0 and (step % evaluator.every == 0 or step == steps)
