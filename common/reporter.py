"""What the loop finds out, on its way to the logs: metrics one call late, speed, faults."""

import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from common import faults, metrics
from common.goodput import GoodputLog
from common.perf import Ledger, memory_in_use, utilization
from common.progress import Progress
from common.setup import Setup
from common.state import Fault, TrainState
from common.writers import Writer

logger = logging.getLogger(__name__)

_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Reporter:
    """Writes what the loop finds out, training metrics one call late."""

    def __init__(
        self,
        setup: Setup,
        writers: tuple[Writer, ...],
        progress: Progress,
        ledger: Ledger,
        goodput: GoodputLog,
    ) -> None:
        self._setup, self._writers, self._progress = setup, writers, progress
        self._ledger, self._goodput = ledger, goodput
        self._pending: tuple[int, metrics.Metrics, Fault] | None = None
        self.latest: dict[str, float] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers that are known."""
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
        self.write(step, train | {f"perf/{name}": value for name, value in self._speed().items()})
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

    def _speed(self) -> dict[str, float]:
        experiment = self._setup.experiment
        every = experiment.log.every
        self._ledger.completed(steps=every, examples=every * experiment.batch_size)
        speed = self._ledger.rates()
        if speed:
            devices = list(self._setup.mesh.devices.flat)
            speed |= utilization(self._setup.flops, speed["steps_per_second"], devices)
        speed["goodput"] = self._ledger.goodput()
        return speed | memory_in_use()

    def progress(self, step: int) -> None:
        """Show that `step` steps are done."""
        self._progress.update(step, self.latest)
