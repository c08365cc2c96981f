import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.cluster import __main__ as cluster
from alignment.cluster.assignment import GROUP, Rows, Sums, assignment_step
from alignment.cluster.kmeans import KMeansConfig, kmeans, seed_centres
from alignment.features import Features
from alignment.files import read_arrays
from alignment.judgments import Standardisation, Transform
from alignment.transformed import apply_transform
from common.mesh import MeshConfig, make_mesh

ONE = make_mesh(MeshConfig(), jax.devices()[:1])


def clouds(n: int = 603, p: int = 8, k: int = 12, *, spread: float = 1.0) -> np.ndarray:
    """Overlapping clouds, whose borders take several iterations to settle."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(k, p))
    return (centres[rng.integers(k, size=n)] + spread * rng.normal(size=(n, p))).astype(np.float32)


def plain_lloyd(x: np.ndarray, centres: np.ndarray, iterations: int):
    """Lloyd's algorithm as in a textbook, in float64."""
    x, centres = x.astype(np.float64), centres.astype(np.float64)
    for iteration in range(iterations):
        distance = ((x[:, None] - centres) ** 2).sum(-1)
        nearest = distance.argmin(1)
        if iteration < iterations - 1:
            centres = np.stack([x[nearest == j].mean(0) for j in range(len(centres))])
    return nearest, centres, distance.min(1).sum()


@pytest.mark.parametrize("iterations", [1, 2, 15])
def test_iterations_are_those_of_lloyd(monkeypatch, iterations):
    # Several groups of bounds, the last one not full.
    monkeypatch.setattr("alignment.cluster.assignment.GROUP", 5)
    x = clouds()
    config = KMeansConfig(
        clusters=12, restarts=1, max_iterations=iterations, chunk=37, tolerance=-1.0
    )
    start = seed_centres(x, config, jax.random.fold_in(jax.random.key(config.seed), 0))
    nearest, centres, inertia = plain_lloyd(x, np.asarray(start), iterations)
    found = kmeans(x, config, ONE)
    assert found.iterations == iterations
    np.testing.assert_array_equal(found.cluster, nearest)
    np.testing.assert_allclose(found.centres, centres, atol=1e-5)
    assert found.inertia == pytest.approx(inertia, rel=1e-6)


def test_eight_devices_find_what_one_does():
    x = clouds()  # 603 rows do not divide by 8
    config = KMeansConfig(clusters=12, restarts=2)
    one, eight = kmeans(x, config, ONE), kmeans(x, config)
    np.testing.assert_array_equal(one.cluster, eight.cluster)
    np.testing.assert_allclose(one.centres, eight.centres, atol=1e-5)
    assert one.inertias == pytest.approx(eight.inertias, rel=1e-6)


def test_separate_clouds_are_found_and_the_best_start_is_kept():
    x = clouds(spread=0.01)
    found = kmeans(x, KMeansConfig(clusters=12, restarts=4), ONE)
    # Twelve clouds of variance 1e-4 in 8 dimensions, less the 12 x 8 fitted means.
    assert found.inertia == pytest.approx((603 - 12) * 8 * 1e-4, rel=0.1)
    assert found.inertia == min(found.inertias)
    assert len(found.inertias) == 4


def test_seeds_are_rows_far_apart_and_from_the_subsample():
    x = clouds(5000, spread=0.01)
    config = KMeansConfig(clusters=12, seeding_rows=120)
    seeds = np.asarray(seed_centres(x, config, jax.random.key(3)))
    assert (np.abs(x[:, None] - seeds).max(-1) == 0).any(0).all()
    apart = np.linalg.norm(seeds[:, None] - seeds, axis=-1)[np.triu_indices(12, 1)]
    assert apart.min() > 1  # one of each cloud


