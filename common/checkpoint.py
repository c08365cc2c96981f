"""Checkpoints of the training state: a thin face over Orbax v1."""

import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from orbax.checkpoint import v1 as ocp

from common import distributed
from common.choices import check_choice
from common.config import diff
from common.files import PathLike, absolute, explained, replace
from common.preempt import Preempted
from common.tree import named_leaves

logger = logging.getLogger(__name__)

OnFailure = Literal["stop", "continue"]
Best = Literal["min", "max"]

START_FILE = "SUPERVISE_START"
"""Variable with the path of a file in which a run says from which checkpoint it starts."""
FREE_KEYS = ("workdir", "log.", "checkpoint.", "mesh.", "hang_timeout")
"""Config keys that may change between a checkpoint and the run that resumes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved, and how many checkpoints are kept."""

    every: int = 1000
    """Cadence in steps. The state is also saved before each evaluation, at the end of the run, and
    on a request to stop."""
    every_minutes: float | None = None
    """Also save when this time has passed since the last save. The first process looks at its clock
    every `log.every` steps; None does not."""
    keep: int = 2
    """Newest checkpoints to keep; more than one, so that a torn one can be passed over."""
    keep_best: str | None = None
    """Evaluated number, such as `test/loss`: the checkpoint with its best value is kept, too."""
    best: Best = "min"
    """Whether the smallest or the largest value of `keep_best` is the best."""
    keep_every: int | None = None
    """Steps whose multiples are kept for good; None keeps no others."""
    on_failure: OnFailure = "stop"
    """What a checkpoint that cannot be written does to the run. One that goes on tries again at the
    next save; the older checkpoints stay. The last save of a run must succeed in any case. Several
    processes always stop: the others would wait in the save that one of them could not write."""
    accept_config_change: tuple[str, ...] = ()
    """Keys, such as `optim.learning_rate` or `task.`, that may differ from the checkpoint's."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1, got {self.keep}")
        check_choice("checkpoint.best", self.best, get_args(Best))
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(f"checkpoint.every_minutes must be positive, got {self.every_minutes}")
        check_choice("checkpoint.on_failure", self.on_failure, get_args(OnFailure))
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(f"checkpoint.keep_every must be positive, got {self.keep_every}")


class _Unreadable(Exception):
    """Why a checkpoint cannot be read."""


def checksums(state: Any) -> Array:
    """Sum up the bits of each leaf, uint32 (leaves,), alike on every topology.

    A file system or a bus that flips a bit in an array is found by nothing else: the arrays' format
    has no checksum of its own. Any single flip changes the sum.
    """
    device, *others = jax.tree.leaves(state)[0].sharding.device_set
    return _checksums(state, folds=1 if others or device.platform != "cpu" else 8)


@functools.partial(jax.jit, static_argnames="folds")
def _checksums(state: Any, *, folds: int) -> Array:
    """Sum up the bits; in two steps, from as many parts, where XLA would write all words first.

    It does so on a CPU, where fresh memory takes much longer than the sum.
    """

    def total(leaf: Array) -> Array:
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return total(leaf.real) + total(leaf.imag)
        bits = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)
        if folds == 1:
            return jnp.sum(words, dtype=jnp.uint32)
        flat = words.reshape(-1)
        length = flat.size // folds
        parts = [flat[i * length : (i + 1) * length] for i in range(folds)]
        folded = jax.lax.optimization_barrier(functools.reduce(jnp.add, parts))
        return jnp.sum(folded, dtype=jnp.uint32) + jnp.sum(flat[folds * length :], dtype=jnp.uint32)

    return jnp.stack([total(leaf) for leaf in jax.tree.leaves(state)])


def reading_alone() -> ocp.Context:
    """Return a context in which each process reads on its own, and can say then whether it could.

    With Orbax's barrier, all would wait for one that failed.
    """
    me = jax.process_index()
    context = ocp.Context()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    return context


class _Best:
    """Orbax's policy that preserves the checkpoint whose evaluated number is the best so far."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.value = math.nan

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:  # noqa: ARG002
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run, below `workdir/checkpoints`.

    Saving is asynchronous: the state is copied to the host, then written by a thread while training
    goes on. Use it as a context manager; leaving it waits for the last write.

    Args:
      workdir: the work folder.
      config: when to save and what to keep.
      read_only: leave alone what another process may be writing at the moment.
    """

    def __init__(
        self, workdir: PathLike, config: CheckpointConfig, *, read_only: bool = False
    ) -> None:
        if config.on_failure == "continue" and jax.process_count() > 1:
            raise ValueError(
                'checkpoint.on_failure = "continue" is for one process: of several, the others '
                'would wait in the save that one could not write; take "stop", and let '
                "common.supervise start the run again"
            )
        self._config = config
        self._workdir = absolute(workdir)
        self._folder = self._workdir / "checkpoints"
        policies = ocp.training.preservation_policies
        self._best = _Best()
        preserve: list[Any] = [policies.LatestN(config.keep), self._best]
        if config.keep_every is not None:
            preserve.append(policies.EveryNSteps(config.keep_every))
        self._failure: Exception | None = None
        self._writing: ocp.AsyncResponse[bool] | None = None
        self._saved_at = time.monotonic()
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            # The loop decides when to save (`force`); Orbax's own default saves continuously.
            save_decision_policy=ocp.training.save_decision_policies.SpecificStepsPolicy(()),
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        failure = self._failure
        for end in (self._wait, self._orbax.close):
            try:
                end()
            except Exception as last:
                failure = last
        if failure is not None:
            if kind in (None, Preempted):  # a run that was stopped says that it has saved
                raise self._not_written(failure) from failure
            logger.warning("while stopping: %s", self._not_written(failure))

    def due(self, step: int, *, look_at_clock: bool) -> bool:
        """Whether the state of `step` is to be saved; to be called by all processes.

        Args:
          step: the step.
          look_at_clock: whether `every_minutes` counts here; processes then wait for the first.
        """
        if step % self._config.every == 0:
            return True
        if self._config.every_minutes is None or not look_at_clock:
            return False
        elapsed = time.monotonic() - self._saved_at
        return bool(distributed.agree(elapsed >= 60 * self._config.every_minutes))

    def evaluated(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take what was evaluated at a step that has a checkpoint: `keep_best` goes by it."""
        value = numbers.get(self._config.keep_best or "", math.nan)
        if not math.isfinite(value) or step not in {c.step for c in self._orbax.checkpoints}:
            return
        best = self._best
        if best.step is None or (
            value < best.value if self._config.best == "min" else value > best.value
        ):
            best.step, best.value = step, value

    def save(self, step: int, state: Any) -> None:
        """Start saving the state of `step`; a failure of an earlier save is raised here."""
        self._saved_at = time.monotonic()
        tree = {"state": state, "checksums": checksums(state)}
        self._failure = self._start(step, tree)
        if self._failure is None:
            return
        error = self._not_written(self._failure)
        if self._config.on_failure == "stop":
            failure, self._failure = self._failure, None
            raise error from failure
        logger.error("the run goes on: %s", error)
        # It may have been the save before that failed, and this one has not begun.
        self._failure = self._start(step, tree)

    def _start(self, step: int, tree: Any) -> Exception | None:
        """Start saving; return the failure of this save, or of the one before."""
        try:
            self._wait()
            try:
                self._writing = self._orbax.save_async(step, tree, force=True)
            except ocp.training.errors.StepAlreadyExistsError:
                # A torn checkpoint of this very step was passed over: replace it.
                self._writing = self._orbax.save_async(step, tree, force=True, overwrite=True)
        except Exception as failure:  # Orbax raises many types.
            return failure
        return None

    def _wait(self) -> None:
        """Wait for the save that is under way, and raise its failure.

        Orbax's thread of a save, with its descriptors, ends only when its result is taken.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _not_written(self, failure: Exception) -> OSError:
        reason = textwrap.shorten(str(failure) or repr(failure), 600)
        return OSError(
            f"a checkpoint could not be written to {self._folder}: {reason}; make room or mend the "
            "permissions, then the same command resumes from the newest complete checkpoint"
        )

    def adopt_config(self, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Record the config of the run, or refuse it if the checkpoints belong to another.

        Returns:
          `{dotted key: (old, new)}` of what differs from the config of the checkpoints.

        Raises:
          ValueError: with the differing keys, when checkpoints exist whose config differs in more
            than `FREE_KEYS` and `accept_config_change`; when their config cannot be read; or when
            the processes' configs differ.
        """
        distributed.check_same(json.dumps(config), "config")
        path = self._workdir / "config.json"
        differing: dict[str, tuple[Any, Any]] = {}
        if self._orbax.checkpoints:
            try:
                recorded = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError) as error:
                what = "is missing" if isinstance(error, FileNotFoundError) else "is not JSON"
                raise ValueError(
                    f"{self._folder} holds checkpoints, but {path}, which says of what config they "
                    f"are, {what}; put it back (manifest.json holds the config of each start), or "
                    "use another workdir"
                ) from None
            differing = diff(recorded, config)
            changed = {
                key: pair
                for key, pair in differing.items()
                if not key.startswith(FREE_KEYS + self._config.accept_config_change)
            }
            if changed:
                lines = "\n".join(
                    f"  {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()
                )
                raise ValueError(
                    f"{self._workdir} holds checkpoints of another config "
                    f"(checkpoint -> this run):\n{lines}\nuse another workdir, undo the change, or "
                    "name what may differ: --checkpoint.accept_config_change " + " ".join(changed)
                )
        if jax.process_index() == 0:
            with explained(path):
                replace(path, json.dumps(config, indent=2).encode())
        return differing

    def restore(self, abstract_state: Any, *, through: int | None = None) -> Any | None:
        """Return the newest state that can be read, laid out as `abstract_state`.

        Checkpoints that cannot be read are passed over with a warning, by all processes alike.

        Args:
          abstract_state: shapes, types and shardings of the state.
          through: leave out the checkpoints after this step.

        Returns:
          The state, or None where there is no checkpoint at all.

        Raises:
          RuntimeError: if there are checkpoints and none can be read: a run never silently starts
            anew over them.
        """
        steps = sorted((c.step for c in self._orbax.checkpoints), reverse=True)
        if through is not None:
            steps = [step for step in steps if step <= through]
        failures = []
        for step in distributed.agree(steps):
            try:
                state = self._load(step, abstract_state)
                self._tell_supervisor(step)
                return state
            except _Unreadable as error:
                failures.append(f"step {step}: {error}")
                logger.warning("checkpoint of step %d cannot be read, passed over: %s", step, error)
        if failures:
            raise RuntimeError(
                f"none of the checkpoints in {self._folder} can be read; move the folder away to "
                "start anew.\n  " + "\n  ".join(failures)
            )
        self._tell_supervisor(0)
        return None

    def _tell_supervisor(self, step: int) -> None:
        """Say where this run starts: from the same step again, it has made no progress."""
        if path := os.environ.get(START_FILE):
            pathlib.Path(path).write_text(f"{self._folder} {step}")

    def _load(self, step: int, abstract_state: Any) -> Any:
        """Read a checkpoint, and check it; one that any process cannot read is read by none."""
        names = [name for name, _ in named_leaves(abstract_state)]
        sums = jax.ShapeDtypeStruct(
            (len(names),), jnp.uint32, sharding=abstract_state.step.sharding
        )
        reason, found = "", None
        try:
            with reading_alone():
                found = ocp.load(
                    self._folder / str(step), {"state": abstract_state, "checksums": sums}
                )
        except Exception as error:  # Orbax raises many types for a torn or foreign checkpoint.
            reason = textwrap.shorten(str(error) or repr(error), 200)
        if not distributed.all_true(found is not None):
            raise _Unreadable(reason or "another process cannot read it")
        assert found is not None
        wrong = np.asarray(checksums(found["state"])) != np.asarray(found["checksums"])
        if wrong.any():
            torn = ", ".join(name for name, bad in zip(names, wrong, strict=True) if bad)
            raise _Unreadable(f"not what was written: {textwrap.shorten(torn, 150)}")
        return found["state"]
