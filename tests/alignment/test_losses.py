"""The three losses against hand-computed values, and where naive formulas overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.judgments import correct
from alignment.losses import LossConfig, student_logits, triplet_loss

Z = np.array([[[1, 2, 3, 4], [2, 1, 0, -1], [0.5, 0.5, -0.5, 2]],
              [[10, 0, 0, 0], [9, 1, 0, 0], [0, 8, 6, 1]]], np.float32)  # fmt: skip
S = np.array([[3, 1, 0.5], [2, -1, 4]], np.float32)
GOLDEN = {
    (100.0, False): {
        "kl": [0.52819249, 0.93752238],
        "jsd": [0.13402244, 0.23491172],
        "contrastive": [1.12437735, 0.61356341],
    },
    (1.0, False): {
        "kl": [6.55729775, 71.93088304],
        "jsd": [0.5103433, 0.50414709],
        "contrastive": [8.00053879, 0],
    },
    (1.0, True): {
        "kl": [0.69618878, 0.97319087],
        "jsd": [0.17002156, 0.24123757],
        "contrastive": [1.352002, 0.57339653],
    },
}


def both(config):
    """Both triplets at once, their six images in one array."""
    triplets = jnp.arange(6).reshape(2, 3)
    return student_logits(jnp.asarray(Z.reshape(6, 4)), triplets, config)


def test_logits_are_dot_products_over_tau():
    logits = both(LossConfig(tau=2.0))
    np.testing.assert_array_equal(logits, np.array([[0, 8, -0.5], [90, 0, 8]]) / 2)


@pytest.mark.parametrize(("tau", "normalize"), GOLDEN)
@pytest.mark.parametrize("name", ["kl", "jsd", "contrastive"])
def test_golden(tau, normalize, name):
    config = LossConfig(name=name, tau=tau, normalize=normalize)
    found = triplet_loss(both(config), jnp.asarray(S), config)
    np.testing.assert_allclose(found, GOLDEN[tau, normalize][name], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["kl", "jsd", "contrastive"])
def test_loss_and_gradient_are_finite_where_probabilities_underflow(name):
    config = LossConfig(name=name, tau=1.0)
    logits = jnp.array([[0.0, 500.0, -500.0], [500.0, 0.0, -500.0]])
    similarities = jnp.array([[500.0, 0.0, -500.0], [500.0, 0.0, -500.0]])

    def total(logits):
        return triplet_loss(logits, similarities, config).sum()

    loss, grad = jax.value_and_grad(total)(logits)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()
    expected = {"kl": 500.0, "jsd": np.log(2), "contrastive": 500.0}[name]
    assert loss == pytest.approx(expected, rel=1e-6)  # the second triplet agrees: no loss


def test_equal_outputs_are_never_correct():
    assert not correct(jnp.ones((1, 3))).any()
    last = jnp.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0], [2.0, 2.0, 1.0]])
    expected = np.argmax(np.asarray(last)[:, ::-1], -1) == 2  # the published order of the pairs
    np.testing.assert_array_equal(correct(last), expected)


@pytest.mark.parametrize(
    ("settings", "message"), [({"name": "js"}, "did you mean 'jsd'"), ({"tau": 0.0}, "positive")]
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)
