"""Evaluators."""

import jax
import numpy as np
import pytest

from common import Mean, MeshConfig, MetricsEvaluator, OnePass
from common.mesh import make_mesh


@pytest.mark.parametrize("batch_size", [4, 12])
def test_every_row_counts_once(batch_size):
    """Over several batches and over one, the last of which is filled up."""

    def mean(params, batch):
        return {"mean": Mean((params * batch["x"] * batch["weight"]).sum(), batch["weight"].sum())}

    rows = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512], np.float32)
    data = OnePass({"x": rows}, batch_size=batch_size)
    evaluator = MetricsEvaluator(name="rows", every=1, data=data, metrics=mean)
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    assert evaluator(np.float32(2), mesh)["mean"] == pytest.approx(2 * rows.mean(), rel=1e-6)
