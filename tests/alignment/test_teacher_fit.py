"""Fitting maps: the truth is found, members do not see each other, commands write what they say."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from alignment import judgments
from alignment.features import Features
from alignment.judgments import Transform, pair_logits
from alignment.teacher import __main__ as command
from alignment.teacher import apply
from alignment.teacher.choices import ExpectedChoices, GivenChoices
from alignment.teacher.cross_validation import cross_validate, score
from alignment.teacher.fit import FitConfig, Group, LocalConfig, block_logits, fit
from alignment.teacher.objective import cross_entropy, distance_to_scaled_identity

N, P = 24, 5
QUICK = FitConfig(
    steps=200, objects_per_step=12, triplets_per_step=64, learning_rate=0.02, initial_scale=0.1
)


@pytest.fixture(scope="module")
def world():
    """Features of 24 objects, and an embedding that is an affine map of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, P)).astype(np.float32)
    x = (x - x.mean()) / x.std()
    weights = np.diag([1.4, 1.2, 0.8, 0.1, 0.0])
    return x, (x @ weights + 0.2).astype(np.float32)


@pytest.fixture(scope="module")
def triplets():
    return np.array(list(itertools.combinations(range(N), 3)), np.int32)


@pytest.fixture(scope="module")
def human(world, triplets):
    """Choices of the embedding: the most similar pair first."""
    best = np.asarray(pair_logits(world[1], triplets)).argmax(1)
    order = np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[best]
    return np.take_along_axis(triplets, order, 1)


def test_recovers_the_map(world, triplets):
    x, y = world
    config = dataclasses.replace(QUICK, steps=600)
    found = fit(x, [Group(ExpectedChoices.of(y), np.arange(N))], [0.0], config, progress=False)
    z = x @ found.weights[0, 0] + found.bias[0, 0]
    p, q = (jax.nn.softmax(pair_logits(features, triplets)) for features in (z, y))
    raw = jax.nn.softmax(pair_logits(x, triplets))
    assert np.abs(p - q).mean() < 0.01
    assert np.abs(raw - q).mean() > 0.1


@pytest.mark.parametrize("objects", [12, None])
def test_a_map_does_not_depend_on_those_beside_it(world, human, objects):
    x, y = world
    config = dataclasses.replace(QUICK, steps=20, objects_per_step=objects)
    groups = [
        Group(ExpectedChoices.of(y), np.arange(16)),
        Group(ExpectedChoices.of(y).among(np.arange(N) > 3), np.arange(4, N)),
    ]
    together = fit(x, groups, [0.1, 1.0], config, progress=False)
    alone = fit(x, groups[:1], [1.0], config, progress=False)
    np.testing.assert_allclose(together.weights[0, 1], alone.weights[0, 0], atol=1e-6)
    np.testing.assert_allclose(together.bias[0, 1], alone.bias[0, 0], atol=1e-6)
    assert np.abs(together.weights[0, 0] - together.weights[0, 1]).max() > 1e-3


@pytest.mark.parametrize("objects", [12, None])
def test_first_step_is_adam_on_the_written_objective(world, triplets, objects):
    """One step of Adam moves against the sign of the gradient: computed here without blocks."""
    x, y = world
    config = dataclasses.replace(
        QUICK, steps=1, objects_per_step=objects, clip_norm=1e6, triplets_per_step=4000
    )
    found = fit(x, [Group(ExpectedChoices.of(y), np.arange(12))], [0.3], config, progress=False)
    some = triplets[(triplets < 12).all(1)]
    q = jax.nn.softmax(pair_logits(y, some))

    def objective(w, b):
        mean = cross_entropy(pair_logits(x @ w + b, some), q).mean()
        return mean + 0.3 * distance_to_scaled_identity(w)

    start = (0.1 * np.eye(P), np.full(P, 0.1))
    gradients = jax.grad(objective, (0, 1))(*start)
    moved = (found.weights[0, 0] - start[0], found.bias[0, 0] - start[1])
    for gradient, change in zip(gradients, moved, strict=True):
        clear = np.abs(gradient) > 0.1 * np.abs(gradient).max()  # the batch is a sample
        assert clear.sum() > 1
        np.testing.assert_allclose(change[clear], -0.02 * np.sign(gradient[clear]), rtol=1e-4)


