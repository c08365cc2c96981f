"""The count of a step's operations against products counted by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from common.flops import count_flops, without_remat

X, W = jnp.ones((8, 16)), jnp.ones((16, 16))
PRODUCT = 2 * 8 * 16 * 16


def layer(x, w):
    return jnp.tanh(x @ w)


def layers(w, x, wrap=lambda f: f):
    for _ in range(3):
        x = wrap(layer)(x, w)
    return x.sum()


def scanned(w, x, wrap=lambda f: f):
    return jax.lax.scan(lambda x, _: (wrap(layer)(x, w), None), x, length=3)[0].sum()


@pytest.mark.parametrize("run", [layers, scanned])
def test_layers_in_a_row_and_in_a_scan(run):
    assert count_flops(run, W, X) == 3 * PRODUCT
    # Three for the weights; the first layer's input needs no gradient where no scan carries it.
    inputs = 2 if run is layers else 3
    assert count_flops(jax.grad(run), W, X) == (3 + 3 + inputs) * PRODUCT


@pytest.mark.parametrize("run", [layers, scanned])
def test_what_is_recomputed_counts_once(run):
    again = functools.partial(run, wrap=jax.checkpoint)
    plain, recomputing = (count_flops(jax.grad(f), W, X) for f in (run, again))
    assert recomputing > plain
    saving = functools.partial(without_remat, again)
    assert count_flops(jax.grad(saving), W, X) == plain
    assert jnp.allclose(jax.grad(saving)(W, X), jax.grad(run)(W, X))


@jax.custom_vjp
def own(x, w):
    return x @ w


own.defvjp(lambda x, w: (x @ w, (x, w)), lambda xw, d: (d @ xw[1].T, xw[0].T @ d))


def test_programs_within_programs():
    def one(x, w):
        return x @ w

    def two(x, w):
        return x @ w @ w

    assert count_flops(jax.jit(two), X, W) == 2 * PRODUCT
    assert count_flops(lambda x, w: jax.lax.cond(x[0, 0] > 0, one, two, x, w), X, W) == 2 * PRODUCT
    assert count_flops(own, X, W) == PRODUCT
    assert count_flops(jax.grad(lambda x, w: own(x, w).sum(), (0, 1)), X, W) == 3 * PRODUCT
    assert count_flops(jax.vmap(one, (0, None)), jnp.ones((5, 8, 16)), W) == 5 * PRODUCT


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_forward_and_backward(groups):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 2, 4 // groups, 6))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        ).sum()  # fmt: skip

    forward = 2 * (2 * 4 * 4 * 6) * (2 * 2 * 4 // groups)
    assert count_flops(convolve, x, kernel) == forward
    assert count_flops(jax.grad(convolve, 1), x, kernel) == pytest.approx(2 * forward)
    assert count_flops(jax.grad(convolve, (0, 1)), x, kernel) == pytest.approx(3 * forward)
