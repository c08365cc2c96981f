"""Towers of derivatives against arbitrary-precision arithmetic, in the tails and at zero."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from born_mlp import activations

POINTS = np.array([-12.0, -6.0, -3.3, -1.2, -0.3, 0.0, 0.4, 1.7, 4.1, 9.0, 12.0])

REFERENCE = {
    "tanh": mpmath.tanh,
    "gelu": lambda z: z * mpmath.ncdf(z),
    "gelu_tanh": lambda z: (
        z / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf(0.044715) * z**3)))
    ),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "sin": mpmath.sin,
    "exp": mpmath.exp,
}


@pytest.mark.parametrize("name", REFERENCE)
def test_tower_is_accurate_relative_to_each_value(name: str) -> None:
    order = 5
    tower = activations.resolve(name).derivatives(jnp.asarray(POINTS), order)
    with mpmath.workdps(60):
        series = [mpmath.taylor(REFERENCE[name], mpmath.mpf(z), order) for z in POINTS]
        exact = np.array(
            [[float(c * mpmath.factorial(k)) for k, c in enumerate(row)] for row in series]
        ).T
    # The tails of GELU lose the digits that exp(-z^2/2) loses in rounding z^2.
    np.testing.assert_allclose(np.array(tower), exact, rtol=3e-14, atol=1e-40)


@pytest.mark.parametrize("name", sorted(set(activations.ACTIVATIONS) - {"relu"}))
def test_function_is_the_first_entry_and_single_precision_is_kept(name: str) -> None:
    phi = activations.resolve(name)
    z = jnp.linspace(-5, 5, 41, dtype=jnp.float32)
    tower = phi.derivatives(z, 4)
    exact = phi.derivatives(z.astype(jnp.float64), 4)
    assert {entry.dtype for entry in tower} == {jnp.dtype("float32")}
    np.testing.assert_allclose(tower[0], phi.function(z), rtol=1e-5, atol=1e-6)
    for single, double in zip(tower, exact, strict=True):
        np.testing.assert_allclose(single, double, atol=1e-5 * float(jnp.abs(double).max()))


def test_derivative_of_a_tower_entry_is_the_next_entry_also_at_zero() -> None:
    phi = activations.resolve("tanh")
    third = jax.vmap(jax.grad(jax.grad(lambda z: phi.derivatives(z, 2)[2])))
    z = jnp.array([-0.7, 0.0, 2.0])
    np.testing.assert_allclose(third(z), phi.derivatives(z, 4)[4], atol=1e-15)


def test_polynomial() -> None:
    phi = activations.polynomial((1.0, 2.0, 3.0))
    z = jnp.array([-1.0, 0.5])
    value, slope, curvature, zero = phi.derivatives(z, 3)
    np.testing.assert_allclose(value, 1 + 2 * z + 3 * z**2)
    np.testing.assert_allclose(phi.function(z), value)
    np.testing.assert_allclose(slope, 2 + 6 * z)
    np.testing.assert_allclose(curvature, [6, 6])
    np.testing.assert_array_equal(zero, [0, 0])
    with pytest.raises(ValueError, match="at least one coefficient"):
        activations.polynomial(())


def _lorentzian(z: jax.Array) -> jax.Array:
    return 1 / (1 + z**2)


def _own_mish(z: jax.Array) -> jax.Array:
    return z * jnp.tanh(jax.nn.softplus(z))


def _nested(function: object, z: float, order: int) -> list[float]:
    values = []
    for _ in range(order + 1):
        values.append(float(function(z)))
        function = jax.grad(function)
    return values


def test_user_function_by_taylor_mode() -> None:
    phi = activations.resolve(_lorentzian)
    assert phi.name == "_lorentzian"
    np.testing.assert_allclose(
        phi.derivatives(jnp.array(0.3), 5), _nested(_lorentzian, 0.3, 5), rtol=1e-12
    )


def test_user_function_that_jet_cannot_differentiate() -> None:
    with pytest.warns(UserWarning, match="nested forward mode"):
        phi = activations.resolve(_own_mish)
    np.testing.assert_allclose(
        phi.derivatives(jnp.array(0.3), 4), _nested(_own_mish, 0.3, 4), rtol=1e-12
    )


def test_functions_of_jax_get_their_closed_tower() -> None:
    assert activations.resolve(jnp.tanh) is activations.ACTIVATIONS["tanh"]
    assert activations.resolve(jax.nn.gelu) is activations.ACTIVATIONS["gelu_tanh"]


@pytest.mark.parametrize("phi", ["relu", jax.nn.elu])
def test_not_smooth_is_refused_from_order_two(phi: object) -> None:
    z = jnp.array([-1.0, 2.0])
    slope = activations.resolve(phi).derivatives(z, 1)[1]
    np.testing.assert_allclose(slope[1], 1)
    with pytest.raises(ValueError, match=r"no derivative of order 2.*smooth"):
        activations.resolve(phi).derivatives(z, 2)


def test_bad_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'gelu'"):
        activations.resolve("gelo")
    with pytest.raises(TypeError, match="got int"):
        activations.resolve(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not elementwise"):
        activations.resolve(jnp.sum)
    with pytest.raises(ValueError, match="at least 0"):
        activations.resolve("tanh").derivatives(jnp.zeros(1), -1)