def test_products_of_a_block(world, triplets):
    """Values and gradient of a single matrix product are those of the rows' dot products."""
    z = world[1]
    some = np.concatenate([triplets[:50], triplets[:20, ::-1]])
    weights = np.random.default_rng(0).normal(size=some.shape)
    np.testing.assert_allclose(block_logits(z, some), pair_logits(z, some), rtol=1e-5, atol=1e-5)
    found, expected = (
        jax.grad(lambda z, logits=logits: (logits(z, some) * weights).sum())(z)
        for logits in (block_logits, pair_logits)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_clipping_is_by_map(world):
    """Adam forgets a constant factor; a limit that shrinks late gradients more does not cancel."""
    x, y = world
    choices = ExpectedChoices.of(y)
    groups = [Group(choices, np.arange(N))]
    config = dataclasses.replace(QUICK, steps=20, clip_norm=0.05)
    alone = fit(x, groups, [1e-3], config, progress=False)
    beside = fit(x, groups, [1e-3, 1e3], config, progress=False)
    np.testing.assert_allclose(alone.weights[0, 0], beside.weights[0, 0], atol=1e-6)
    free = fit(x, groups, [1e-3], dataclasses.replace(config, clip_norm=1e6), progress=False)
    assert np.abs(free.weights - alone.weights).max() > 1e-3


def test_strong_regulariser_gives_a_scaled_identity(world):
    x, y = world
    groups = [Group(ExpectedChoices.of(y), np.arange(N))]
    found = fit(x, groups, [1e-4, 100.0], QUICK, progress=False)
    loose, tight = (float(distance_to_scaled_identity(w)) for w in found.weights[0])
    assert loose > 0.1
    assert tight < 1e-3


def test_local_term_keeps_neighbourhoods(world):
    x, y = world
    images = np.random.default_rng(1).normal(size=(30, P)).astype(np.float32)
    groups = [Group(ExpectedChoices.of(y), np.arange(N))]
    local = dataclasses.replace(QUICK, local=LocalConfig(alpha=0.95, images=20))

    def change(config, **options):
        found = fit(x, groups, [1e-4], config, progress=False, **options)
        after = judgments.unit_rows(images @ found.weights[0, 0] + found.bias[0, 0])
        before = judgments.unit_rows(images)
        return float(np.abs(after @ after.T - before @ before.T).mean())

    assert change(local, images=images) < 0.5 * change(QUICK)
    with pytest.raises(ValueError, match="go together"):
        change(local)
    with pytest.raises(ValueError, match="19 images are less than a batch of 20"):
        change(local, images=images[:19])


def test_cross_validation_scores_held_out_objects(world, human):
    x, y = world
    held_out = judgments.object_folds(N, 3)
    found = cross_validate(
        x, ExpectedChoices.of(y), human, held_out, [1e-3, 100.0], QUICK, maps=2, progress=False
    )
    assert found.best == 0
    # Each map is worse off with the features of its own held-out objects shuffled.
    fold = judgments.split_by_object(human, held_out[1])[1]
    z = x @ found.weights[1, 0] + found.bias[1, 0]
    assert score(z, fold)["nll"] == pytest.approx(found.scores[1, 0, 2], rel=1e-5)
    assert found.scores[:, 0, 0].mean() > 0.9
    with pytest.raises(ValueError, match="fold 0: no human triplet"):
        cross_validate(
            x, GivenChoices.hard(human[:1], N), human[:1], held_out, [1.0], QUICK, progress=False
        )


def test_commands(world, human, tmp_path, capsys):
    x, y = world
    names = np.array([f"things/object{i}.jpg" for i in range(N)])
    shuffle = np.random.default_rng(0).permutation(N)
    Features(features=3 * x[shuffle] + 1, names=names[shuffle]).write(tmp_path / "f.npz")
    (tmp_path / "names.txt").write_text("".join(f"object{i}\n" for i in range(N)))
    np.savez(tmp_path / "human.npz", triplets=human)
    np.save(tmp_path / "embedding.npy", y)
    arguments = command.Arguments(
        features=tmp_path / "f.npz",
        triplets=tmp_path / "human.npz",
        out=tmp_path / "t.npz",
        names=tmp_path / "names.txt",
        embeddings=(tmp_path / "embedding.npy",),
        lambdas=(1e-3, 10.0),
        fit=QUICK,
    )
    command.run(arguments)
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["cross-validation"]["lambda"] == 1e-3
    transform = Transform.read(tmp_path / "t.npz")
    assert score(transform(3 * x + 1), human)["accuracy"] > 0.95
    assert document["before"]["accuracy"] < 0.9
    apply.run(
        apply.Arguments(
            features=tmp_path / "f.npz", transform=tmp_path / "t.npz", out=tmp_path / "a.npz"
        )
    )
    after = Features.read(tmp_path / "a.npz")
    np.testing.assert_array_equal(after.names, names[shuffle])
    np.testing.assert_allclose(after.features, transform(3 * x[shuffle] + 1), rtol=1e-5, atol=1e-6)
    assert "(chosen)" in capsys.readouterr().out

    # Soft choices of given triplets, and the mistakes one can make with them.
    q = np.asarray(jax.nn.softmax(pair_logits(y, human)))
    np.savez(tmp_path / "choices.npz", triplets=human, probabilities=q)
    soft = dataclasses.replace(arguments, embeddings=(), choices=tmp_path / "choices.npz")
    left_out = human[:5]
    loaded = command.load_choices(soft, names, human, [left_out])
    np.testing.assert_array_equal(loaded.triplets, human[5:])
    np.testing.assert_array_equal(loaded.targets, q[5:])
    np.savez(tmp_path / "choices.npz", triplets=human, probabilities=2 * q)
    with pytest.raises(ValueError, match=r"choices\.npz: `probabilities` must"):
        command.run(soft)
    np.save(tmp_path / "embedding.npy", y[1:])
    with pytest.raises(ValueError, match=r"embedding\.npy has 23 rows, there are 24 objects"):
        command.run(arguments)
    (tmp_path / "names.txt").write_text("object0\ncat\n")
    with pytest.raises(
        ValueError, match="1 of 2 names have no row of features, the first is 'cat'"
    ):
        command.run(arguments)


def test_released_transforms(shared_alignment):
    """The seven gLocal maps are read, and are as plausible as the specification says."""
    paths = sorted((shared_alignment / "glocal_transforms").glob("*.npz"))
    assert len(paths) == 7
    for path in paths:
        transform = Transform.read(path)
        p = len(transform.weights)
        found = command.plausibility(transform)
        assert 0.056 <= round(found["mean of the diagonal"], 3) <= 0.120
        assert 0.345 <= round(found["distance to the scaled identity"], 3) <= 0.600
        assert 1.33 <= round(found["norm"], 2) <= 3.35
        x = np.random.default_rng(0).normal(transform.standardisation.mean, size=(2, p))
        assert transform(x).shape == (2, p)
