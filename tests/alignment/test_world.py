"""The synthetic world: its hierarchy, its images, its observers."""

import numpy as np
import pytest

from alignment.judgments import check_triplets
from alignment.world.drawing import COATS, THINGS
from alignment.world.observers import Observers
from alignment.world.world import LEVELS, World

WORLD = World(size=16, superordinates=3, subordinates=2)


@pytest.fixture(scope="module")
def images():
    return WORLD.images("test", 3)


def test_images_are_a_function_of_seed_split_and_row(images):
    again = WORLD.images("test", 2)
    np.testing.assert_array_equal(again["images"], images["images"][: len(again["images"])])
    other = WORLD.images("train", 3)["images"]
    assert (other != images["images"]).any((1, 2, 3)).all()
    assert images["images"].shape == (3 * 18, 16, 16, 3)
    assert images["images"].dtype == np.uint8
    assert len(set(images["names"].tolist())) == 54


def test_classes_and_names_agree_with_the_hierarchy(images):
    names = images["label_names"][images["labels"]]
    kinds = images["coarse_names"][images["coarse"]]
    for name, kind in zip(names.tolist(), kinds.tolist(), strict=True):
        assert name.rpartition("-")[0] in THINGS[kind]


def test_a_coat_is_worn_once_at_most_in_each_superordinate_and_in_several():
    world = World()
    labels = np.arange(world.classes)
    kinds = world.level_of(labels, "superordinate")
    coats = np.array([world.coat(label) for label in labels.tolist()])
    worn = np.zeros((4, COATS), int)
    np.add.at(worn, (kinds, coats), 1)
    assert (worn == 1).all()


def test_a_thing_is_visible_against_its_background():
    # The same random numbers with and without a thing: the difference is the thing.
    from alignment.world.drawing import draw

    def drawn(parts, seed):
        return draw(parts, coat=3, size=32, noise=0.0, rng=np.random.default_rng(seed))

    for kind in THINGS.values():
        for parts in kind.values():
            shares = []
            for seed in range(5):
                differs = np.abs(drawn(parts, seed).astype(int) - drawn([], seed)).sum(-1) > 30
                shares.append(differs.mean())
            assert 0.03 < np.mean(shares) < 0.6


@pytest.mark.parametrize("level", LEVELS)
def test_level_triplets(images, level):
    labels = images["labels"]
    triplets = check_triplets(WORLD.level_triplets(labels, level, 200, seed=0), len(labels))
    assert len(triplets) == 200
    depth = LEVELS.index(level)
    a, b, odd = (labels[triplets[:, i]] for i in range(3))
    for l, at in enumerate(LEVELS):
        pair, out = (WORLD.level_of(x, at) == WORLD.level_of(y, at) for x, y in ((a, b), (a, odd)))
        assert (pair == (l <= depth)).all()
        if l <= depth:
            assert (out == (l < depth)).all()


def test_a_level_without_triplets_is_refused():
    with pytest.raises(ValueError, match="no triplet of level subordinate"):
        WORLD.level_triplets(np.arange(WORLD.classes), "subordinate", 5, seed=0)


def test_observers_choose_with_their_probabilities(images):
    labels = images["labels"]
    triplets = np.tile(np.array([[0, 2, 1], [0, 6, 12], [0, 18, 6]], np.int32), (4000, 1))
    observers = Observers(count=1, spread=0.0)
    p = observers.probabilities(WORLD, labels, triplets[:3])
    np.testing.assert_allclose(p.sum(-1), 1)
    # Dogs 0 and 1 share the basic class, the bird their superordinate; dog, car and tree nothing.
    odds = np.exp([3.0, 4.5, 3.0])
    assert p[0, 1] == pytest.approx(0.95 * odds[1] / odds.sum() + 0.05 / 3)
    np.testing.assert_allclose(p[1], 1 / 3)
    chosen = observers.choose(WORLD, labels, triplets)
    np.testing.assert_array_equal(np.sort(chosen, 1), np.sort(triplets, 1))
    for row in range(3):
        odd, shown = chosen[row::3, 2], triplets[row]
        shares = [(odd == shown[2 - pair]).mean() for pair in range(3)]
        np.testing.assert_allclose(shares, p[row], atol=0.03)  # 4 standard deviations


def test_judgments_are_different_objects_and_follow_the_hierarchy(images):
    labels = images["labels"]
    judged = Observers(lapse=0.0, superordinate=30.0, basic=30.0).judge(WORLD, labels, 2000)
    check_triplets(judged, len(labels))
    kinds = WORLD.level_of(labels, "superordinate")[judged]
    decided = (kinds[:, :2] != kinds[:, 2:]).all(1) | (kinds == kinds[:, :1]).all(1)
    all_differ = np.array([len(set(row)) == 3 for row in kinds.tolist()])
    assert (decided | all_differ).all()


@pytest.mark.parametrize("settings", [{"superordinates": 5}, {"subordinates": 0}, {"size": 4}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        World(**settings)
