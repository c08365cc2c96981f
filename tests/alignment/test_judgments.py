"""Conventions of triplets and transforms: what is wrong is refused, and said where."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import judgments
from alignment.features import Features
from alignment.judgments import Standardisation, Transform

GOOD = np.array([[0, 1, 2], [3, 1, 0], [2, 3, 1]])


@pytest.fixture(params=[".npz", ".npy", ".txt", ".csv"])
def save(request, tmp_path):
    def write(triplets):
        path = tmp_path / f"triplets{request.param}"
        match request.param:
            case ".npz":
                np.savez(path, triplets=triplets)
            case ".npy":
                np.save(path, triplets)
            case _:
                np.savetxt(path, triplets, "%d", "," if request.param == ".csv" else " ")
        return path

    return write


def test_read_triplets(save):
    found = judgments.read_triplets(save(GOOD), 4)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, GOOD)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([0, 4, 2], r"beyond 0 to 3, the first is row 1 \(0-based\): \[0, 4, 2\]$"),
        ([0, -1, 2], r"row 1 \(0-based\): \[0, -1, 2\]"),
        ([3, 1, 3], r"repeat an object, the first is row 1 \(0-based\): \[3, 1, 3\]"),
    ],
)
def test_bad_rows_are_named(save, row, problem):
    bad = GOOD.copy()
    bad[1] = row
    with pytest.raises(ValueError, match=rf"triplets\.\w+: 1 rows .*{problem}"):
        judgments.read_triplets(save(bad), 4)


def test_files_that_count_from_one(save):
    with pytest.raises(ValueError, match="counts from 1, subtract 1"):
        judgments.read_triplets(save(GOOD + 1), 4)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 2), int), np.zeros((0, 3), int), np.ones((2, 3)), np.arange(3)]
)
def test_shape_and_type(bad):
    with pytest.raises(ValueError, match="triplets"):
        judgments.check_triplets(bad, 4)


def test_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        judgments.read_triplets(tmp_path / "nothing.npz", 4)
    for name in ("a.npz", "a.npy", "a.txt"):
        (tmp_path / name).write_text("no triplets\n")
        with pytest.raises(ValueError, match=name):
            judgments.read_triplets(tmp_path / name, 4)
    np.savez(tmp_path / "b.npz", rows=GOOD)
    with pytest.raises(ValueError, match="no array 'triplets'; it holds 'rows'"):
        judgments.read_triplets(tmp_path / "b.npz", 4)


def test_raw_release(tmp_path):
    """1-based objects and the position of the odd one, among other columns."""
    path = tmp_path / "raw.csv"
    lines = ["trial,image1,image2,image3,choice", "9,1,2,3,1", "9,1,2,3,2", "9,4,2,1,3"]
    path.write_text("\n".join(lines) + "\n")
    found = judgments.read_triplets(path, 4)
    assert found[:, 2].tolist() == [0, 1, 0]
    assert [set(row) for row in found[:, :2].tolist()] == [{1, 2}, {0, 2}, {3, 1}]
    path.write_text("\n".join([*lines, "9,4,2,1,0"]) + "\n")
    with pytest.raises(ValueError, match="line 5: `choice` must be 1, 2 or 3"):
        judgments.read_triplets(path, 4)
    path.write_text("image1 image2 image3 odd\n1 2 3 1\n")
    with pytest.raises(ValueError, match="line 1: no column 'choice'"):
        judgments.read_triplets(path, 4)


def test_leave_out_goes_by_the_set_of_objects():
    others = np.array([[1, 0, 3], [0, 1, 3]])
    np.testing.assert_array_equal(judgments.leave_out(GOOD, others), GOOD[[0, 2]])


def test_names():
    names = ["bat", "ant", "cat"]
    judgments.check_names(names, names, source="x")
    with pytest.raises(ValueError, match=r"another order: 2 rows differ.* row 0 .*'ant' for 'bat'"):
        judgments.check_names(["ant", "bat", "cat"], names, source="x")
    with pytest.raises(ValueError, match="others: 1 rows"):
        judgments.check_names(["bat", "ant", "dog"], names, source="x")
    with pytest.raises(ValueError, match="x has 2 objects, expected are 3"):
        judgments.check_names(names[:2], names, source="x")


def test_folds_share_no_object():
    held_out = judgments.object_folds(11, 3)
    np.testing.assert_array_equal(held_out.sum(0), 1)
    assert sorted(held_out.sum(1)) == [3, 4, 4]
    triplets = np.array(list(itertools.combinations(range(11), 3)), np.int32)
    train, test = judgments.split_by_object(triplets, held_out[0])
    inside = set(np.flatnonzero(held_out[0]))
    assert len(train) == 35
    assert len(test) == 4
    assert not inside & set(train.ravel())
    assert set(test.ravel()) == inside
    with pytest.raises(ValueError, match="2 objects"):
        judgments.object_folds(2, 3)


def test_choices():
    x = np.array([[1.0, 0], [0, 1], [1, 1], [-1, 2]])
    triplets = np.array([[0, 2, 1], [1, 3, 0]])
    logits = judgments.pair_logits(x, triplets)
    np.testing.assert_array_equal(logits, [[1, 0, 1], [2, 0, -1]])
    assert judgments.correct(logits).tolist() == [False, True]  # a tie is wrong
    unit = judgments.unit_rows(np.array([[3.0, 4], [0, 0]]))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("features", [3, 75])  # 75: more than are summed at once, twice odd
def test_members_side_by_side(features):
    """Each member's similarities, and their gradients, are those that it has alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 2, features)).astype(np.float32)
    triplets = np.stack([rng.permutation(6)[:3] for _ in range(300)])  # more than a block
    targets = rng.normal(size=(300, 3)).astype(np.float32)

    def loss(x, targets):
        return jnp.sum(judgments.pair_logits(x, triplets) * targets)

    both = jax.grad(loss)(x, targets[:, None])
    for member in range(2):
        s = x[:, member] @ x[:, member].T
        expected = [s[triplets[:, a], triplets[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))]
        found = judgments.pair_logits(x, triplets)[:, member]
        np.testing.assert_allclose(found.T, expected, rtol=1e-5, atol=1e-5)
        weights = np.zeros((6, 6))
        for pair, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
            np.add.at(weights, (triplets[:, a], triplets[:, b]), targets[:, pair])
        expected = (weights + weights.T) @ x[:, member]
        np.testing.assert_allclose(both[:, member], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked_shapes")
def test_transform(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (5, 3)).astype(np.float32)
    scale = Standardisation.of(x)
    np.testing.assert_allclose([scale(x).mean(), scale(x).std()], [0, 1], atol=1e-6)
    weights, bias = (rng.normal(size=s).astype(np.float32) for s in ((3, 2), 2))
    transform = Transform(weights=weights, bias=bias, standardisation=scale)
    transform.write(tmp_path / "t.npz")
    again = Transform.read(tmp_path / "t.npz")
    assert again.standardisation == scale
    np.testing.assert_array_equal(again(x), transform(x))
    np.testing.assert_allclose(again(x), (x - x.mean()) / x.std() @ weights + bias, rtol=1e-4)
    with pytest.raises(ValueError, match="dimension 3, these have 2"):
        transform(x[:, :2])
    arrays = {"weights": weights, "mean": 0.0, "std": 1.0}
    np.savez(tmp_path / "u.npz", **arrays)
    np.testing.assert_array_equal(Transform.read(tmp_path / "u.npz").bias, [0, 0])
    for change, problem in (
        ({"std": 0.0}, "std positive"),
        ({"bias": np.zeros(3)}, "bias has shape"),
        ({"weights": np.full((3, 2), np.nan)}, "6 of 3 rows|3 of 3 rows"),
        ({"mean": np.zeros(2)}, "v.npz"),
    ):
        np.savez(tmp_path / "v.npz", **arrays | change)
        with pytest.raises(ValueError, match=problem):
            Transform.read(tmp_path / "v.npz")


def test_features(tmp_path):
    names = np.array(["a", "b"])
    made = Features(
        features=np.eye(2, dtype=np.float32),
        names=names,
        model="m",
        labels=np.array([0, 1]),
        label_names=names,
    )
    made.write(tmp_path / "f.npz")
    again = Features.read(tmp_path / "f.npz")
    assert (again.model, again.preprocessing, again.coarse) == ("m", "", None)
    np.testing.assert_array_equal(again.labels, made.labels)
    assert list(tmp_path.iterdir()) == [tmp_path / "f.npz"]  # no draft is left behind
    for change, problem in (
        ({"features": np.array([[1.0, 0], [np.nan, 1]])}, "1 of 2 rows hold NaN.* row 1 "),
        ({"features": np.eye(3)}, "3 rows of features, but names of shape"),
        ({"names": np.array(["a", "a"])}, "'a' occurs more than once"),
        ({"labels": np.array([0, 2]), "label_names": names}, "labels must be 0 to 1"),
    ):
        np.savez(tmp_path / "g.npz", **{"features": np.eye(2), "names": names} | change)
        with pytest.raises(ValueError, match=rf"g\.npz: .*{problem}"):
            Features.read(tmp_path / "g.npz")


def test_real_conventions(shared_alignment):
    """Figures of the data's own README: objects and triplets in one order, odd one last."""
    names = judgments.read_names(shared_alignment / "things_spose/unique_id.txt")
    human = shared_alignment / "things_triplets/things_human_triplets_300k.npz"
    triplets = judgments.read_triplets(human, len(names))
    vice = np.load(shared_alignment / "vice/vice_things_final_embedding.npy")
    accuracy = judgments.correct(judgments.pair_logits(vice, triplets)).mean()
    np.testing.assert_allclose(accuracy, 0.6344, atol=5e-5)
