"""The teacher's objective against the specification's numbers, and its fit against known truth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.judgments import pair_logits
from alignment.teacher.choices import ExpectedChoices, GivenChoices
from alignment.teacher.ensemble import average_maps
from alignment.teacher.objective import (
    cross_entropy,
    distance_to_scaled_identity,
    local_loss,
)

X = np.array([[1.0, 0], [0, 1], [1, 1], [-1, 2]])
W = np.array([[0.2, 0.1], [0, 0.4]])
B = np.array([0.05, -0.05])
TRIPLETS = np.array([[0, 2, 1], [1, 3, 0]])
Q = np.array([[0.6, 0.3, 0.1], [0.5, 0.25, 0.25]])


@pytest.fixture
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("_double_precision")
def test_golden_values():
    """Specification, section 3.5."""
    logits = pair_logits(X @ W + B, TRIPLETS)
    np.testing.assert_allclose(logits, [[0.085, 0.03, 0.17], [0.22, 0.03, -0.005]], atol=1e-15)
    p = [[0.3294673, 0.3118359, 0.3586967], [0.3808834, 0.3149750, 0.3041416]]
    np.testing.assert_allclose(jax.nn.softmax(logits), p, atol=5e-8)
    soft = cross_entropy(logits, Q)
    np.testing.assert_allclose(soft, [1.1182780, 1.0690120], atol=5e-8)
    entropy = -(Q * np.log(Q)).sum(1)
    np.testing.assert_allclose(soft - entropy, [0.2203323, 0.0292912], atol=5e-8)
    hard = cross_entropy(logits, np.array([[1, 0, 0]] * 2))
    np.testing.assert_allclose(hard, [1.1102780, 0.9652620], atol=5e-8)
    np.testing.assert_allclose(distance_to_scaled_identity(W), 0.03, atol=1e-15)


@pytest.mark.usefixtures("_double_precision")
def test_scale_of_the_identity_takes_part_in_the_gradient():
    """Stretching W along the identity costs nothing; any other direction of W - mI does."""
    gradient = jax.grad(distance_to_scaled_identity)(jnp.asarray(W))
    np.testing.assert_allclose(gradient, 2 * (W - 0.3 * np.eye(2)), atol=1e-15)


@pytest.mark.usefixtures("_double_precision")
def test_local_loss():
    """Against the sums of its definition, loop by loop."""
    rng = np.random.default_rng(0)
    x, y, t = rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), 0.3

    def shares(z, i):
        cosines = {
            j: z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for j in range(4) if j != i
        }
        total = sum(np.exp(c / t) for c in cosines.values())
        return {j: np.exp(c / t) / total for j, c in cosines.items()}

    expected = -np.mean(
        [sum(p * np.log(shares(y, i)[j]) for j, p in shares(x, i).items()) for i in range(4)]
    )
    np.testing.assert_allclose(local_loss(x, y, t), expected, rtol=1e-12)
    # Neighbourhoods that stay as they are cannot be improved on.
    flow = jax.grad(lambda w: local_loss(x, x @ w, t))(jnp.eye(3))
    np.testing.assert_allclose(flow, 0, atol=1e-12)
    assert np.isfinite(jax.grad(lambda z: local_loss(x, z, t))(jnp.zeros((4, 2)))).all()


def test_average_of_maps():
    rng = np.random.default_rng(0)
    x, weights, bias = rng.normal(size=(9, 4)), rng.normal(size=(3, 4, 4)), rng.normal(size=(3, 4))

    def similarities(w, b):
        return (x @ w + b) @ (x @ w + b).T

    one = similarities(*average_maps(weights[:1], bias[:1]))
    np.testing.assert_allclose(one, similarities(weights[0], bias[0]), rtol=1e-4, atol=1e-4)
    # Several maps need one dimension more than there is: without bias they fit.
    mean = np.mean([similarities(w, 0) for w in weights], 0)
    w, b = average_maps(weights, 0 * bias)
    np.testing.assert_allclose(similarities(w, b), mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(w, w.T)


def test_expected_choices():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(2, 9, 3))
    choices = ExpectedChoices.of(*embeddings)
    objects = np.array([1, 4, 5, 8])
    triplets, targets = choices.draw(rng, 4000, objects)
    # Each of the 24 ordered triplets is drawn, about equally often.
    drawn, counts = np.unique(triplets, axis=0, return_counts=True)
    assert sorted(map(tuple, drawn.tolist())) == sorted(itertools.permutations(objects.tolist(), 3))
    assert counts.min() > 100
    expected = [jax.nn.softmax(pair_logits(e, triplets)) for e in embeddings]
    np.testing.assert_allclose(targets, np.mean(expected, 0), rtol=1e-5)


def test_given_choices():
    triplets = np.array([[0, 1, 2], [2, 3, 1], [3, 4, 0], [4, 2, 1]], np.int32)
    choices = GivenChoices.hard(triplets, 5)
    inside = choices.among(np.array([False, True, True, True, True]))
    np.testing.assert_array_equal(inside.triplets, triplets[[1, 3]])
    drawn, targets = choices.draw(np.random.default_rng(0), 4, np.array([1, 2, 3, 4]))
    assert sorted(drawn.tolist()) == sorted(triplets[[1, 3, 1, 3]].tolist())
    np.testing.assert_array_equal(targets, [[1, 0, 0]] * 4)
    with pytest.raises(ValueError, match="none of 4 triplets lies within 3 objects"):
        choices.draw(np.random.default_rng(0), 4, np.array([0, 1, 4]))
