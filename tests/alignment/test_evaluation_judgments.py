"""Odd one out, repeated answers, uncertainty, levels and validation pairs."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import softmax

from alignment.evaluation.answers import Answers
from alignment.evaluation.levels import level_scores, read_levels
from alignment.evaluation.odd_one_out import odd_image, odd_one_out, ties
from alignment.evaluation.pairs import ValidationPairs, pair_scores
from alignment.evaluation.uncertainty import (
    against_answers,
    best_temperature,
    calibration_error,
    response_time_spearman,
)
from alignment.features import Features
from alignment.files import write_arrays

# Four points in the plane: 0 and 1 point the same way, 2 nearly so but is long, 3 is opposite.
POINTS = np.array([[1, 0], [2, 0], [3, 1.0], [-1, 0]], np.float32)


def test_odd_one_out_by_hand():
    triplets = np.array([[0, 1, 3], [0, 3, 1], [0, 1, 2]])
    scores = odd_one_out(POINTS, triplets)
    # Cosines: 1, -1, -1; -1, 1, -1; 1, .949, .949. Dots: 2, -1, -2; -1, 2, -2; 2, 3, 6.
    assert scores["accuracy_cosine"] == pytest.approx(2 / 3)
    assert scores["accuracy_dot"] == pytest.approx(1 / 3)
    log_p = [np.log(softmax(row))[0] for row in ([2, -1, -2], [-1, 2, -2], [2, 3, 6])]
    assert scores["nll"] == pytest.approx(-np.mean(log_p), rel=1e-6)
    assert scores["ties_dot"] == 0


def test_ties_of_the_maximum_are_wrong_and_counted():
    same = np.ones((3, 2), np.float32)
    scores = odd_one_out(same, np.array([[0, 1, 2]]))
    assert (scores["accuracy_cosine"], scores["ties_cosine"]) == (0, 1)
    logits = np.array([[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [2, 3, 4]])
    assert ties(logits).tolist() == [False, True, True, False]
    assert odd_image(logits).tolist() == [2, -1, -1, 0]


def test_answers_count_the_chosen_pair_whatever_the_order():
    rows = [[5, 9, 2], [9, 5, 2], [2, 5, 9], [1, 2, 3]]
    answers = Answers.of(np.array(rows))
    assert answers.triplets.tolist() == [[1, 2, 3], [2, 5, 9]]
    # Of (2, 5, 9): the pair (2, 5) once, the pair (5, 9) twice.
    assert answers.counts.tolist() == [[1, 0, 0], [1, 0, 2]]
    assert Answers.of(np.array(rows), at_least=2).triplets.tolist() == [[2, 5, 9]]
    with pytest.raises(ValueError, match="no triplet has 4 answers; the most that one has is 3"):
        Answers.of(np.array(rows), at_least=4)


def brute_ceilings(counts):
    """Each person against all others, one after another."""
    people = [c for c, n in enumerate(counts) for _ in range(n)]
    hits, agreements = [], []
    for i, answer in enumerate(people):
        others = people[:i] + people[i + 1 :]
        tally = [others.count(c) for c in range(3)]
        best = [c for c in range(3) if tally[c] == max(tally)]
        hits.append((answer in best) / len(best))
        agreements += [answer == other for other in others]
    return np.mean(hits), np.mean(agreements)


def test_ceilings_are_those_of_counting_people():
    counts = [c for c in itertools.product(range(5), repeat=3) if sum(c) > 1]
    for c in counts:
        answers = Answers(triplets=np.array([[0, 1, 2]]), counts=np.array([c]))
        found = answers.ceilings()
        expected = brute_ceilings(c)
        assert (found["leave_one_out"], found["pairwise_agreement"]) == pytest.approx(expected)
        assert found["modal_share"] == pytest.approx(max(c) / sum(c))


def test_uncertainty_against_answers():
    logits = np.array([[0.0, 1.0, 2.0], [0.5, 0.5, 0.1], [3.0, 0.0, 0.0]])
    features, triplets = features_with(logits)
    q = softmax(logits, axis=1)
    perfect = Answers(triplets=triplets, counts=np.round(q * 1e6).astype(int))
    scores = against_answers(features, perfect)
    assert scores["probability_pearson"] == pytest.approx(1, abs=1e-6)
    assert scores["entropy_spearman"] == pytest.approx(1)
    assert scores["modal_spearman"] == pytest.approx(1)
    assert scores["kl"] == pytest.approx(0, abs=1e-6)
    certain = Answers(triplets=triplets, counts=np.tile([[10, 0, 0]], (3, 1)))
    scores = against_answers(features, certain)
    assert scores["kl"] == pytest.approx(-np.log(q[:, 0]).mean(), rel=1e-5)
    assert math.isnan(scores["entropy_spearman"])  # people's entropy is always 0


def features_with(logits: np.ndarray):
    """Make features, and triplets of their own, whose dot products are the logits."""
    blocks = []
    for s01, s02, s12 in logits:
        gram = np.array([[9, s01, s02], [s01, 9, s12], [s02, s12, 9.0]])
        blocks.append(np.linalg.cholesky(gram))
    features = np.zeros((3 * len(blocks), 3 * len(blocks)), np.float32)
    for i, block in enumerate(blocks):
        features[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = block
    return features, np.arange(3 * len(blocks)).reshape(-1, 3)


def test_calibration_error_by_hand():
    confidence = np.array([0.35, 0.38, 0.95, 1.0])
    correct = np.array([True, False, True, False])
    # Bins [.3, .4) and [.9, 1]: gaps of |1 - .73| and |1 - 1.95| rows.
    assert calibration_error(confidence, correct) == pytest.approx((0.27 + 0.95) / 4)
    one = calibration_error(confidence, correct, bins=1, binning="mass")
    assert one == pytest.approx(abs(2 - confidence.sum()) / 4)
    halves = calibration_error(confidence[::-1], correct[::-1], bins=2, binning="mass")
    assert halves == pytest.approx((0.27 + 0.95) / 4)


@pytest.mark.parametrize("divergence", ["kl", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [0.02, 1.0, 50.0])
def test_the_temperature_divides_and_is_recovered(divergence, temperature):
    logits = np.random.default_rng(0).normal(size=(200, 3)) * temperature
    target = softmax(logits / temperature, axis=1)
    found, distance = best_temperature(logits, target, divergence=divergence)
    assert found == pytest.approx(temperature, rel=1e-3)
    assert distance == pytest.approx(0, abs=2e-3)


def test_response_times_are_averaged_by_triplet_and_trimmed():
    logits = np.array([[5.0, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0]])  # ever less certain
    features, triplets = features_with(logits)
    # Twenty answers to each triplet: slower, the less certain; but two outliers the other way.
    seconds = np.concatenate([[i + 1.0] * 18 + [1000.0 - 200 * i] * 2 for i in range(4)])
    rows = np.repeat(triplets, 20, axis=0)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    rolled = np.stack([np.roll(row, i) for i, row in enumerate(rows)])  # order in a row is free
    arguments = (features, rolled[shuffled], seconds[shuffled])
    assert response_time_spearman(*arguments) == pytest.approx(1)
    assert response_time_spearman(*arguments, trim=0) < 0
    assert math.isnan(response_time_spearman(features, rows[:40], seconds[:40]))


HEADER = "level,image1,image2,image3,odd,participant,response_time\n"


@pytest.fixture
def names():
    return np.array([f"{c}.jpg" for c in "abcd"])


def test_levels_are_read_and_scored(tmp_path, names):
    path = tmp_path / "levels.csv"
    path.write_text(
        HEADER
        + "coarse,a.jpg,b.jpg,d.jpg,3,p1,1.5\n"
        + "coarse,d.jpg,a.jpg,b.jpg,1,p2,\n"
        + "fine,c.jpg,b.jpg,a.jpg,2,p1,2\n"
    )
    levels = read_levels(path, names)
    assert list(levels) == ["coarse", "fine"]
    assert levels["coarse"].triplets.tolist() == [[0, 1, 3], [0, 1, 3]]
    assert levels["coarse"].participants == 2
    assert levels["fine"].triplets.tolist() == [[2, 0, 1]]
    assert np.isnan(levels["coarse"].seconds).tolist() == [False, True]
    assert levels["coarse"].answers.ceilings()["leave_one_out"] == 1
    assert level_scores(POINTS, levels["coarse"])["accuracy_cosine"] == 1
    assert level_scores(POINTS, levels["fine"])["accuracy_cosine"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("coarse,a.jpg,b.jpg,x.jpg,1,p,1", "line 2: image3: 'x.jpg' is not among the features"),
        ("coarse,a.jpg,b.jpg,a.jpg,1,p,1", "line 2: an image occurs twice"),
        ("coarse,a.jpg,b.jpg,c.jpg,0,p,1", "line 2: odd: must be 1, 2 or 3, got '0'"),
        ("coarse,a.jpg,b.jpg,c.jpg,1,p,fast", "line 2: response_time: 'fast' is no number"),
        ("", "no answers"),
    ],
)
def test_levels_files_at_fault(tmp_path, names, line, message):
    path = tmp_path / "levels.csv"
    path.write_text(HEADER + line)
    with pytest.raises(ValueError, match=message):
        read_levels(path, names)
    path.write_text("level,image1\n")
    with pytest.raises(ValueError, match="line 1: no column 'image2'"):
        read_levels(path, names)


def test_validation_pairs(tmp_path):
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(2, 20, 2, 6))
    near[:, 1] = near[:, 0] + 0.1 * rng.normal(size=(20, 6))
    features = np.concatenate([near, far]).reshape(80, 6).astype(np.float32)
    names = np.array([f"{i}.jpg" for i in range(80)])
    order = rng.permutation(80)
    shuffled = Features(features=features[order], names=names[order])
    arrays = {
        "filename": names,
        "pairs": np.arange(80).reshape(40, 2),
        "alignet_favoured": np.arange(40) < 20,
    }
    write_arrays(tmp_path / "pairs.npz", arrays)
    scores = pair_scores(shuffled.features, ValidationPairs.read(tmp_path / "pairs.npz", shuffled))
    assert scores["auc"] == 1
    assert scores["z_alignet_favoured"] == pytest.approx(-scores["z_control_favoured"], abs=1e-5)
    assert scores["z_alignet_favoured"] > 0.8
    write_arrays(tmp_path / "pairs.npz", arrays | {"filename": np.char.add("x", names)})
    with pytest.raises(ValueError, match=r"80 of its images are not among the features.*x0.jpg"):
        ValidationPairs.read(tmp_path / "pairs.npz", shuffled)
