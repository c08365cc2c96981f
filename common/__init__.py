"""The shared core: jit-compiled, resumable training on CPU, GPU or TPU."""

from common.checkpoint import CheckpointConfig
from common.data import ArrayData, Data, OnePass
from common.evaluate import Evaluator, MetricsEvaluator
from common.experiment import Experiment, LogConfig
from common.loop import Result, train
from common.mesh import MeshConfig
from common.metrics import Mean, Metric
from common.optim import OptimConfig, ParamGroup
from common.perf import ProfileConfig
from common.preempt import Preempted
from common.rng import Rngs
from common.step import StepConfig
from common.task import Task
from common.xla import set_cpu_flags

set_cpu_flags()

__all__ = [
    "ArrayData",
    "CheckpointConfig",
    "Data",
    "Evaluator",
    "Experiment",
    "LogConfig",
    "Mean",
    "MeshConfig",
    "Metric",
    "MetricsEvaluator",
    "OnePass",
    "OptimConfig",
    "ParamGroup",
    "Preempted",
    "ProfileConfig",
    "Result",
    "Rngs",
    "StepConfig",
    "Task",
    "train",
]
