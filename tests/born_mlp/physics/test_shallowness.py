import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from born_mlp.physics import born, scattering, shallowness

potentials = arrays(np.float64, 6, elements=st.floats(-30, 30))
some_time = settings(max_examples=40, deadline=None)
solve = jax.jit(scattering.solve)


def test_square_well():
    np.testing.assert_allclose(
        shallowness.shallowness(jnp.full((2, 8), 1.0)), 4 / np.pi**2, rtol=1e-14
    )


@some_time
@given(potentials)
def test_one_over_lambda_is_the_first_zero_of_the_slope(potential):
    value = float(shallowness.shallowness(potential))
    if potential.max() < 1e-3:
        return
    couplings = np.append(np.linspace(0, 1 - 1e-9, 50), 1 + 1e-9) / value
    slopes = solve(couplings[:, None] * potential).p[-1]
    assert (slopes[:-1] > 0).all()
    assert slopes[-1] < 0


@some_time
@given(potentials)
def test_a_bound_state_appears_with_lambda_one(potential):
    value = float(shallowness.shallowness(potential))
    assert (value > 1) == (int(shallowness.bound_states(potential)) > 0)
    assert value <= shallowness.bargmann_bound(jnp.asarray(potential)) * (1 + 1e-12)


def green_function_eigenvalues(potential, points):
    x = (np.arange(points) + 0.5) / points
    root = np.linalg.cholesky(np.minimum.outer(x, x) / points)
    repeated = np.repeat(potential, points // len(potential))[:, None]
    return np.linalg.eigvalsh(root.T @ (repeated * root))


def test_eigenvalues_of_the_green_function():
    """Against midpoint discretisations, whose error of order h^2 is extrapolated away."""
    potential = np.random.default_rng(3).uniform(-60, 90, 10)
    coarse, fine = (green_function_eigenvalues(potential, points)[[0, -1]] for points in (320, 640))
    smallest, largest = fine + (fine - coarse) / 3
    assert float(shallowness.shallowness(potential)) == pytest.approx(largest, rel=1e-6)
    assert float(shallowness.shallowness(-potential)) == pytest.approx(-smallest, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_bound_states_are_eigenvalues_above_one(seed):
    potential = np.random.default_rng(seed).uniform(-300, 500, 10)
    count = (green_function_eigenvalues(potential, 640) > 1).sum()
    assert int(shallowness.bound_states(potential)) == count > 1


@pytest.mark.parametrize("potential", [[1.0, 3.0, 0.5, 2.0], [-1.0, -3.0, -0.5, 0.1]])
def test_the_radius_is_the_ratio_of_high_born_terms(potential):
    terms = born.born_terms(jnp.asarray(potential), 40)
    radius = shallowness.convergence_radius(jnp.asarray(potential))
    assert float(radius) == pytest.approx(abs(float(terms[-2] / terms[-1])), rel=1e-12)


@pytest.mark.parametrize("cells", [1, 2, 7, 64])
def test_bound_states_of_square_wells(cells):
    strengths = np.array([-5, 0, 2.4, 2.5, 22, 23, 61, 62, 1000.0])
    count = shallowness.bound_states(np.repeat(strengths[:, None], cells, axis=1))
    np.testing.assert_array_equal(count, [0, 0, 0, 1, 1, 2, 2, 3, 10])


def test_repulsion_has_no_pole_and_nan_stays_nan():
    values = shallowness.shallowness(jnp.array([[-1.0, -2.0], [0.0, 0.0], [1.0, jnp.nan]]))
    np.testing.assert_array_equal(values, [0, 0, np.nan])


def test_weak_attraction_behind_strong_barriers():
    potential = np.full(16, -900.0)
    potential[3] = 0.1
    value = float(shallowness.shallowness(potential))
    slopes = solve(potential * np.array([[1 - 1e-9], [1 + 1e-9]]) / value).p[-1]
    assert slopes[0] > 0 > slopes[1]


def test_deep_potentials_are_refused_by_name():
    sample = np.full((5, 4), 0.5)
    shallowness.require_shallow(sample)
    sample[3] = 3.0
    with pytest.raises(ValueError, match=r"potential 3 has lambda = 1\.216.*lower the amplitude"):
        shallowness.require_shallow(sample)
    with pytest.raises(ValueError, match=r"potential 0 has lambda = 0\.2026"):
        shallowness.require_shallow(sample, limit=0.2)
    sample[1, 2] = np.inf
    with pytest.raises(ValueError, match="potential 1 is inf in cell 2"):
        shallowness.require_shallow(sample)
