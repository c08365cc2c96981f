"""VICE: its bound against closed forms, a known embedding recovered, and what the files say."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, norm

from alignment import judgments
from alignment.vice import __main__ as command
from alignment.vice import model
from alignment.vice.agreement import agreement, best_matches
from alignment.vice.embedding import Embedding, SoftChoices, read_values, soft_choices
from alignment.vice.model import Prior, Vice
from common.rng import Rngs

N = 18


@pytest.fixture(scope="module")
def truth():
    """Three kinds of six objects, each with a dimension of its own."""
    noise = np.random.default_rng(1).random((N, 3))  # without it, equal similarities are ties
    return 1.8 * np.repeat(np.eye(3), 6, 0) + 0.2 * noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory, truth):
    """Human choices that follow the truth with noise, each triplet asked several times."""
    path = tmp_path_factory.mktemp("choices")
    rng = np.random.default_rng(0)
    asked = np.tile(np.array(list(itertools.combinations(range(N), 3)), np.int32), (4, 1))
    logits = np.asarray(judgments.pair_logits(truth, asked))
    chosen = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    order = np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[chosen]
    np.savez(path / "human.npz", triplets=np.take_along_axis(asked, order, 1))
    (path / "names.txt").write_text("".join(f"object{i}\n" for i in range(N)))
    return path


def task(folder, **changes):
    settings = {"seeds": 2, "dimensions": 4} | changes
    return Vice(triplets=str(folder / "human.npz"), names=str(folder / "names.txt"), **settings)


def test_noise_is_standard_normal(folder):
    """Symmetric and bounded, no number twice, and seeds do not depend on those beside them."""
    key = jax.random.key(0)
    noise = np.asarray(task(folder, dimensions=3000)._noise(key))
    assert noise.shape == (N, 2, 3000)
    assert kstest(noise.ravel(), "norm").pvalue > 0.01
    assert len(np.unique(noise)) > 0.99 * noise.size  # of 2^24 values
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.02
    one = task(folder, seeds=1, dimensions=3000)._noise(key)
    np.testing.assert_array_equal(noise[:, :1], one)


def test_noise_is_finite_for_all_bits(folder, monkeypatch):
    words = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    monkeypatch.setattr(model, "threefry_2x32", lambda key, counts: jnp.asarray(words)[counts])
    noise = np.asarray(model._normal(jax.random.key(0), (4,)))
    assert np.isfinite(noise).all()
    np.testing.assert_array_equal(noise, -noise[::-1])
    assert noise[3] == pytest.approx(norm.isf(2.0**-25), rel=1e-3)


def test_prior_is_a_density():
    prior = Prior(spike_weight=0.3, spike_scale=0.2, slab_scale=1.5)

    def density(x):
        return float(jnp.exp(prior.log_density(x))) / np.sqrt(2 * np.pi)

    assert quad(density, -12, 12, points=[0])[0] == pytest.approx(1, abs=1e-5)
    variance = quad(lambda x: x**2 * density(x), -15, 15, points=[0])[0]
    assert variance == pytest.approx(0.3 * 0.2**2 + 0.7 * 1.5**2, rel=1e-5)
    with pytest.raises(ValueError, match=r"below prior\.slab_scale"):
        Prior(spike_scale=1.0, slab_scale=0.5)


def test_bound_against_the_divergence_of_gaussians(folder):
    """With spike and slab the same, `log q - log p` has the mean KL(N(m, s^2) || N(0, t^2))."""
    t, m, s = 0.5, 0.3, 0.2
    same = Prior(spike_scale=t * (1 - 1e-6), slab_scale=t)
    vice = task(folder, prior=same, seeds=200)
    shape = (N, 200, 4)
    params = {"mean": jnp.full(shape, m), "log_scale": jnp.full(shape, np.log(s))}
    batch = {"triplets": vice.split[0][:1]}
    found = vice.loss(params, batch, Rngs(jax.random.key(0), jnp.zeros((), jnp.int32)))
    excess = (found["bound"].total - found["nll"].total) * len(vice.split[0])
    expected = np.log(t / s) + (s**2 + m**2) / (2 * t**2) - 0.5
    spread = np.std(excess) / np.sqrt(200)
    assert abs(excess.mean() - N * 4 * expected) < 4 * spread
    assert 4 * spread < 0.05 * N * 4 * expected


def test_likelihood_of_a_sure_embedding(folder, truth):
    vice = task(folder, seeds=1, dimensions=3)
    params = {"mean": jnp.asarray(truth)[:, None], "log_scale": jnp.full((N, 1, 3), -20.0)}
    triplets = vice.split[0]
    found = vice.loss(
        params, {"triplets": triplets}, Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))
    )
    s = truth @ truth.T
    i, j, k = triplets.T
    odds = np.exp([s[i, j], s[i, k], s[j, k]])
    np.testing.assert_allclose(
        found["nll"].compute(), [-np.log(odds[0] / odds.sum(0)).mean()], rtol=1e-5
    )


def test_negative_coordinates_count_as_zero(folder):
    vice = task(folder, seeds=1, dimensions=1)
    params = {"mean": jnp.full((N, 1, 1), -9.0), "log_scale": jnp.full((N, 1, 1), -5.0)}
    found = vice.loss(
        params, {"triplets": vice.split[0]}, Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))
    )
    np.testing.assert_allclose(found["nll"].compute(), np.log(3), rtol=1e-6)


def test_a_seed_does_not_depend_on_those_beside_it(folder):
    rngs = Rngs(jax.random.key(3), jnp.zeros((), jnp.int32))
    numbers = []
    for seeds in (1, 3):
        vice = task(folder, seeds=seeds)
        params = vice.init(jax.random.key(0))
        found = vice.loss(params, {"triplets": vice.split[0][:300]}, rngs)
        numbers.append(float(found["bound"].compute()[0]))
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    assert params["mean"][:, 0].tolist() != params["mean"][:, 1].tolist()


def test_split(folder, tmp_path):
    vice = task(folder)
    fit, held_out = vice.split
    sets = [set(judgments.unordered(part).tolist()) for part in (fit, held_out)]
    assert not sets[0] & sets[1]
    assert len(held_out) == pytest.approx(0.1 * (len(fit) + len(held_out)), rel=0.3)
    np.save(tmp_path / "unseen.npy", np.array([[2, 0, 1], [5, 6, 7]]))
    unseen = task(folder, leave_out=(str(tmp_path / "unseen.npy"),))
    left = {tuple(sorted(row)) for part in unseen.split for row in part.tolist()}
    assert len(left) == 816 - 2
    assert not {(0, 1, 2), (5, 6, 7)} & left
    with pytest.raises(ValueError, match="held_out must lie in"):
        task(folder, held_out=1.0)


def test_pruning():
    """Dimensions stay by the count of objects that are surely positive, largest first."""
    mean = np.zeros((10, 4), np.float32)
    mean[:5, 0] = 1.0  # five sure objects
    mean[:4, 1] = 9.0  # four: too few
    mean[:, 2] = 0.5  # all, but not sure: 0.5 at a scale of 1
    mean[:, 3] = 5.0
    scale = np.full((10, 4), 0.1, np.float32)
    scale[:, 2] = 1.0
    embedding = Embedding(mean=mean, scale=scale, names=np.arange(10).astype(str))
    np.testing.assert_array_equal(embedding.pruned().mean, mean[:, [3, 0]])
    np.testing.assert_array_equal(embedding.pruned(objects=4).mean, mean[:, [3, 1, 0]])
    with pytest.raises(ValueError, match="no dimension is left"):
        embedding.pruned(objects=11)


def test_soft_choices(truth):
    names = np.arange(N).astype(str)
    triplets = np.array([[0, 1, 6], [0, 6, 12]])
    sure = Embedding(mean=truth, scale=0 * truth, names=names)
    found = soft_choices([sure], triplets, samples=3)
    expected = jax.nn.softmax(judgments.pair_logits(truth, triplets))
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-3)
    # Two embeddings that contradict each other: their mean, and half their difference.
    other = Embedding(mean=np.roll(truth, 1, 0), scale=0 * truth, names=names)
    both = soft_choices([sure, other], triplets, samples=2)
    second = jax.nn.softmax(judgments.pair_logits(other.mean, triplets))
    np.testing.assert_allclose(both.probabilities, (expected + second) / 2, rtol=1e-5)
    np.testing.assert_allclose(both.deviation, np.abs(expected - second) / 2, atol=1e-3)
    unsure = dataclasses.replace(sure, scale=np.full_like(truth, 0.5))
    vague = soft_choices([unsure], triplets, samples=200)
    assert vague.deviation[0].min() > 0.01
    assert vague.probabilities[0, 0] < found.probabilities[0, 0]


def test_agreement(truth):
    names = np.arange(N).astype(str)
    shuffled = Embedding(mean=truth[:, [2, 0, 1]], scale=0 * truth, names=names)
    same = agreement([Embedding(mean=truth, scale=0 * truth, names=names), shuffled])
    assert same == pytest.approx({"dimension": 1, "dimensions above 0.8": 1, "similarities": 1})
    noise = np.random.default_rng(0).random((N, 3))
    assert best_matches(truth, noise).max() < 0.8


def test_command(folder, truth, tmp_path, capsys):
    """The best seed recovers the truth; a second call resumes and changes nothing."""
    arguments = command.Arguments(
        triplets=folder / "human.npz",
        names=folder / "names.txt",
        out=tmp_path,
        seeds=4,
        dimensions=6,
        prior=Prior(spike_scale=0.25, slab_scale=1.0),
        steps=600,
        batch_size=512,
        learning_rate=0.05,
        eval_every=100,
        samples=10,
        held_out=0.2,
    )
    best = command.run(arguments)
    document = json.loads((tmp_path / "vice.json").read_text())
    row = document["seeds"][document["best"]]
    assert row["dimensions"] == 3
    assert best_matches(truth, best.values).min() > 0.95
    held_out = command.experiment(arguments).task.split[1]
    logits = judgments.pair_logits(truth, held_out)
    entropy = float(-jax.nn.log_softmax(logits)[:, 0].mean())
    best_two = np.sort(logits, 1)[:, 1:]
    clear = np.ptp(best_two, 1) > 0.5  # the others are guesses, for the truth as well
    assert clear.sum() > 200
    found = judgments.pair_logits(best.values, held_out)
    assert (np.argmax(found, 1) == np.argmax(logits, 1))[clear].mean() > 0.98
    for found in (row, document["all seeds"]):
        assert found["nll, posterior mean of p"] < entropy + 0.02
    np.testing.assert_array_equal(read_values(tmp_path / "embedding.npz", best.names), best.values)
    with np.load(tmp_path / "choices.npz") as file:
        soft = SoftChoices(**file)
    assert len(soft.triplets) == 4 * 816
    np.testing.assert_allclose(soft.probabilities.sum(1), 1, rtol=1e-5)
    for name in ("dimensions.png", "convergence.png", "seeds/0.npz", "seeds/3.npz"):
        assert (tmp_path / name).stat().st_size > 0
    capsys.readouterr()
    command.run(arguments)
    assert "step" not in capsys.readouterr().err  # nothing was trained
    assert json.loads((tmp_path / "vice.json").read_text())["seeds"] == document["seeds"]


def test_bad_embedding_files(tmp_path):
    good = {"mean": np.ones((2, 3)), "scale": np.ones((2, 3)), "names": np.array(["a", "b"])}
    for change, problem in (
        ({"scale": np.ones((2, 2))}, "do not fit"),
        ({"scale": -np.ones((2, 3))}, "negative"),
        ({"mean": np.full((2, 3), np.inf)}, "mean: 2 of 2 rows"),
    ):
        np.savez(tmp_path / "e.npz", **good | change)
        with pytest.raises(ValueError, match=rf"e\.npz: .*{problem}"):
            Embedding.read(tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", **good)
    with pytest.raises(ValueError, match=r"e\.npz holds the same objects in another order"):
        read_values(tmp_path / "e.npz", ["b", "a"])
