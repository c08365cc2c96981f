"""RSA, hierarchy and probes."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from alignment.evaluation.hierarchy import (
    Hierarchy,
    ImageClasses,
    distance_changes,
    distances_by_relation,
)
from alignment.evaluation.probes import (
    GRID,
    best_fit,
    few_shot,
    fit_logistic,
    linear_probe,
    shift_probe,
    shift_split,
)
from alignment.evaluation.rsa import check_rdms, correlate, noise_ceiling, rdm, rsa


def test_rdms_are_numpys():
    x = np.random.default_rng(0).normal(size=(7, 5)) + 2
    np.testing.assert_allclose(rdm(x, "correlation"), 1 - np.corrcoef(x), atol=1e-12)
    cosine = [[1 - a @ b / np.sqrt((a @ a) * (b @ b)) for b in x] for a in x]
    np.testing.assert_allclose(rdm(x), cosine, atol=1e-12)
    with pytest.raises(ValueError, match=r"row 3 .* correlation is undefined"):
        rdm(np.vstack([x[:3], np.ones((1, 5))]), "correlation")


def test_correlations_are_over_each_pair_once():
    a = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]])
    b = np.array([[5, 2, 4], [2, 5, 40], [4, 40, 5.0]])  # its diagonal must not matter
    assert correlate(a, b) == pytest.approx(1)
    assert correlate(a, b, "pearson") == pytest.approx(np.corrcoef([1, 2, 3], [2, 4, 40])[0, 1])
    with pytest.raises(ValueError, match="all dissimilarities are the same"):
        correlate(a, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="3 images against those of 2"):
        correlate(a, np.zeros((2, 2)))


def test_noise_ceiling_leaves_one_out():
    rng = np.random.default_rng(0)
    people = rng.normal(size=(4, 6, 6))
    people = people + people.transpose(0, 2, 1)
    lower, upper = noise_ceiling(people, "pearson")
    above = np.triu_indices(6, 1)
    by_hand = [
        np.corrcoef(people[i][above], np.delete(people, i, 0).mean(0)[above])[0, 1]
        for i in range(4)
    ]
    assert lower == pytest.approx(np.mean(by_hand))
    assert lower < upper
    same = noise_ceiling(np.tile(people[:1], (3, 1, 1)))
    assert same == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="two people"):
        noise_ceiling(people[:1])


def test_rsa_of_features_with_their_own_distances():
    x = np.random.default_rng(0).normal(size=(9, 4))
    scores = rsa(x, rdm(x)[None])
    assert scores["spearman_cosine"] == pytest.approx(1)
    assert scores["pearson_cosine"] == pytest.approx(1)
    assert scores["spearman_correlation"] < 1


def test_rdms_at_fault():
    good = np.zeros((2, 3, 3))
    assert check_rdms(good[0], source="f").shape == (1, 3, 3)
    for bad, message in (
        (np.zeros((2, 3, 4)), "must be floats"),
        (np.where(np.arange(3) == 1, np.nan, good), "matrix 0 .* NaN"),
        (good + np.triu(np.ones((3, 3)), 1), "matrix 0 .* not symmetric"),
    ):
        with pytest.raises(ValueError, match=f"file: .*{message}"):
            check_rdms(bad, source="file")


EDGES = [
    ("root", "animal"),
    ("root", "thing"),
    ("animal", "dog"),
    ("animal", "cat"),
    ("dog", "poodle"),
    ("dog", "beagle"),
    ("thing", "chair"),
    ("thing", "poodle"),  # a second parent, as in WordNet
    ("chair", "stool"),
]


def test_hierarchy_paths(tmp_path):
    path = tmp_path / "tree.txt"
    path.write_text("\n".join(" ".join(edge) for edge in EDGES) + "\n\n")
    tree = Hierarchy.read(path)
    assert tree.path("beagle") == ["root", "animal", "dog", "beagle"]
    assert tree.path("poodle") == ["root", "thing", "poodle"]  # the shorter way
    assert tree.ancestors("poodle") == {"root", "thing", "dog", "animal"}
    assert tree.at_depth(["beagle", "cat", "stool"], 2) == ["dog", "cat", "chair"]
    with pytest.raises(ValueError, match="no node 'horse'"):
        tree.path("horse")
    path.write_text("a b\nb c d\n")
    with pytest.raises(ValueError, match=r"line 2: expected `parent child`, got 'b c d'"):
        Hierarchy.read(path)
    path.write_text("a b\nb c\nc b\nd e\nx y\ny x\n")
    with pytest.raises(ValueError, match="circle: 'x'"):
        Hierarchy.read(path)


def test_relations_and_changes_of_distance():
    nodes = ["beagle", "beagle", "poodle", "cat", "stool"]
    tree = Hierarchy([edge for edge in EDGES if edge != ("thing", "poodle")])
    classes = ImageClasses.of_hierarchy(tree, nodes, basic=2, superordinate=1)
    # Pairs 01, 02, 03, 04, 12, 13, 14, 23, 24, 34.
    assert classes.relations().tolist() == [0, 1, 2, 3, 1, 2, 3, 2, 3, 3]

    def features(angles):
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    before = features(np.array([0, 0.5, 1.0, 1.5, 2.0]))
    after = features(np.array([0, 0.1, 0.3, 0.9, 3.0]))
    changes = distance_changes(before, after, classes)
    d = [1 - np.cos(0.5), 1 - np.cos(0.1)]
    means = [
        np.mean([1 - np.cos(a - b) for i, a in enumerate(x) for b in x[i + 1 :]])
        for x in ([0, 0.5, 1.0, 1.5, 2.0], [0, 0.1, 0.3, 0.9, 3.0])
    ]
    expected = d[1] / means[1] - d[0] / means[0]
    assert changes["same subordinate"].tolist() == pytest.approx([expected], abs=1e-6)
    assert changes["different superordinate"].mean() > 0
    weighted = sum(v.sum() for v in changes.values())
    assert weighted == pytest.approx(0, abs=1e-5)  # relative distances have mean one
    by_relation = distances_by_relation(before, classes)
    assert by_relation["same subordinate"] == pytest.approx(d[0] / means[0], abs=1e-6)


def problem(n=60, p=4, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(classes, p))[y] + 0.8 * rng.normal(size=(n, p))
    return x.astype(np.float32), y


def test_logistic_regressions_are_those_of_scipy():
    x, y = problem()
    c = (1e-2, 1.0, 100.0)
    rows = np.arange(len(y)) % 5 > 0
    found = fit_logistic(x, y, c=c, classes=3, rows=rows, tolerance=1e-6)

    def objective(flat, c):
        w, b = flat[:12].reshape(4, 3), flat[12:]
        log_p = log_softmax(x[rows] @ w + b, axis=1)
        return -c * log_p[np.arange(rows.sum()), y[rows]].sum() + (w**2).sum() / 2

    for i, value in enumerate(c):
        exact = minimize(objective, np.zeros(15), args=(value,), options={"gtol": 1e-8}).fun
        flat = np.concatenate([np.ravel(found.weights[i]), np.ravel(found.bias[i])])
        assert objective(flat.astype(np.float64), value) == pytest.approx(exact, rel=1e-4)


def test_a_regression_that_is_not_finite_is_refused():
    x = np.ones((6, 2))
    x[3, 1] = np.nan
    with pytest.raises(FloatingPointError, match="not finite: look at the features"):
        fit_logistic(x, np.arange(6) % 2, c=[1.0], classes=2)


def test_the_penalty_is_chosen_on_held_out_rows():
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    signal = y[:, None] + 0.7 * rng.normal(size=(80, 1))
    noise = rng.normal(size=(80, 60))
    x = np.hstack([signal, noise]).astype(np.float32)
    folds = np.arange(80) // 16 - 1  # the first sixteen are never held out
    chosen = best_fit(x, y, folds, classes=2)
    hits = np.zeros(len(GRID))
    for fold in range(4):
        out = folds == fold
        model = fit_logistic(x, y, classes=2, rows=~out)
        hits += (model.predict(x[out]) == y[out]).sum(1)
    best = int(np.argmax(hits))
    assert GRID[best] < 1  # noise would be fitted otherwise
    expected = fit_logistic(x, y, classes=2).weights[best]
    np.testing.assert_allclose(chosen.weights[0], expected, rtol=1e-6)


def test_probes_see_what_is_there_and_no_more():
    train, test = problem(120), problem(120)  # the same clouds and rows
    separate = tuple((x + 10 * np.eye(3, 4)[y].astype(np.float32), y) for x, y in (train, test))
    assert few_shot(*separate, shots=1, repetitions=3) == (1.0, 0.0)
    assert few_shot(*separate, shots=5, repetitions=2)[0] == 1
    assert linear_probe(*separate) == [1.0]
    rng = np.random.default_rng(0)
    blind = tuple(
        (rng.normal(size=(300, 4)).astype(np.float32), rng.integers(3, size=300)) for _ in "ab"
    )
    mean, deviation = few_shot(*blind, shots=5, repetitions=4)
    assert mean == pytest.approx(1 / 3, abs=0.08)
    assert deviation > 0
    with pytest.raises(ValueError, match="class 0 has 20 training examples, fewer than 21"):
        few_shot(problem(60), test, shots=21)


def test_shift_splits_every_superclass():
    superclass = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    source, target = shift_split(superclass, seed=0)
    assert not (source & target).any()
    assert [source[superclass == s].sum() for s in range(3)] == [2, 1, 0]
    assert [target[superclass == s].sum() for s in range(3)] == [2, 1, 0]


def test_shift_probe_tells_what_carries_over_from_what_does_not():
    """Feature 0 belongs to the superclass; the others to single classes, and are stronger."""
    rng = np.random.default_rng(0)
    superclass = np.array([0, 0, 1, 1])
    y = np.repeat(np.arange(4), 60)
    own = 3 * np.eye(4)[y]
    noise = 0.3 * rng.normal(size=(240, 5))
    shared = np.hstack([2.0 * (2 * superclass[y] - 1)[:, None], own]) + noise
    alone = np.hstack([0.0 * superclass[y][:, None], own]) + noise
    shared, alone = shared.astype(np.float32), alone.astype(np.float32)
    found = shift_probe((shared, y), (shared, y), superclass)
    assert found == {"source": 1.0, "target": 1.0}
    found = shift_probe((alone, y), (alone, y), superclass)
    assert found["source"] == 1
    assert found["target"] < 0.8
    assert shift_probe((shared, y), (shared, y), np.array([0, 0, 1, 2])) == {}
