import numpy as np
import pytest

from born_mlp.physics import samplers

ALL = [
    samplers.SignedRays(cells=8),
    samplers.AttractiveRays(cells=8),
    samplers.Boxes(cells=8),
    samplers.CosineSeries(cells=8, modes=3),
    samplers.Gaussians(cells=8),
]


@pytest.mark.parametrize("sampler", ALL, ids=lambda sampler: type(sampler).__name__)
def test_rows_depend_on_the_seed_alone(sampler):
    sample = sampler.sample(7, 50)
    assert sample.shape == (50, sampler.cells)
    assert sample.dtype == np.float64
    np.testing.assert_array_equal(sampler.sample(7, 20), sample[:20])
    assert not np.array_equal(sampler.sample(8, 50), sample)


def test_rays_reach_zero_and_stay_below_twice_the_amplitude():
    signed = samplers.SignedRays(cells=4, amplitude=0.3).sample(0, 4000)
    attractive = samplers.AttractiveRays(cells=4, amplitude=0.3).sample(0, 4000)
    assert attractive.min() >= 0
    for sample in (abs(signed), attractive):
        assert 0.55 < sample.max() < 0.6
        assert sample.max(axis=1).min() < 1e-3
    # Moments of s * xi: E[s^2] = 1/3, E[xi^2] = 4/3.
    assert (signed**2).mean() == pytest.approx(0.3**2 * 4 / 9, rel=0.05)
    assert signed.mean() == pytest.approx(0, abs=5e-3)


def test_independent_cells_excite_everything():
    sample = samplers.SignedRays(cells=6).sample(0, 5000)
    for degree, dimension in ((1, 6), (2, 21)):
        excitation = samplers.excitation(sample, degree=degree)
        assert excitation.rank() == dimension
        assert excitation.condition_number < 5


def test_smooth_potentials_have_null_directions():
    sampler = samplers.CosineSeries(cells=12, modes=3)
    sample = sampler.sample(0, 2000)
    first = samplers.excitation(sample)
    assert first.rank() == 3
    assert samplers.excitation(sample, degree=2).rank() == 6
    null = first.directions[3:]
    assert abs(sample @ null.T).max() < 1e-14


def test_singular_values_are_those_of_the_unit_vectors():
    sample = 5 * np.eye(3)[np.array([0, 0, 1, 2])]
    np.testing.assert_allclose(
        samplers.excitation(sample).singular_values, np.sqrt([0.5, 0.25, 0.25]), rtol=1e-14
    )


def test_too_few_samples_and_bad_values_are_refused():
    sample = samplers.SignedRays(cells=6).sample(0, 10)
    with pytest.raises(ValueError, match="10 nonzero potentials cannot excite 21 directions"):
        samplers.excitation(sample, degree=2)
    with pytest.raises(ValueError, match="degree must be 1"):
        samplers.excitation(sample, degree=3)
    sample[4, 5] = np.inf
    with pytest.raises(ValueError, match="potential 4 is inf in cell 5"):
        samplers.excitation(sample)
