"""Kernel regression in a learned metric: its gradient, and what the metric is good for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.teacher.kernel import fit_kernel

N, P = 60, 6


@pytest.fixture(scope="module")
def world():
    """Objects, of whose features but two tell something of the embedding, and not linearly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * N, P))
    return x, np.stack([np.sin(2 * x[:, 0]), x[:, 1] ** 2, np.ones(2 * N)], 1)


def test_fits_what_it_has_seen(world):
    x, y = world
    found = fit_kernel(x, y, ridge=1e-9)
    np.testing.assert_allclose(found(x), y, atol=1e-4)
    np.testing.assert_allclose(found(x + 1e4), np.broadcast_to(y.mean(0), y.shape), atol=1e-6)


def test_steepness_is_the_mean_square_of_the_gradient(world):
    x, y = world
    found = fit_kernel(x[:N], y[:N], ridge=0.1, rounds=1)
    squares = []
    for a, at in enumerate(found.objects):
        others = np.delete(found.objects, a, 0), np.delete(found.dual, a, 0)

        def f(z, objects=others[0], dual=others[1]):
            return jnp.exp(-jnp.linalg.norm(z - objects, axis=1) / found.scale) @ dual

        gradient = jax.jacobian(f)(jnp.asarray(at))
        squares.append(gradient.T @ gradient)
    np.testing.assert_allclose(found.steepness(), np.mean(squares, 0), rtol=1e-3, atol=1e-4)


def test_the_metric_leaves_out_what_tells_nothing(world):
    x, y = world
    errors = []
    for rounds in (0, 1, 2):
        found = fit_kernel(x[:N], y[:N], ridge=0.01, rounds=rounds)
        errors.append(np.mean((found(x[N:]) - y[N:]) ** 2))
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < errors[1]
    assert np.diagonal(found.root)[:2].min() > 1.5 * np.diagonal(found.root)[2:].max()


def test_the_scale_of_features_does_not_matter(world):
    x, y = world
    a, b = (fit_kernel(s * x[:N], y[:N], ridge=0.1)(s * x[N:]) for s in (1, 100))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_objects_of_equal_features(world):
    x, y = (np.concatenate([values[:N], values[:3]]) for values in world)
    found = fit_kernel(x, y, ridge=0.1)
    assert np.abs(found.steepness()).max() < 1e3
    np.testing.assert_allclose(found(x[:3]), found(x[N:]), rtol=1e-5)


def test_bad_arguments(world):
    x, y = world
    with pytest.raises(ValueError, match="120 rows of features for 60 of the embedding"):
        fit_kernel(x, y[:N], ridge=0.1)
    with pytest.raises(ValueError, match="ridge must be positive, got 0"):
        fit_kernel(x, y, ridge=0)
