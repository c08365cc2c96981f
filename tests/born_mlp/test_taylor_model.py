"""The Taylor model as a polynomial: against the network, itself, sympy and its files."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from born_mlp import taylor, taylor_model
from born_mlp.mlp import MLP, Params
from born_mlp.taylor_model import TaylorModel


def setting(outputs: int | None = None) -> tuple[MLP, Params, jax.Array]:
    mlp = MLP(in_features=3, hidden=(4, 4), out_features=outputs, activation="tanh")
    params = mlp.init(jax.random.key(0), dtype=jnp.float64)
    center = jnp.array([0.3, -0.2, 0.5])
    return mlp, params, center


@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_error_is_of_the_next_order_and_the_remainder_estimates_it(
    outputs: int | None, order: int
) -> None:
    mlp, params, center = setting(outputs)
    model = taylor_model.expand(mlp, params, center, order)
    direction = jnp.array([[1.0, 0.7, -0.4], [-0.6, 0.2, 1.0]])
    errors = []
    for step in (1e-2, 5e-3):
        x = center + step * direction
        error = mlp.apply(params, x) - model(x)
        assert error.shape == mlp.apply(params, x).shape
        np.testing.assert_allclose(model.remainder(mlp, params, x), error, rtol=0.1)
        errors.append(error)
    np.testing.assert_allclose(errors[0] / errors[1], 2.0 ** (order + 1), rtol=0.1)


@pytest.mark.parametrize("outputs", [None, 2])
def test_shift_and_differentiate_are_exact_for_the_polynomial(outputs: int | None) -> None:
    mlp, params, center = setting(outputs)
    model = taylor_model.expand(mlp, params, center, 4)
    x = jnp.array([[0.1, 0.9, -0.5], [1.0, 0.0, 0.2]])
    shifted = model.shift(jnp.array([-0.4, 0.1, 0.8]))
    np.testing.assert_allclose(shifted(x), model(x), rtol=1e-12)
    np.testing.assert_allclose(shifted.shift(center)(x), model(x), rtol=1e-12)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(model)))(x)
    for variable in range(3):
        slope = model.differentiate(variable)
        assert slope.order == 3
        np.testing.assert_allclose(slope(x), jacobian[..., variable], rtol=1e-12)


def test_truncation_drops_the_highest_terms() -> None:
    mlp, params, center = setting()
    model = taylor_model.expand(mlp, params, center, 3)
    low = taylor_model.expand(mlp, params, center, 1)
    x = center + 0.5
    np.testing.assert_allclose(model.truncate(1)(x), low(x))
    assert model.truncate(1).order == 1


def test_radius_is_where_the_error_reaches_the_tolerance() -> None:
    mlp, params, center = setting()
    model = taylor_model.expand(mlp, params, center, 3)
    direction = jnp.array([2.0, -1.0, 0.5])
    tolerance = 1e-6
    radius = model.radius(mlp, params, direction, tolerance)
    x = center + radius * direction / jnp.linalg.norm(direction)
    error = float(jnp.abs(mlp.apply(params, x) - model(x)))
    assert 0.3 * tolerance < error < 2 * tolerance


def test_model_can_be_batched_and_compiled() -> None:
    mlp, params, center = setting()
    centers = jnp.stack([center, -center])
    models = TaylorModel(center=centers, derivatives=taylor.derivatives(mlp, params, centers, 2))
    values = jax.jit(jax.vmap(lambda model: model(model.center)))(models)
    np.testing.assert_allclose(values, mlp.apply(params, centers), rtol=1e-14)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
@pytest.mark.parametrize("outputs", [None, 2])
def test_files_keep_every_bit(suffix: str, outputs: int | None, tmp_path: pathlib.Path) -> None:
    mlp, params, center = setting(outputs)
    model = taylor_model.expand(mlp, params, center, 3)
    path = tmp_path / f"model{suffix}"
    model.save(path)
    loaded = TaylorModel.load(path)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(loaded), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_sympy_export() -> None:
    mlp, params, center = setting()
    model = taylor_model.expand(mlp, params, center, 2)
    point = [0.7, 0.1, -0.3]
    expression = model.to_sympy()
    symbols = sorted(expression.free_symbols, key=str)
    value = float(expression.subs(dict(zip(symbols, point, strict=True))))
    np.testing.assert_allclose(value, model(jnp.array(point)), rtol=1e-13)
    mlp, params, center = setting(2)
    assert taylor_model.expand(mlp, params, center, 1).to_sympy().shape == (2, 1)


def test_bad_input_is_refused(tmp_path: pathlib.Path) -> None:
    mlp, params, center = setting()
    model = taylor_model.expand(mlp, params, center, 1)
    with pytest.raises(ValueError, match=r"3 inputs, got an array of shape \(2,\)"):
        model(jnp.zeros(2))
    with pytest.raises(ValueError, match="no variable 3"):
        model.differentiate(3)
    with pytest.raises(ValueError, match="order 0"):
        model.truncate(0).differentiate(0)
    with pytest.raises(ValueError, match="cannot truncate"):
        model.truncate(2)
    with pytest.raises(ValueError, match="positive"):
        model.radius(mlp, params, center, 0.0)
    with pytest.raises(ValueError, match=r"\.npz or \.json"):
        model.save(tmp_path / "model.pkl")
    with pytest.raises(ValueError, match=r"\.npz or \.json"):
        TaylorModel.load(tmp_path / "model.pkl")
