import json
import shutil

import numpy as np
import pytest

from alignment.features import Features
from alignment.files import read_arrays, write_arrays
from alignment.judgments import Standardisation, Transform
from alignment.triplets import __main__ as triplets
from alignment.triplets.__main__ import Arguments, labelled_blocks, sort_odd_last
from alignment.triplets.files import LabelledTriplets, streamed, triplet_path, write_filenames
from alignment.triplets.sampling import Sampler
from alignment.triplets.shared_images import Pool

IMAGES, CLUSTERS = 60, 4


@pytest.fixture
def files(tmp_path):
    """Features, clusters and a transform that weighs the features anew."""
    rng = np.random.default_rng(0)
    names = np.array([f"n{i:03d}.jpg" for i in range(IMAGES)])
    labels = np.arange(IMAGES) % 6
    features = rng.normal(size=(IMAGES, 5)).astype(np.float32)
    Features(
        features=features, names=names, labels=labels, label_names=np.array(list("abcdef"))
    ).write(tmp_path / "features.npz")
    write_arrays(
        tmp_path / "clusters.npz",
        {
            "cluster": rng.integers(CLUSTERS, size=IMAGES).astype(np.int32),
            "centres": np.zeros((CLUSTERS, 5), np.float32),
            "inertia": np.float64(0),
            "names": names,
        },
    )
    Transform(
        weights=np.diag([3.0, 2, 1, 0.1, 0]).astype(np.float32),
        bias=np.array([1, 0, 0, 0, 0.5], np.float32),
        standardisation=Standardisation(mean=0.1, std=1.5),
    ).write(tmp_path / "transform.npz")
    return tmp_path


def arguments(files, **changes):
    settings = {
        "features": files / "features.npz",
        "clusters": files / "clusters.npz",
        "transform": files / "transform.npz",
        "out": files / "set",
        "train": 300,
        "val": 40,
    }
    return Arguments(**settings | changes)


def test_labels_are_dot_products_of_transformed_features_with_the_odd_one_last(files):
    written = triplets.run(arguments(files))
    expected = triplet_path(files / "set", "uncertainty_distillation", "train", "cluster_border_4")
    assert written["train"] == expected
    arrays = read_arrays(expected)
    assert {k: (v.dtype.str, v.shape) for k, v in arrays.items()} == {
        "similarities": ("<f4", (300, 3)),
        "indices": ("<i4", (300, 3)),
    }
    x = read_arrays(files / "features.npz")["features"].astype(np.float64)
    x = (x - 0.1) / 1.5 * [3.0, 2, 1, 0.1, 0] + [1, 0, 0, 0, 0.5]
    a, b, c = x[arrays["indices"]].transpose(1, 0, 2)
    products = np.stack([(a * b).sum(1), (a * c).sum(1), (b * c).sum(1)], 1)
    np.testing.assert_allclose(arrays["similarities"], products, atol=1e-5)
    assert (np.diff(arrays["similarities"], axis=1) <= 0).all()  # s01 >= s02 >= s12

    cluster = read_arrays(files / "clusters.npz")["cluster"][arrays["indices"]]
    assert all(len(set(row)) == 2 for row in cluster.tolist())
    assert all(len(set(row)) == 3 for row in arrays["indices"].tolist())
    report = json.loads(expected.with_suffix(".json").read_text())
    p = np.exp(products - np.log(np.exp(products).sum(1, keepdims=True)))
    entropy = -(p * np.log(p)).sum(1).mean()
    numbers = report["numbers"]
    assert numbers["mean entropy of the labels, nats"] == pytest.approx(entropy, rel=1e-4)


