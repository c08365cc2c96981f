"""Evaluators: the loop over held-out rows, and what is refused before training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import Mean, MeshConfig, MetricsEvaluator, OnePass
from common.evaluate import map_rows
from common.mesh import make_mesh
from common.setup import prepare
from common.show import describe
from tests.common.toy import Toy, experiment, rows


class Watched(OnePass):
    """Rows that keep a list of those that were asked for."""

    def __init__(self, arrays, **options):
        super().__init__(arrays, **options)
        self.asked = []

    def take(self, rows):
        self.asked += rows.tolist()
        return super().take(rows)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [4, 12])
def test_every_row_counts_once(batch_size, devices):
    """Over several batches and over one, the last of which is filled up."""

    def mean(params, batch):
        return {"mean": Mean((params * batch["x"] * batch["weight"]).sum(), batch["weight"].sum())}

    held_out = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512], np.float32)
    data = Watched({"x": held_out}, batch_size=batch_size)
    evaluator = MetricsEvaluator(name="rows", every=1, data=data, metrics=mean)
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    assert evaluator(np.float32(2), mesh)["mean"] == 2 * held_out.mean()
    assert data.asked[: len(held_out)] == list(range(10))
    assert set(data.asked[len(held_out) :]) <= {0}


@pytest.mark.parametrize("fsdp", [1, 4])
def test_outputs_of_rows_come_in_their_order(fsdp):
    """Three rows a batch, on eight devices: the filling must not show."""
    x = np.arange(22, dtype=np.float32).reshape(11, 2)
    step = jax.jit(lambda params, batch: {"sum": batch["x"] @ params, "own": batch["x"][:, 0]})
    mesh = make_mesh(MeshConfig(fsdp=fsdp))
    params = np.array([2, 1], np.float32)
    found = map_rows(step, params, OnePass({"x": x}, batch_size=3), mesh)
    np.testing.assert_array_equal(found["sum"], x @ params)
    np.testing.assert_array_equal(found["own"], x[:, 0])


class Empty(OnePass):
    """A data set that turns out to have no rows."""

    def __len__(self):
        return 0


def test_without_rows_there_are_no_numbers():
    data, mesh = Empty({"x": np.zeros(1)}, batch_size=3), make_mesh(MeshConfig())
    evaluator = MetricsEvaluator(name="none", every=1, data=data, metrics=lambda *_: {})
    assert evaluator(None, mesh) == {}
    with pytest.raises(ValueError, match="no rows to evaluate on"):
        map_rows(lambda *_: None, None, data, mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated(Toy):
    """A toy with evaluators of one's own, whose data must not be read before training."""

    evaluated: tuple = ()

    def evaluators(self):
        class Unread(OnePass):
            def take(self, rows):
                pytest.fail("held-out rows were read")

        return [
            MetricsEvaluator(
                name=name, every=4, data=Unread(arrays, batch_size=4), metrics=self.metrics
            )
            for name, arrays in self.evaluated
        ]


@pytest.mark.parametrize("start", [prepare, describe])
def test_evaluators_are_traced_before_training(start):
    good = rows(4, 0)
    start(experiment(Evaluated(evaluated=(("a", good), ("b", good)))))
    wide = good | {"x": np.zeros((4, 9), np.float32)}
    with pytest.raises(TypeError, match=r"dot_general requires contracting dim") as error:
        start(experiment(Evaluated(evaluated=(("a", good), ("b", wide)))))
    assert "This was found in evaluator 'b', before training." in error.value.__notes__


def test_an_evaluator_returns_metrics():
    mesh, data = make_mesh(MeshConfig()), OnePass(rows(4, 0), batch_size=4)
    means = MetricsEvaluator(
        name="raw", every=1, data=data, metrics=lambda _, batch: {"x": jnp.mean(batch["x"])}
    )
    with pytest.raises(TypeError, match=r"evaluator 'raw' must return metrics, .* entry 'x' is"):
        means.check({}, mesh)
