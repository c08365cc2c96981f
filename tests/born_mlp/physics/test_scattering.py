import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from born_mlp.physics import reference, scattering

CELLS = 6  # one shape for the property tests: one compilation
potentials = arrays(np.float64, CELLS, elements=st.floats(-40, 40))
# SciPy's error estimate divides zero by zero where the squares of tiny slopes underflow.
shallow = st.floats(-2, 2).map(lambda u: 0.0 if abs(u) < 1e-100 else u)
shallow_potentials = arrays(np.float64, CELLS, elements=shallow)
some_time = settings(max_examples=40, deadline=None)
exact = scattering.scattering_length


def transfer_matrix(potential):
    """The textbook product of (u, u') matrices with complex square roots."""
    h = 1 / len(potential)
    u, slope = 0.0, 1.0
    for strength in potential:
        k = np.sqrt(complex(strength))
        c, s = np.cos(k * h).real, (np.sin(k * h) / k).real if k else h
        u, slope = c * u + s * slope, c * slope - strength * s * u
    return u, slope


@some_time
@given(potentials)
def test_equals_the_transfer_matrix(potential):
    u, slope = transfer_matrix(potential)
    # In terms of u'(1): near a pole both lose the same digits.
    assert float(exact(potential)) * slope == pytest.approx(
        slope - u, abs=1e-12 * np.hypot(u, slope)
    )


@settings(max_examples=8, deadline=None)
@given(shallow_potentials)
def test_equals_two_independent_ode_solutions(potential):
    a0 = float(exact(potential))
    assert a0 == pytest.approx(reference.ode_scattering_length(potential), rel=0, abs=1e-12)
    assert a0 == pytest.approx(reference.riccati_scattering_length(potential), rel=1e-12)


@some_time
@given(potentials)
def test_splitting_cells_changes_nothing(potential):
    whole, split = exact(potential), exact(np.repeat(potential, 2))
    np.testing.assert_allclose(np.arctan(whole), np.arctan(split), rtol=0, atol=1e-12)


