import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.triplets.sampling import SAMPLINGS, Sampler


def pattern(groups: np.ndarray, triplets: np.ndarray) -> np.ndarray:
    """Return which images are of one group: of the pairs (0, 1), (0, 2), (1, 2)."""
    a, b, c = groups[triplets].T
    return np.stack([a == b, a == c, b == c], 1)


EXPECTED = {"border": [True, False, False], "within": [True] * 3, "between": [False] * 3}


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=6).filter(lambda s: max(s) >= 3),
    sampling=st.sampled_from(SAMPLINGS),
    weighting=st.sampled_from(["uniform", "size"]),
    seed=st.integers(0, 1000),
)
def test_triplets_follow_the_rule(sizes, sampling, weighting, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    triplets = Sampler(groups, sampling, seed=seed, weighting=weighting).block(0, 500)
    assert triplets.dtype == np.int32
    assert all(len(set(row)) == 3 for row in triplets.tolist())
    assert ((triplets >= 0) & (triplets < len(groups))).all()
    rule = next(rule for rule in EXPECTED if rule in sampling)
    assert (pattern(groups, triplets) == EXPECTED[rule]).all()


def test_blocks_depend_on_seed_and_number_alone():
    groups = np.repeat(np.arange(5), 4)
    one, other = (Sampler(groups, "cluster_border", seed=s) for s in (1, 2))
    third = one.block(3, 50)
    one.block(0, 50)
    np.testing.assert_array_equal(one.block(3, 50), third)
    assert (one.block(4, 50) != third).any()
    assert (other.block(3, 50) != third).any()


def frequencies(groups: np.ndarray, triplets: np.ndarray) -> np.ndarray:
    return np.bincount(groups[triplets], minlength=groups.max() + 1) / len(triplets)


@pytest.mark.parametrize(
    ("sampling", "weighting", "pair", "third"),
    [
        # Sizes 2, 4, 10; the third image: any other group alike, or any other image alike.
        ("cluster_border", "uniform", [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]),
        (
            "cluster_border",
            "size",
            [2 / 16, 4 / 16, 10 / 16],
            [
                4 / 16 * 2 / 12 + 10 / 16 * 2 / 6,
                2 / 16 * 4 / 14 + 10 / 16 * 4 / 6,
                2 / 16 * 10 / 14 + 4 / 16 * 10 / 12,
            ],
        ),
        ("within_cluster", "uniform", [0, 1 / 2, 1 / 2], [0, 1 / 2, 1 / 2]),
        ("within_cluster", "size", [0, 4 / 14, 10 / 14], [0, 4 / 14, 10 / 14]),
        ("between_class", "uniform", [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_groups_are_drawn_as_often_as_they_should(sampling, weighting, pair, third):
    groups = np.repeat(np.arange(3), [2, 4, 10])
    count = 40_000
    triplets = Sampler(groups, sampling, seed=0, weighting=weighting).block(0, count)
    tolerance = 5 * np.sqrt(0.25 / count)  # five standard deviations
    np.testing.assert_allclose(frequencies(groups, triplets[:, 0]), pair, atol=tolerance)
    np.testing.assert_allclose(frequencies(groups, triplets[:, 1]), pair, atol=tolerance)
    np.testing.assert_allclose(frequencies(groups, triplets[:, 2]), third, atol=tolerance)


def test_images_of_a_group_are_drawn_alike():
    groups = np.array([0, 1, 0, 1, 0, 1, 0, 2])
    triplets = Sampler(groups, "within_class", seed=0).block(0, 40_000)
    for column in triplets.T:
        shares = np.bincount(column[groups[column] == 0], minlength=8)[[0, 2, 4, 6]]
        np.testing.assert_allclose(shares / shares.sum(), 0.25, atol=0.02)


def test_images_without_a_group_are_not_drawn():
    groups = np.array([0, -1, 0, 1, 1, -1])
    triplets = Sampler(groups, "class_border", seed=0).block(0, 300)
    assert set(triplets.ravel().tolist()) == {0, 2, 3, 4}


def test_small_groups_are_counted():
    groups = np.repeat(np.arange(4), [1, 2, 3, 1])
    assert Sampler(groups, "cluster_border", seed=0).skipped_groups == 2
    assert Sampler(groups, "within_cluster", seed=0).skipped_groups == 3


@pytest.mark.parametrize(
    ("sizes", "sampling", "message"),
    [
        ([1, 1, 1], "cluster_border", "at least of 2 images; there are 3 groups, the largest of 1"),
        ([5], "cluster_border", "needs 2 groups or more"),
        ([2, 2], "within_class", "at least of 3 images"),
        ([2, 2], "between_class", "needs 3 groups or more"),
        ([], "between_class", "there are 0 groups"),
        ([2, 2], "cluster_borders", "did you mean 'cluster_border'"),
    ],
)
def test_groups_that_cannot_give_triplets(sizes, sampling, message):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    with pytest.raises(ValueError, match=message):
        Sampler(groups, sampling, seed=0)
