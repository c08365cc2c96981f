import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from born_mlp import packing
from born_mlp.physics import born, scattering, shallowness


def dense(d, order):
    """The full tensor of shape `(d,) * order`."""
    return born.born_tensor(d, order)[packing.dense_positions(d, order)]


def second_order_closed_form(d):
    """B_ij of the quadratic form, integrated by hand."""
    i, j = np.indices((d, d)) + 1
    low, high = np.minimum(i, j), np.maximum(i, j)
    off = (2 * high - 1) * (3 * low**2 - 3 * low + 1) / (6 * d**5)
    diagonal = 2 / (3 * d**5) * ((i**5 - (i - 1) ** 5) / 5 - (i - 1) ** 3 * (2 * i - 1) / 2)
    return np.where(i == j, diagonal, off)


def third_order_by_quadrature(d):
    """C_ijk = int over cell j of g_i g_k, g_i = int over cell i of min(x, y) x dx, symmetrised."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    edges = np.arange(d + 1) / d
    c = np.zeros((d, d, d))
    for j in range(d):
        y = edges[j] + (nodes + 1) / (2 * d)
        g = np.empty((d, len(y)))
        for i in range(d):
            below = np.clip(y, edges[i], edges[i + 1])  # the part of cell i below y
            g[i] = (below**3 - edges[i] ** 3) / 3 + y * (edges[i + 1] ** 2 - below**2) / 2
        c[:, j] = np.einsum("iy,ky,y->ik", g, g, weights / (2 * d))
    axes = [(0, 1, 2), (1, 0, 2), (0, 2, 1)]  # g_i g_k is symmetric in i and k already
    return sum(c.transpose(axis) for axis in axes) / 3


@pytest.mark.parametrize("d", [1, 4, 16])
def test_first_three_orders_against_explicit_integrals(d):
    i = np.arange(1, d + 1)
    first = -(3 * i**2 - 3 * i + 1) / (3 * d**3)
    np.testing.assert_allclose(born.born_tensor(d, 1), first, rtol=1e-14)
    second = dense(d, 2)
    np.testing.assert_allclose(second, -second_order_closed_form(d), rtol=1e-13)
    third = dense(d, 3)
    np.testing.assert_allclose(third, -third_order_by_quadrature(d), rtol=1e-12)


def test_tensors_are_the_derivatives_of_the_scattering_length():
    derivative = scattering.scattering_length
    for order in (1, 2):
        derivative = jax.jacfwd(derivative)
        expected = jax.jit(derivative)(jnp.zeros(4)) / math.factorial(order)
        tensor = dense(4, order)
        np.testing.assert_allclose(tensor, expected, rtol=0, atol=1e-14 * abs(expected).max())


@settings(max_examples=25, deadline=None)
@given(arrays(np.float64, 5, elements=st.floats(-3, 3)))
def test_terms_are_contracted_tensors(potential):
    terms = np.asarray(born.born_terms(potential, 6))
    size = np.abs(born.born_terms(np.abs(potential), 6))
    for order in range(1, 7):
        indices = packing.multi_indices(5, order)
        monomials = packing.multiplicities(5, order) * np.prod(potential[indices], axis=1)
        contracted = born.born_tensor(5, order) @ monomials
        assert contracted == pytest.approx(terms[order - 1], abs=1e-13 * size[order - 1] + 1e-300)


@settings(max_examples=25, deadline=None)
@given(arrays(np.float64, 5, elements=st.floats(-3, 3)), st.floats(-2, 2))
def test_terms_scale_with_powers_of_the_coupling(potential, coupling):
    scaled = born.born_terms(coupling * potential, 6)
    expected = born.born_terms(potential, 6) * coupling ** np.arange(1, 7)
    size = np.abs(born.born_terms(np.abs(coupling * potential), 6))
    np.testing.assert_array_less(np.abs(scaled - expected), 1e-13 * size + 1e-300)


def test_square_well_terms_are_the_taylor_series_of_tan():
    expected = [-1 / 3, -2 / 15, -17 / 315, -62 / 2835, -1382 / 155925]
    np.testing.assert_allclose(born.born_terms(jnp.ones(7), 5), expected, rtol=1e-13)


def test_the_series_converges_to_the_scattering_length():
    potential = jnp.asarray(np.random.default_rng(0).uniform(-1, 2, (3, 4, 8)))
    error = abs(
        born.born_terms(potential, 40).sum(axis=-1) - scattering.scattering_length(potential)
    )
    rate = 1 / shallowness.convergence_radius(potential)
    assert rate.max() < 0.7
    np.testing.assert_array_less(error, 5 * rate**41 + 1e-14)


def test_terms_of_unequal_cells():
    edges = jnp.array([0.0, 0.5, 0.75, 1.0])
    merged = born.born_terms(jnp.array([1.0, -2.0, 3.0]), 4, edges=edges)
    np.testing.assert_allclose(merged, born.born_terms(jnp.array([1.0, 1, -2, 3]), 4), rtol=1e-13)


def test_the_dense_tensor_is_symmetric():
    tensor = dense(3, 4)
    for axes in [(1, 0, 2, 3), (0, 1, 3, 2), (3, 0, 1, 2)]:
        np.testing.assert_array_equal(tensor, tensor.transpose(axes))


def test_orders_and_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="starts at order 1"):
        born.born_terms(jnp.ones(3), 0)
    with pytest.raises(ValueError, match="starts at order 1"):
        born.born_tensor(3, 0)
    with pytest.raises(ValueError, match=r"10639125640 unique entries and takes .* GiB"):
        born.born_tensor(64, 8)
