"""The configuration of one training run."""

import dataclasses
from typing import Generic, TypeVar

import numpy as np

from common.checkpoint import CheckpointConfig
from common.mesh import MeshConfig
from common.optim import OptimConfig
from common.perf import ProfileConfig
from common.step import StepConfig
from common.task import Task

TaskT = TypeVar("TaskT", bound=Task)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while a run goes on."""

    every: int = 100
    """Cadence in steps of the training metrics, each the mean over the steps since the last."""
    tensorboard: bool = True
    """Write TensorBoard event files beside the JSONL log."""
    wandb_project: str | None = None
    """Weights & Biases project to log to (needs the extra `wandb`)."""
    progress: bool = True
    """Show a progress bar."""
    profile: ProfileConfig = ProfileConfig()
    """Steps to trace with the JAX profiler."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Generic[TaskT]):
    """One training run."""

    task: TaskT
    """The task: model, loss, data and evaluators."""
    steps: int
    """Optimizer steps of the whole run."""
    batch_size: int = 256
    """Examples per optimizer step, over all hosts and devices."""
    seed: int = 0
    """Seed of the parameters, the random streams and the data order."""
    workdir: str | None = None
    """Folder of logs and checkpoints; None writes nothing and keeps no checkpoint."""
    start_from: str | None = None
    """Work folder of another run, or one of its checkpoints (`RUN/checkpoints/500`), whose
    parameters this one starts from: the averaged ones where they are kept. Read at step 0, and not
    when this run resumes."""
    start_from_parameters: tuple[str, ...] = (".*",)
    """Regular expressions of the whole names of the parameters to take over; the others keep their
    initial or pretrained values."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    step: StepConfig = StepConfig()
    """How a step is computed."""
    mesh: MeshConfig = MeshConfig()
    """The device mesh."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved, and how many are kept."""
    log: LogConfig = LogConfig()
    """What is written."""
    hang_timeout: float | None = None
    """Seconds without a step boundary after which the process writes the stacks of all its threads
    to standard error and ends; longer than compilation and the longest evaluation take. None waits
    for ever."""

    def __post_init__(self) -> None:
        # The state counts steps in 32 bits, and JAX makes a key of 32 bits.
        for name, least, bits in (("steps", 1, 31), ("batch_size", 1, 31), ("seed", 0, 32)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or not least <= value < 2**bits:
                raise ValueError(
                    f"{name} must be at least {least} and under 2**{bits}, and a whole number; "
                    f"got {value!r}"
                )
        cadences = {
            "steps": self.steps,
            "log.every": self.log.every,
            "checkpoint.every": self.checkpoint.every,
        }
        per_call = self.step.per_call
        for name, value in cadences.items():
            if value < 1 or value % per_call:
                raise ValueError(
                    f"{name} = {value} must be a positive multiple of step.per_call = {per_call}: "
                    "a compiled call is not interrupted"
                )