def test_control_has_the_same_triplets_with_labels_of_the_raw_features(files):
    names = {"train": 0, "val": 0}
    aligned = triplets.run(arguments(files))
    control = triplets.run(arguments(files, transform=None, untransformed=True))
    assert aligned.keys() == control.keys() == names.keys()
    for split in names:
        ours, theirs = read_arrays(aligned[split]), read_arrays(control[split])
        assert control[split].parent.name == "untransformed"
        np.testing.assert_array_equal(np.sort(ours["indices"], 1), np.sort(theirs["indices"], 1))
        assert (ours["indices"][:, 2] != theirs["indices"][:, 2]).any()
        x = read_arrays(files / "features.npz")["features"]
        first = (x[theirs["indices"][:, 0]] * x[theirs["indices"][:, 1]]).sum(1)
        np.testing.assert_allclose(theirs["similarities"][:, 0], first, rtol=1e-4, atol=1e-5)


def test_splits_differ_and_the_seed_decides(files):
    def indices(**changes):
        return read_arrays(triplets.run(arguments(files, **changes))["train"])["indices"]

    first = indices()
    val = read_arrays(triplets.run(arguments(files))["val"])["indices"]
    assert (first[:40] != val).any()
    np.testing.assert_array_equal(first, indices())
    assert (first != indices(seed=1)).any()
    np.testing.assert_array_equal(first[:100], indices(train=100))


def test_classes_come_from_the_features_file(files):
    path = triplets.run(arguments(files, sampling="between_class", clusters=None))["train"]
    assert path.name == "train_between_class.npz"
    labels = read_arrays(path)["indices"] % 6
    assert all(len(set(row)) == 3 for row in labels.tolist())


