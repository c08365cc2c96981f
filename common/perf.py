"""Where the time goes: step rate, goodput, FLOP utilisation, profiler window, compile cache."""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self, get_args

import jax
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import PyTree

from common.chips import find_chip
from common.files import user_cache

logger = logging.getLogger(__name__)

Activity = Literal["init", "compile", "data", "step", "eval", "save"]
TRAINING = ("step", "data", "other")
"""Activities that are the training itself; the step rate is over their time."""


class Ledger:
    """Accounts for every second of a run, and derives the step rate from it.

        with Ledger() as ledger:
            with ledger("step"):
                ...
            ledger.completed(steps=10, examples=2560)

    Activities may nest; a second counts for the innermost one, or for "other" outside of all.
    Nothing here waits for a device. Dispatch is asynchronous, so the seconds of a step show where
    the host blocks on it: count that fetch as "step", too.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = dict.fromkeys((*get_args(Activity), "other"), 0.0)
        self._running: list[str] = []
        self._mark = 0.0
        self._steps = self._examples = 0
        self._training_seconds = 0.0

    def __enter__(self) -> Self:
        self._mark = self._clock()
        self._running.append("other")
        return self

    def __exit__(self, *exc: object) -> None:
        self._charge()
        self._running.pop()

    @contextlib.contextmanager
    def __call__(self, activity: Activity) -> Iterator[None]:
        """Charge the time inside the `with` block to `activity`."""
        self._charge()
        self._running.append(activity)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = self._clock()
        if self._running:
            self._seconds[self._running[-1]] += now - self._mark
        self._mark = now

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent on each activity and "other" so far; they add up to the run."""
        self._charge()
        return dict(self._seconds)

    def goodput(self) -> float:
        """Return the fraction of the time so far that went into steps."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return seconds["step"] / total if total else 0.0

    def completed(self, *, steps: int, examples: int) -> None:
        """Count work whose results have arrived, since the last call."""
        self._steps += steps
        self._examples += examples

    def rates(self) -> dict[str, float]:
        """Return steps and examples per second since the last call, and start a new window.

        The time is that of training: steps, waits for data and "other", without start-up,
        compilation, evaluation and saving. A window without completed work or time is empty.
        """
        seconds = self.seconds()
        training = sum(seconds[activity] for activity in TRAINING)
        elapsed = training - self._training_seconds
        steps, examples = self._steps, self._examples
        self._training_seconds, self._steps, self._examples = training, 0, 0
        if not steps or elapsed <= 0:
            return {}
        return {"steps_per_second": steps / elapsed, "examples_per_second": examples / elapsed}


def utilization(
    flops_per_step: float, steps_per_second: float, devices: list[jax.Device]
) -> dict[str, float]:
    """Relate the FLOPs that the model needs to the time they take.

    Args:
      flops_per_step: FLOPs of one step over all devices, counted analytically (a matrix product of
        (m, k) by (k, n) is 2mkn; the backward pass twice the forward; rematerialisation is none).
      steps_per_second: measured rate.
      devices: all devices of the run, of one kind.

    Returns:
      "flops_per_second" over all devices and, where the peak is known, "mfu": the fraction of it
      (model FLOPs utilisation, Chowdhery et al., arXiv:2204.02311, appendix B).
    """
    rate = flops_per_step * steps_per_second
    chip = find_chip(devices[0].device_kind)
    if chip is None:
        return {"flops_per_second": rate}
    return {"flops_per_second": rate, "mfu": rate / (chip.flops * len(devices))}


def param_count(params: PyTree) -> int:
    """Return the number of scalars in a tree of arrays or `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Steps to trace with the JAX profiler."""

    start_step: int | None = None
    """First step of the trace; a later one when steps are called in groups or the run resumes. None
    traces only when SIGUSR1 asks for it."""
    steps: int = 5
    """Number of steps of a trace."""

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.start_step is not None and self.start_step < 0):
            raise ValueError(
                "profile.start_step must be at least 0, or None, and profile.steps at least 1; "
                f"got {self.start_step} and {self.steps}"
            )


class Profiler:
    """Traces windows of steps into `workdir/profile`: that of the config, one at each SIGUSR1.

    with Profiler(config, workdir) as profiler:
        for step in range(start, end):
            profiler.before_step(step, state)
            state = train_step(state)

    A signal has the steps traced that follow it, as many as the config says. Without a folder, or
    outside the main thread, where Python cannot install handlers, it is not asked for. Open a trace
    with TensorBoard's profile plugin, xprof or Perfetto.
    """

    def __init__(self, config: ProfileConfig, workdir: str | os.PathLike[str] | None) -> None:
        if config.start_step is not None and workdir is None:
            raise ValueError("a profile needs a folder to be written to: set workdir")
        self._by_signal = workdir is not None
        self._folder = os.path.join(workdir or "", "profile")
        self._steps = config.steps
        first = config.start_step
        self._windows = [] if first is None else [range(first, first + config.steps)]
        self._asked = self._tracing = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if self._by_signal and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
        if self._tracing:
            self._trace(start=False)

    def _ask(self, signum: int, frame: types.FrameType | None) -> None:  # noqa: ARG002
        self._asked = True

    def before_step(self, step: int, state: Any) -> None:
        """Start or stop the trace where a window begins or ends.

        Args:
          step: number of the step about to be called.
          state: what that step takes; waited for at both ends of the window, so that the trace
            holds whole steps.
        """
        if self._asked:
            self._asked = False
            self._windows.append(range(step, step + self._steps))
        if not self._windows:
            return
        inside = any(step in window for window in self._windows)
        if inside != self._tracing:
            jax.block_until_ready(state)
            self._trace(start=inside)
        self._windows = [window for window in self._windows if step < window.stop]

    def _trace(self, *, start: bool) -> None:
        """Start or stop the trace; one that the user's program has under way is left alone."""
        self._tracing = start
        try:
            if start:
                jax.profiler.start_trace(self._folder)
            else:
                jax.profiler.stop_trace()
        except RuntimeError as error:
            logger.warning("no whole trace in %s: %s", self._folder, error)
            self._tracing = False
            self._windows.clear()


def memory_in_use() -> dict[str, float]:
    """Return the memory of this process's fullest device, where devices tell it.

    Returns:
      "memory_bytes" in use, "memory_peak_bytes" since the start and "memory_limit_bytes".
    """
    names = {"bytes_in_use": "memory_bytes", "peak_bytes_in_use": "memory_peak_bytes"}
    names |= {"bytes_limit": "memory_limit_bytes"}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    fullest = max(stats, key=lambda s: s.get("peak_bytes_in_use", 0))
    return {name: float(fullest[key]) for key, name in names.items() if key in fullest}


def enable_compile_cache(path: str | os.PathLike[str] | None = None) -> None:
    """Keep compiled programs on disk, so that the next process need not compile them again.

    Programs that compile in under half a second are not kept.

    Args:
      path: the folder; by default the one that JAX is configured with (JAX_COMPILATION_CACHE_DIR),
        or else one in the user's cache folder, if there is one.
    """
    if path is None and jax.config.values["jax_compilation_cache_dir"] is None:
        path = user_cache()
    if path is not None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(path))
        compilation_cache.reset_cache()  # else a folder that is in use already would stay so
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
