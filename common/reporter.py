"""What the loop finds out, on its way to the logs: metrics one call late, speed, faults."""

import dataclasses
import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from common import distributed, faults, metrics
from common.goodput import GoodputLog
from common.perf import Ledger, memory_in_use, param_count, utilization
from common.progress import Progress
from common.setup import Setup
from common.state import Fault, TrainState
from common.tree import split
from common.writers import Writer, read_log

logger = logging.getLogger(__name__)

_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def heading(setup: Setup, start: int) -> str:
    """Say in a line what is about to be trained, on what and where."""
    experiment, mesh = setup.experiment, setup.mesh
    params = setup.abstract_state.params
    trained, frozen = map(param_count, split(params, setup.trainable))
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    parts = [
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}" + (f" ({axes})" if axes else ""),
        f"{trained:,} trained" + (f" and {frozen:,} frozen" * (frozen > 0)) + " parameters",
        f"batch {experiment.batch_size}",
        f"steps {start} to {experiment.steps}",
        experiment.workdir or "no work folder",
    ]
    return ", ".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """What earlier starts of the run have logged, up to the step at which this one begins."""

    latest: dict[str, float]
    """The last value of each number."""
    here: list[str]
    """The numbers that were logged at the step itself."""
    evaluated: list[tuple[int, dict[str, float]]]
    """Steps and values of the number that `checkpoint.keep_best` names."""

    def has_logged(self, evaluator: str) -> bool:
        """Whether an evaluator has logged its numbers at the step itself."""
        return any(name.startswith(f"{evaluator}/") for name in self.here)


def read_past(workdir: str | None, start: int, keep_best: str | None) -> Past:
    """Read the log of a run that begins at step `start`, whose later lines have been dropped.

    To be called by all processes: the first one reads for all.
    """
    lines = read_log(workdir) if workdir is not None and jax.process_index() == 0 else []
    past = Past(
        latest={name: value for _, values in lines for name, value in values.items()},
        here=[name for step, values in lines if step == start for name in values],
        evaluated=[(s, {keep_best: v[keep_best]}) for s, v in lines if keep_best in v],
    )
    return Past(**distributed.agree(dataclasses.asdict(past)))


class Reporter:
    """Writes what the loop finds out, training metrics one call late."""

    def __init__(
        self,
        setup: Setup,
        writers: tuple[Writer, ...],
        progress: Progress,
        ledger: Ledger,
        goodput: GoodputLog,
        *,
        start: int,
        latest: Mapping[str, float],
    ) -> None:
        """Begin at step `start`, where `latest` holds what was logged last before."""
        self._setup, self._writers, self._progress = setup, writers, progress
        self._ledger, self._goodput = ledger, goodput
        self._pending: tuple[int, metrics.Metrics, Fault] | None = None
        self._counted = start
        self.latest = dict(latest)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers that are known."""
        if not values:
            return
        self.latest |= values
        for writer in self._writers:
            writer.write(step, values)

    def metrics(self, step: int, window: metrics.Metrics, state: TrainState) -> None:
        """Take the metrics of the window that ends at `step`, still being computed."""
        # The next step takes over the memory of the state.
        self._pending = (step, window, _copy(state.fault))

    def flush(self) -> None:
        """Fetch and write the metrics taken last."""
        if self._pending is None:
            return
        (step, window, fault), self._pending = self._pending, None
        with self._ledger("step"):
            values = metrics.compute(window)
        if values["skipped"] > 0:
            self._not_finite(jax.device_get(fault), all_skipped=values["skipped"] == 1)
        train = {f"train/{name}": value for name, value in values.items()}
        self.write(
            step, train | {f"perf/{name}": value for name, value in self._speed(step).items()}
        )
        self._goodput.write(step, self._ledger.seconds(), values["loss"])

    def _not_finite(self, fault: Fault, *, all_skipped: bool) -> None:
        """Write the fault down, and do to the run what the config says."""
        experiment = self._setup.experiment
        params = self._setup.abstract_state.params
        found = faults.describe(fault, experiment, params, self._setup.data)
        faults.record(experiment.workdir, found)
        where = ", ".join(found["parameters"]) or "no parameter"
        what = (
            f"step {found['step']} (batch {found['batch']}) was not finite: "
            f"loss {found['loss']}, gradient not finite in {where}"
        )
        if experiment.step.nonfinite == "roll_back":
            raise faults.RollBack(what, step=found["step"], batch=found["batch"])
        if experiment.step.nonfinite == "stop" or all_skipped:
            count = "nor was any other step of its logging window; " if all_skipped else ""
            raise FloatingPointError(
                f"{what}; {count}lower optim.learning_rate, set optim.clip_norm, or check the data"
            )
        logger.warning("skipped: %s", what)

    def _speed(self, step: int) -> dict[str, float]:
        experiment = self._setup.experiment
        # A window that a resumed run completes is not all of its own doing.
        count, self._counted = step - self._counted, step
        self._ledger.completed(steps=count, examples=count * experiment.batch_size)
        speed = self._ledger.rates()
        if speed:
            devices = list(self._setup.mesh.devices.flat)
            speed |= utilization(self._setup.flops, speed["steps_per_second"], devices)
        speed["goodput"] = self._ledger.goodput()
        return speed | memory_in_use()

    def progress(self, step: int) -> None:
        """Show that `step` steps are done."""
        self._progress.update(step, self.latest)