def test_neither_uneven_blocks_nor_the_number_of_workers_matter():
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    sampler = Sampler(np.repeat(np.arange(3), 10), "class_border", seed=0)
    blocks, others = (
        list(labelled_blocks(features, sampler, 150, size=64, workers=w)) for w in (1, 5)
    )
    assert [len(indices) for indices, _ in blocks] == [64, 64, 22]
    for one, other in zip(blocks, others, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    drawn = np.concatenate([sampler.block(i, 64) for i in range(3)])[:150]
    found = np.concatenate([indices for indices, _ in blocks])
    np.testing.assert_array_equal(np.sort(found, 1), np.sort(drawn, 1))


def test_triplets_that_share_images(files):
    pool = Pool(triplets=20, groups=3, images_each=2)
    path = triplets.run(arguments(files, pool=pool, train=100))["train"]
    indices = read_arrays(path)["indices"]
    assert all(len(np.unique(group)) <= 6 for group in indices.reshape(5, 60))
    assert len(np.unique(indices)) > 6


@pytest.mark.parametrize(
    ("similarities", "images"),
    [
        ([3.0, 2.0, 1.0], [7, 8, 9]),
        ([1.0, 2.0, 3.0], [9, 8, 7]),  # the pair 8, 9 is the most similar one: 7 is odd
        ([2.0, 3.0, 1.0], [7, 9, 8]),
        ([1.0, 3.0, 2.0], [9, 7, 8]),
        ([2.0, 1.0, 3.0], [8, 9, 7]),
        ([3.0, 1.0, 2.0], [8, 7, 9]),
        ([1.0, 1.0, 1.0], [7, 8, 9]),
    ],
)
def test_sorting_keeps_similarities_with_their_pairs(similarities, images):
    found, values = sort_odd_last(np.array([[7, 8, 9]]), np.array([similarities]))
    assert found.tolist() == [images]
    assert values.tolist() == [sorted(similarities, reverse=True)]


def test_files_are_read_by_name(files):
    path = triplets.run(arguments(files))["train"]
    names = read_arrays(files / "set" / "filenames.npz")["filenames"]
    read = LabelledTriplets.read(path, names)
    np.testing.assert_array_equal(read.indices, read_arrays(path)["indices"])
    order = np.random.default_rng(1).permutation(IMAGES)
    shuffled = LabelledTriplets.read(path, np.append(names[order], "one more"))
    np.testing.assert_array_equal(names[order][shuffled.indices], names[read.indices])
    np.testing.assert_array_equal(shuffled.similarities, read.similarities)


@pytest.mark.parametrize("kind", ["U", "S"])
def test_the_published_layout_is_read(files, kind):
    path = triplets.run(arguments(files))["train"]
    ours, names = read_arrays(path), read_arrays(files / "set" / "filenames.npz")["filenames"]
    write_arrays(
        files / "published.npz",
        {
            "filenames": names[ours["indices"]].astype(kind),
            "similarities": ours["similarities"].astype(np.float64),
            "indices": ours["indices"] + 1000,  # rows of somebody else's source
        },
    )
    read = LabelledTriplets.read(files / "published.npz", names)
    np.testing.assert_array_equal(read.indices, ours["indices"])
    np.testing.assert_array_equal(read.similarities, ours["similarities"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": (5, [1, 1, 2])}, "repeat an object, the first is row 5"),
        ({"indices": (6, [1, 60, 2])}, "beyond 0 to 59, the first is row 6"),
        ({"similarities": (7, [1, 2, 0])}, "another pair than the first .* row 7"),
        ({"similarities": (8, [1, np.nan, 0])}, "are not finite; the first is row 8"),
    ],
)
def test_bad_rows_are_named(files, change, message):
    path = triplets.run(arguments(files))["train"]
    arrays = read_arrays(path)
    for name, (row, value) in change.items():
        arrays[name][row] = value
    write_arrays(path, arrays)
    names = read_arrays(files / "set" / "filenames.npz")["filenames"]
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        LabelledTriplets.read(path, names)


def test_unknown_images_are_named(files):
    path = triplets.run(arguments(files))["train"]
    names = read_arrays(files / "set" / "filenames.npz")["filenames"]
    with pytest.raises(ValueError, match=r"1 of 60 images .* are not among the 59 given.*n000"):
        LabelledTriplets.read(path, names[1:])
    (files / "set" / "filenames.npz").unlink()
    with pytest.raises(ValueError, match=r"filenames.npz is neither"):
        LabelledTriplets.read(path, names)


def test_a_folder_holds_triplets_of_one_set_of_images(tmp_path):
    write_filenames(tmp_path, np.array(["a", "b"]))
    write_filenames(tmp_path, np.array(["a", "b"]))
    with pytest.raises(ValueError, match="lists other images"):
        write_filenames(tmp_path, np.array(["b", "a"]))


def test_an_interrupted_file_leaves_nothing(tmp_path):
    path = tmp_path / "file.npz"
    write_arrays(path, {"old": np.ones(1)})

    def interrupted():
        with streamed(path, 10) as arrays:
            arrays["indices"][:5] = 1
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["file.npz"]
    assert "old" in read_arrays(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform": None}, "either --transform FILE or --untransformed"),
        ({"untransformed": True}, "either --transform FILE or --untransformed"),
        ({"clusters": None}, "cluster_border needs --clusters FILE"),
        ({"train": 0}, "cannot make 0 train"),
    ],
)
def test_options_that_do_not_go_together(files, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(files, **changes)


def test_inputs_that_do_not_fit(files):
    clusters = read_arrays(files / "clusters.npz")
    write_arrays(files / "clusters.npz", clusters | {"names": clusters["names"][::-1]})
    with pytest.raises(ValueError, match="the same objects in another order"):
        triplets.run(arguments(files))
    transform = Transform.read(files / "transform.npz")
    Transform(
        weights=transform.weights[:4],
        bias=transform.bias,
        standardisation=transform.standardisation,
    ).write(files / "transform.npz")
    write_arrays(files / "clusters.npz", clusters)
    with pytest.raises(ValueError, match="takes features of dimension 4, these have 5"):
        triplets.run(arguments(files))
    assert not (files / "set").exists()


def test_command(files, capsys):
    shutil.rmtree(files / "set", ignore_errors=True)
    options = ["--train", "100", "--val", "0", "--out", str(files / "set"), "--untransformed"]
    clusters = ["--clusters", str(files / "clusters.npz"), "--sampling", "within_cluster"]
    triplets.main([str(files / "features.npz"), *clusters, *options])
    assert "train_within_cluster_4.npz" in capsys.readouterr().out
    assert sorted(p.name for p in (files / "set").rglob("*.npz")) == [
        "filenames.npz",
        "train_within_cluster_4.npz",
    ]
