"""What two runs have left: final states and logs."""

import pathlib
from typing import Any

import jax
import numpy as np

from common import MeshConfig
from common.checkpoint import Checkpoints
from common.setup import prepare
from tests.common.test_resume import lines
from tests.common.toy import Toy, experiment
from tests.mp import script


def final_state(folder: pathlib.Path) -> Any:
    """The newest checkpoint, read by this process."""
    task = Toy(rules=script.RULES, dropout=0.2)
    config = experiment(task, mesh=MeshConfig(fsdp=2))
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        state = jax.device_get(checkpoints.restore(prepare(config).abstract_state))
    assert int(state.step) == script.STEPS
    return state


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
    """Parameters, optimizer, random streams, position in the data and logs: the same bits."""
    jax.tree.map(np.testing.assert_array_equal, final_state(a), final_state(b))
    assert lines(a) == lines(b)


def assert_close(a: pathlib.Path, b: pathlib.Path) -> None:
    """The same up to the order of sums."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5),
        final_state(a),
        final_state(b),
    )
    assert [sorted(row) for row in lines(a)] == [sorted(row) for row in lines(b)]
    for x, y in zip(lines(a), lines(b), strict=True):
        np.testing.assert_allclose([x[k] for k in sorted(x)], [y[k] for k in sorted(y)], rtol=2e-4)
