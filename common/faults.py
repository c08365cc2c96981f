"""Steps whose loss or gradient is not finite: what is written down, and going back."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from common.data import Data
from common.experiment import Experiment
from common.files import AppendingFile
from common.optim import trainable
from common.state import Fault, TrainState
from common.tree import named_leaves, split


class RollBack(Exception):
    """The run goes back to a checkpoint before a step that was not finite, and past its data."""

    def __init__(self, what: str, *, step: int, batch: int) -> None:
        super().__init__(what)
        self.step, self.batch = step, batch


def pass_over(state: TrainState, fault: RollBack) -> TrainState:
    """Let the next step of an earlier state take the batch after the one that was not finite."""
    count = np.int32(fault.batch + 1 - int(state.step))
    return dataclasses.replace(state, passed_over=jax.device_put(count, state.passed_over.sharding))


def describe(fault: Fault, experiment: Experiment[Any], params: Any, data: Data) -> dict[str, Any]:
    """Say what was not finite, in JSON's types.

    Args:
      fault: the fault, on the host.
      experiment: the config.
      params: all parameters, for their names.
      data: the training data.

    Returns:
      "step" and "batch", the number of its batch; whether the "loss" was finite; the trained
      "parameters"
      whose gradient was not, and the "groups" of `optim.groups` that they are in; "rows", the
      numbers of the batch's examples where the data know them, and "inputs", the places in the
      batch of those whose inputs are not finite themselves.
    """
    step, number = int(fault.step), int(fault.batch)
    trained, _ = split(params, trainable(experiment.optim, params))
    names = [name for name, _ in named_leaves(trained)]
    torn = [name for name, bad in zip(names, np.asarray(fault.gradient), strict=True) if bad]
    patterns = [group.pattern for group in experiment.optim.groups]
    groups = {next(p for p in patterns if re.fullmatch(p, name)) for name in torn if patterns}
    rows = data.rows(number)
    return {
        "step": step,
        "batch": number,
        "loss": "not finite" if fault.loss else "finite",
        "parameters": torn,
        "groups": sorted(groups),
        "rows": None if rows is None else [int(row) for row in rows],
        "inputs": _not_finite(data.batch(number)),
    }


def _not_finite(batch: Mapping[str, np.ndarray]) -> list[int]:
    bad: set[int] = set()
    for leaf in jax.tree.leaves(batch):
        if np.issubdtype(leaf.dtype, np.floating):
            finite = np.isfinite(leaf).reshape(len(leaf), -1).all(1)
            bad |= set(np.flatnonzero(~finite).tolist())
    return sorted(bad)


def record(workdir: str | None, fault: Mapping[str, Any]) -> None:
    """Append a fault to `nonfinite.jsonl` in the work folder; the first process writes."""
    if workdir is not None and jax.process_index() == 0:
        with contextlib.closing(AppendingFile(epath.Path(workdir) / "nonfinite.jsonl")) as file:
            file.append((json.dumps(fault) + "\n").encode())