def test_bounds_spare_the_rows_that_cannot_have_moved():
    """Rows whose second centre is known to be far are not looked at, even if they should be."""
    x = clouds(64)
    centres = jnp.asarray(x[:4])
    step = assignment_step(ONE, 16)
    wrong = np.full(64, 3, np.int32)
    bound = np.where(np.arange(64) < 48, np.inf, -np.inf).astype(np.float32)
    rows = Rows(jnp.asarray(wrong), jnp.zeros(64), jnp.asarray(bound[:, None]))
    sums = Sums(jnp.zeros((4, 8)), jnp.zeros(4))
    found, sums, _ = step(x, np.ones(64, bool), centres, rows, sums, jnp.zeros(4))
    nearest = ((x[:, None] - x[:4]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(found.cluster[:48], 3)
    np.testing.assert_array_equal(found.cluster[48:], nearest[48:])
    # The rows that moved leave one cluster and enter another.
    change = np.bincount(nearest[48:], minlength=4) - np.bincount(wrong[48:], minlength=4)
    np.testing.assert_array_equal(sums.size, change)


def test_more_clusters_than_distinct_rows():
    x = np.repeat(np.eye(3, 8, dtype=np.float32), 201, axis=0)
    found = kmeans(x, KMeansConfig(clusters=12, restarts=1), ONE)
    assert found.inertia == pytest.approx(0, abs=1e-4)
    assert np.isfinite(found.centres).all()


def test_empty_clusters_take_far_rows(monkeypatch):
    x = np.zeros((603, 8), np.float32)
    x[:11, 0] = np.arange(10, 120, 10)
    stuck = np.zeros((12, 8), np.float32)
    stuck[1:, 1] = 1000 + np.arange(11)  # nobody is nearest to these
    monkeypatch.setattr("alignment.cluster.kmeans.seed_centres", lambda *_: jnp.asarray(stuck))
    found = kmeans(x, KMeansConfig(clusters=12, restarts=1), ONE)
    assert found.inertia == pytest.approx(0, abs=1e-3)
    assert len(set(found.cluster.tolist())) == 12


def test_a_million_rows_fit_on_a_device_of_16_gb():
    n, p, k = 1_281_167, 1152, 500
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    by_row = lambda dtype: jax.ShapeDtypeStruct((n,), dtype)  # noqa: E731
    rows = Rows(by_row(jnp.int32), floats(n), floats(n, -(-k // GROUP)))
    step = assignment_step(ONE, KMeansConfig().chunk)
    sums = Sums(floats(k, p), floats(k))
    lowered = step.lower(floats(n, p), by_row(jnp.bool_), floats(k, p), rows, sums, floats(k))
    memory = lowered.compile().memory_analysis()
    features = n * p * 4
    assert memory.argument_size_in_bytes < features + 2**27
    assert memory.temp_size_in_bytes < 2**28
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 7 * 2**30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 0}, "clusters must be positive"),
        ({"clusters": 30, "seeding_rows": 20}, "seeding_rows 20 must be at least clusters 30"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        KMeansConfig(**changes)


def test_fewer_rows_than_clusters():
    with pytest.raises(ValueError, match="4 rows cannot make 5 clusters"):
        kmeans(np.eye(4, dtype=np.float32), KMeansConfig(clusters=5), ONE)


def test_command_clusters_transformed_features(tmp_path):
    # Two groups that only the second feature tells apart; the transform keeps it alone.
    rng = np.random.default_rng(0)
    group = rng.integers(2, size=50)
    x = np.stack([100 * rng.normal(size=50), group + 0.01 * rng.normal(size=50)], 1)
    names = np.array([f"image{i}" for i in range(50)])
    Features(features=x.astype(np.float32), names=names).write(tmp_path / "features.npz")
    Transform(
        weights=np.array([[0], [1]], np.float32),
        bias=np.zeros(1, np.float32),
        standardisation=Standardisation(mean=0.0, std=1.0),
    ).write(tmp_path / "transform.npz")
    options = ["--clusters", "2", "--out", str(tmp_path / "clusters.npz")]
    transform = ["--transform", str(tmp_path / "transform.npz")]
    cluster.main([str(tmp_path / "features.npz"), *options, *transform])
    arrays = read_arrays(tmp_path / "clusters.npz")
    assert {k: v.dtype.str for k, v in arrays.items() if k != "names"} == {
        "cluster": "<i4",
        "centres": "<f4",
        "inertia": "<f8",
    }
    np.testing.assert_array_equal(arrays["names"], names)
    agree = arrays["cluster"] == group
    assert agree.all() or not agree.any()
    report = json.loads((tmp_path / "clusters.json").read_text())
    assert report["numbers"]["inertia"] == pytest.approx(float(arrays["inertia"]))


@pytest.mark.parametrize("columns", [2, 3])
def test_features_are_transformed_block_by_block(monkeypatch, columns):
    monkeypatch.setattr("alignment.transformed.BLOCK", 7)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3)).astype(np.float32)
    transform = Transform(
        weights=rng.normal(size=(3, columns)).astype(np.float32),
        bias=rng.normal(size=columns).astype(np.float32),
        standardisation=Standardisation(mean=0.3, std=2.0),
    )
    expected = (x - 0.3) / 2 @ transform.weights + transform.bias
    np.testing.assert_allclose(apply_transform(transform, x), expected, atol=1e-6)
    np.testing.assert_allclose(apply_transform(transform, x, overwrite=True), expected, atol=1e-6)
