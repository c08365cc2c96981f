"""Checkpoints of the training state: a thin face over Orbax v1."""

import dataclasses
import json
import logging
import pathlib
import textwrap
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

from common.config import diff
from common.files import absolute

logger = logging.getLogger(__name__)

FREE_KEYS = ("workdir", "log.", "checkpoint.", "mesh.")
"""Config keys that may change between a checkpoint and the run that resumes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved, and how many checkpoints are kept."""

    every: int = 1000
    """Cadence in steps; the end of a run, and a request to stop, save too."""
    keep: int = 2
    """Newest checkpoints to keep; more than one, so that a torn one can be passed over."""
    keep_every: int | None = None
    """Steps whose multiples are kept for good; None keeps no others."""
    accept_config_change: bool = False
    """Resume although the config differs from the checkpoint's."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1, got {self.keep}")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(f"checkpoint.keep_every must be positive, got {self.keep_every}")


class Checkpoints:
    """The checkpoints of one run, below `workdir/checkpoints`.

    Saving is asynchronous: the state is copied to the host, then written by a thread while training
    goes on. Use it as a context manager; leaving it waits for the last write.
    """

    def __init__(self, workdir: str | pathlib.Path, config: CheckpointConfig) -> None:
        self._config = config
        self._workdir = absolute(workdir)
        self._folder = self._workdir / "checkpoints"
        policies = ocp.training.preservation_policies
        preserve: list[Any] = [policies.LatestN(config.keep)]
        if config.keep_every is not None:
            preserve.append(policies.EveryNSteps(config.keep_every))
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            # The loop decides when to save (`force`); Orbax's own default saves continuously.
            save_decision_policy=ocp.training.save_decision_policies.SpecificStepsPolicy(()),
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self._orbax.close()
        except Exception as failure:
            if kind is None:
                raise self._not_written(failure) from failure
            logger.warning("while stopping: %s", self._not_written(failure))

    def save(self, step: int, state: Any) -> None:
        """Start saving the state of `step`; a failure of an earlier save is raised here."""
        try:
            self._orbax.save_async(step, state, force=True)
        except ocp.training.errors.StepAlreadyExistsError:
            # A torn checkpoint of this very step was passed over: replace it.
            self._orbax.save_async(step, state, force=True, overwrite=True)
        except Exception as failure:  # Orbax raises many types, some of an earlier save.
            raise self._not_written(failure) from failure

    def _not_written(self, failure: Exception) -> OSError:
        reason = textwrap.shorten(str(failure) or repr(failure), 300)
        return OSError(
            f"a checkpoint could not be written to {self._folder}: {reason}; make room or mend the "
            "permissions, then the same command resumes from the newest complete checkpoint"
        )

    def adopt_config(self, config: dict[str, Any]) -> None:
        """Record the config of the run, or refuse it if the checkpoints belong to another.

        Raises:
          ValueError: with the differing keys, when checkpoints exist whose config differs in more
            than `FREE_KEYS` and `accept_config_change` is off.
        """
        path = self._workdir / "config.json"
        if self._orbax.checkpoints and path.exists():
            changed = {
                key: pair
                for key, pair in diff(json.loads(path.read_text()), config).items()
                if not key.startswith(FREE_KEYS)
            }
            if changed and not self._config.accept_config_change:
                lines = "\n".join(
                    f"  {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()
                )
                raise ValueError(
                    f"{self._workdir} holds checkpoints of another config "
                    f"(checkpoint -> this run):\n{lines}\nuse another workdir, undo the change, or "
                    "set checkpoint.accept_config_change"
                )
        if jax.process_index() == 0:
            draft = path.with_suffix(".json.tmp")
            draft.write_text(json.dumps(config, indent=2))
            draft.replace(path)

    def restore(self, abstract_state: Any) -> Any | None:
        """Return the newest state that can be read, laid out as `abstract_state`.

        Checkpoints that cannot be read are passed over with a warning.

        Returns:
          The state, or None where there is no checkpoint at all.

        Raises:
          RuntimeError: if there are checkpoints and none can be read: a run never silently starts
            anew over them.
        """
        steps = sorted((c.step for c in self._orbax.checkpoints), reverse=True)
        failures = []
        for step in steps:
            try:
                return self._orbax.load(step, abstract_state)
            except Exception as error:  # Orbax raises many types for a torn or foreign checkpoint.
                reason = textwrap.shorten(str(error) or repr(error), 200)
                failures.append(f"step {step}: {reason}")
                logger.warning(
                    "checkpoint of step %d cannot be read, passed over: %s", step, reason
                )
        if failures:
            raise RuntimeError(
                f"none of the checkpoints in {self._folder} can be read; move the folder away to "
                "start anew.\n  " + "\n  ".join(failures)
            )
        return None