@some_time
@given(potentials)
def test_unequal_cells_are_merged_equal_cells(potential):
    merged = np.array([potential[0], potential[0], potential[2], potential[3], 0.0, 0.0])
    edges = np.array([0, 2, 3, 4, 6]) / 6
    whole = exact(merged[[0, 2, 3, 4]], edges=edges)
    np.testing.assert_allclose(np.arctan(whole), np.arctan(exact(merged)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("strength", [-1e5, -30, -1, 1e-9, 0.1, 1, 2.4, 30, 500])
@pytest.mark.parametrize("cells", [1, 9])
def test_square_wells_and_barriers(strength, cells):
    a0 = exact(np.full(cells, float(strength)))
    assert float(a0) == pytest.approx(reference.power_well(strength), rel=3e-13)


def test_hard_core():
    a0 = exact(np.full(7, -1e12))
    assert float(a0) == pytest.approx(1 - 1e-6, rel=1e-10)  # rounding times sqrt(-U)


def test_both_sides_of_the_first_pole():
    pole = np.pi**2 / 4
    below, above = np.nextafter(pole, 0, dtype=float), pole * (1 + 1e-15)
    assert exact(np.full(4, below - 1e-12)) < -1e11
    assert exact(np.full(4, above + 1e-12)) > 1e11


def test_weak_potentials_keep_their_digits_in_single_precision():
    potential = np.random.default_rng(0).uniform(0, 1e-4, 64)
    single = exact(potential.astype(np.float32))
    assert single.dtype == np.float32
    assert float(single) == pytest.approx(float(exact(potential)), rel=1e-6)


def test_the_gradient_at_zero_is_the_first_born_term():
    i = np.arange(1, 9)
    gradient = jax.grad(scattering.scattering_length)(jnp.zeros(8))
    np.testing.assert_allclose(gradient, -(3 * i**2 - 3 * i + 1) / (3 * 8**3), rtol=1e-14)


def test_derivatives_on_both_sides_of_the_series_radius():
    """Those of a well of four cells, z = U/16, against its closed form `1 - tan k / k`."""
    strengths = np.array([15.9, 16.1, -15.9, -16.1, 60.0, -200.0])

    def first(strength):
        k = np.sqrt(strength + 0j)
        return (np.tan(k) / k - 1 - np.tan(k) ** 2) / (2 * strength)

    second = first(strengths + 1e-30j).imag / 1e-30  # complex step
    slope = jax.grad(lambda s: scattering.scattering_length(jnp.full(4, s)))
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(strengths), first(strengths), rtol=1e-11)
    curvature = jax.jit(jax.vmap(jax.jacfwd(slope)))(np.append(strengths, 0.0))
    np.testing.assert_allclose(curvature, np.append(second, -4 / 15), rtol=1e-10)


@pytest.mark.parametrize(
    ("potential", "expected"),
    [
        (lambda x: 2 * x**2, reference.power_well(2, 2)),
        (lambda x: -3 * x, reference.power_well(-3, 1)),
        (lambda x: 2 * jnp.exp(-x / 0.3), reference.exponential_well(2, 0.3)),
    ],
)
def test_smooth_potentials(potential, expected):
    a0 = scattering.scattering_length_of(potential, tolerance=1e-12)
    assert float(a0) == pytest.approx(expected, abs=1e-12)


def test_a_thin_well_is_a_delta_shell():
    radius, width = 0.6, 1e-5
    edges = (radius - width / 2, radius + width / 2)
    a0 = scattering.scattering_length_of(
        lambda x: jnp.where((x > edges[0]) & (x < edges[1]), 1 / width, 0.0),
        breakpoints=edges,
        levels=4,
    )
    assert float(a0) == pytest.approx(reference.delta_shell(1, radius), rel=1e-5)


def test_callables_differentiate_in_what_they_close_over():
    @jax.jit
    @jax.jacfwd
    def slope(strength):
        return scattering.scattering_length_of(lambda x: strength * x, levels=3)

    step = 1e-4
    numeric = (reference.power_well(1 + step, 1) - reference.power_well(1 - step, 1)) / (2 * step)
    assert float(slope(1.0)) == pytest.approx(numeric, rel=1e-7)


def test_a_jump_that_was_not_announced_is_refused():
    with pytest.raises(ValueError, match="breakpoints"):
        scattering.scattering_length_of(lambda x: jnp.where(x < 0.37, 1.0, 0.0))


def test_samples_converge_with_fourth_order():
    def potential(x):
        return 2 * jnp.exp(-4 * x * x)

    expected = scattering.scattering_length_of(potential)
    errors = []
    for n in (8, 16):
        radii = np.arange(n + 1) / n
        a0 = scattering.scattering_length_of_samples(radii, potential(radii), levels=4)
        errors.append(abs(float(a0 - expected)))
    assert errors[1] < errors[0] / 12 < 1e-5


def test_samples_outside_the_range_are_refused():
    with pytest.raises(ValueError, match="units of the range"):
        scattering.scattering_length_of_samples(np.linspace(0, 3, 8), jnp.ones(8))


def test_the_wave_function_solves_the_equation_and_ends_in_a_line():
    potential = jnp.asarray([[1.0, -60.0, 3.0, 8.0], [0.0, 2.0, 2.0, -900.0]])
    x, step = np.array([0.1, 0.3, 0.6, 0.9]), 0.05
    left, u, right = (scattering.wave_function(potential, x + s) for s in (-step, 0, step))
    # Inside a cell the solution of u'' = -U u obeys this without an error of discretisation.
    turn = np.cos(np.sqrt(potential + 0j) * step).real
    np.testing.assert_allclose(left + right, 2 * turn * u, rtol=1e-11)
    inside, outside = scattering.wave_function(potential, jnp.array([1.0, 1.5])).T
    line = inside + (outside - inside) / 0.5 * (scattering.scattering_length(potential) - 1)
    np.testing.assert_allclose(line / inside, 0, atol=1e-11)


@pytest.mark.parametrize("scale", [2.0, 100.0, -1e5])
@pytest.mark.parametrize("n", [1, 2100])
def test_labels_are_the_exact_scattering_lengths(scale, n):
    sample = scale * np.random.default_rng(0).uniform(0, 1, (n, 5))
    np.testing.assert_allclose(scattering.labels(sample), exact(sample), rtol=1e-11)


@pytest.mark.usefixtures("unchecked_shapes")
def test_labels_refuse_bad_values_and_single_precision():
    sample = np.ones((4, 3))
    sample[2, 1] = np.nan
    with pytest.raises(ValueError, match="potential 2 is nan in cell 1"):
        scattering.labels(sample)
    with pytest.raises(ValueError, match=r"shape \(n, d\)"):
        scattering.labels(np.ones(3))
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="JAX_ENABLE_X64=1"):
        scattering.labels(np.ones((4, 3)))


@pytest.mark.usefixtures("unchecked_shapes")
def test_edges_must_match_the_cells():
    with pytest.raises(ValueError, match="3 cells have 4 edges"):
        scattering.scattering_length(jnp.ones(3), edges=jnp.ones(3))
