"""The Taylor engine and the trainer on a GPU: no TensorFloat-32 in the derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from born_mlp import taylor
from born_mlp.fit import MUON, ResidualFit
from born_mlp.mlp import MLP
from born_mlp.physics.samplers import SignedRays
from born_mlp.samples import ScatteringSamples
from common import Experiment, LogConfig, StepConfig, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU: make gpu"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_equal_those_of_the_cpu(order, dtype, tolerance):
    mlp = MLP(in_features=16, hidden=(64, 64))
    params = mlp.init(jax.random.key(0), dtype=jnp.dtype(dtype))
    x = jax.random.normal(jax.random.key(1), (50, 16), jnp.dtype(dtype))
    ours = np.asarray(taylor.derivative(mlp, params, x, order))
    with jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda p: jnp.asarray(np.asarray(p), jnp.float64), params)
        exact = taylor.derivative(mlp, wide, jnp.asarray(np.asarray(x), jnp.float64), order)
    assert np.linalg.norm(ours - exact) <= tolerance * np.linalg.norm(exact)


def test_an_ensemble_trains():
    source = ScatteringSamples(sampler=SignedRays(amplitude=0.2), count=4096)
    result = train(
        Experiment(
            task=ResidualFit(source=source, eval_every=1000),
            steps=1000,
            optim=MUON,
            step=StepConfig(per_call=100),
            log=LogConfig(every=500, progress=False),
        )
    )
    assert result.metrics["coefficients/order_1/0"] < 0.02
