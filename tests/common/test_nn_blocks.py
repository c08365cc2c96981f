"""The layers that vision and text models share: LayerNorm, MLP, stacked blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from common.nn.layers import LayerNorm, Linear
from common.nn.mlp import MLP
from common.nn.stack import make_stack, run_stack


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_layer_norm_keeps_type_and_computes_in_float32():
    norm = LayerNorm(256, eps=1e-6)
    norm.scale[...] = jnp.asarray(1 + normal(0, 256) / 10)
    norm.bias[...] = jnp.asarray(normal(1, 256))
    x = 300 * normal(2, 5, 256) + 100
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    expected = expected * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
    # float16 squares of 300 overflow; the statistics must not see them.
    half = norm(jnp.asarray(x, jnp.float16))
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half, expected, rtol=1e-2, atol=1e-2)


GELU = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x * scipy.special.expit(1.702 * x),
}


@pytest.mark.parametrize("activation", GELU)
@pytest.mark.parametrize("gated", [False, True])
def test_mlp_is_its_formula(activation, gated):
    mlp = MLP(
        6,
        10,
        activation=activation,
        gated=gated,
        bias=True,
        stddev=1.0,
        out_stddev=1.0,
        rngs=nnx.Rngs(0),
    )
    for seed, linear in enumerate((mlp.wi, mlp.gate, mlp.wo)):
        if linear is not None:
            linear.bias[...] = jnp.asarray(normal(seed, *linear.bias.shape))
    x = normal(9, 2, 3, 6)

    def times(linear, x):
        return x @ np.asarray(linear.kernel[...], np.float64) + np.asarray(linear.bias[...])

    hidden = times(mlp.wi, x)
    f = GELU[activation]
    hidden = f(times(mlp.gate, x)) * hidden if gated else f(hidden)
    np.testing.assert_allclose(mlp(jnp.asarray(x)), times(mlp.wo, hidden), rtol=1e-4, atol=1e-5)


def test_mlp_drops_hidden_entries():
    mlp = MLP(
        2,
        4,
        activation="relu",
        stddev=1.0,
        out_stddev=1.0,
        dropout_rate=0.5,
        rngs=nnx.Rngs(0),
    )
    x = jnp.asarray(normal(0, 1, 3, 2))
    keep = jnp.array([True, False, True, False]).reshape(1, 1, 4)
    hidden = np.maximum(x @ np.asarray(mlp.wi.kernel[...]), 0)
    expected = (hidden * keep * 2) @ np.asarray(mlp.wo.kernel[...])
    np.testing.assert_allclose(mlp(x, keep), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_stack_runs_its_blocks_in_order(scan, remat):
    """Each with its own weights and its own part of what is given, forward and backward."""
    blocks = make_stack(lambda rngs: Linear((3,), (3,), stddev=0.5, rngs=rngs), 4, rngs=nnx.Rngs(0))
    kernels = np.asarray(blocks.kernel[...])
    assert kernels.shape == (4, 3, 3)
    assert not np.allclose(kernels[0], kernels[1])
    own, x = jnp.asarray(normal(1, 4, 3)), jnp.asarray(normal(2, 2, 5, 3))
    graph, state = nnx.split(blocks)

    @jax.jit
    @jax.value_and_grad
    def one_by_one(kernels):
        y = x
        for kernel, add in zip(kernels, own, strict=True):
            y = jnp.tanh(y @ kernel) + add
        return jnp.sum(y * x)

    def loss(state):
        merged = nnx.merge(graph, state)
        y = run_stack(
            merged,
            lambda block, x, own: jnp.tanh(block(x)) + own,
            x,
            own,
            layers=4,
            scan=scan,
            remat=remat,
        )
        return jnp.sum(y * x)

    value, gradient = jax.jit(jax.value_and_grad(loss))(state)
    expected, expected_gradient = one_by_one(kernels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(
        jax.tree.leaves(gradient)[0], expected_gradient, rtol=1e-4, atol=1e-5
    )
