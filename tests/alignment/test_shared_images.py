"""Triplets in groups that share a pool of images."""

import numpy as np
import pytest

from alignment.triplets.sampling import SamplingConfig
from alignment.triplets.shared_images import Pool, PooledSampler

GROUPS = np.random.default_rng(0).integers(-1, 8, 200)  # -1: of no group
POOL = Pool(triplets=40, groups=3, images_each=4)


@pytest.mark.parametrize("sampling", ["cluster_border", "within_cluster", "between_class"])
@pytest.mark.parametrize("weighting", ["uniform", "size"])
def test_groups_share_a_pool_and_follow_the_rule(sampling, weighting):
    config = SamplingConfig(sampling=sampling, weighting=weighting, seed=3)
    drawn = PooledSampler(GROUPS, config, POOL).block(2, 400)
    assert drawn.shape == (400, 3)
    assert drawn.dtype == np.int32
    assert (np.sort(drawn, 1)[:, 1:] != np.sort(drawn, 1)[:, :-1]).all()
    a, b, c = GROUPS[drawn].T
    assert (a >= 0).all()
    pattern = {
        "cluster_border": (a == b) & (a != c),
        "within_cluster": (a == b) & (a == c),
        "between_class": (a != b) & (a != c) & (b != c),
    }[sampling]
    assert pattern.all()
    pools = [np.unique(group) for group in drawn.reshape(10, 120)]
    for pool in pools:
        assert len(pool) <= POOL.images
        assert np.bincount(GROUPS[pool]).max() <= POOL.images_each
    assert len({tuple(pool) for pool in pools}) == 10


def test_blocks_are_a_function_of_seed_and_index():
    def block(seed, index):
        config = SamplingConfig(seed=seed)
        return PooledSampler(GROUPS, config, POOL).block(index, 80)

    np.testing.assert_array_equal(block(1, 4), block(1, 4))
    assert (block(1, 4) != block(1, 5)).any()
    assert (block(1, 4) != block(2, 4)).any()


def test_size_weighting_draws_large_groups_more_often():
    groups = np.repeat([0, 1, 2, 3], [4, 4, 4, 400])
    pool = Pool(triplets=4, groups=2, images_each=2)
    shares = {}
    for weighting in ("uniform", "size"):
        config = SamplingConfig(weighting=weighting)
        drawn = PooledSampler(groups, config, pool).block(0, 4000)
        shares[weighting] = (groups[drawn] == 3).any(1).mean()
    assert shares["uniform"] == pytest.approx(0.5, abs=0.06)  # 1,000 pools: 4 deviations
    assert shares["size"] > 0.95


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="only 8 of 8 groups are large enough"):
        PooledSampler(GROUPS, SamplingConfig(), Pool(groups=9))
    with pytest.raises(ValueError, match="50 triplets are no multiple of a pool's 40"):
        PooledSampler(GROUPS, SamplingConfig(), POOL).block(0, 50)
    with pytest.raises(ValueError, match="images_each = 0"):
        Pool(images_each=0)
