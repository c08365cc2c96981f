"""The loss against its formula, over several chunkings; its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molt5_multitask.losses import LossConfig, cross_entropy, sequence_loss
from molt5_multitask.model import bind
from tests.molt5_multitask.t5_toy import assert_near, batch, jit, logits, params_of, tiny

ROWS, LENGTH, WIDTH, VOCAB, SPARE = 3, 7, 8, 20, 4


def problem(seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    table = rng.normal(size=(VOCAB + SPARE, WIDTH)).astype(np.float32)
    targets = rng.integers(0, VOCAB, (ROWS, LENGTH))
    weights = rng.integers(0, 3, (ROWS, LENGTH)).astype(np.float32)
    return tuple(map(jnp.asarray, (hidden, table, targets, weights)))


def formula(hidden, table, targets, weights, *, smoothing, z_loss):
    scores = hidden @ table[:VOCAB].T
    log_z = jax.nn.logsumexp(scores, axis=-1)
    log_p = scores - log_z[..., None]
    aim = (1 - smoothing) * jax.nn.one_hot(targets, VOCAB) + smoothing / VOCAB
    return jnp.sum(weights * (-jnp.sum(aim * log_p, axis=-1) + z_loss * log_z**2))


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 100])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.01)])
def test_loss_and_gradients_are_those_of_the_formula(chunk, smoothing, z_loss):
    hidden, table, targets, weights = problem()
    config = LossConfig(label_smoothing=smoothing, z_loss=z_loss, chunk=chunk)

    def ours(hidden, table):
        mean = cross_entropy(hidden, table, targets, weights, config=config, vocab_size=VOCAB)
        return 2.5 * mean.total, mean.weight

    def theirs(hidden, table):
        return 2.5 * formula(hidden, table, targets, weights, smoothing=smoothing, z_loss=z_loss)

    (value, weight), found = jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(
        hidden, table
    )
    expected = jit(jax.value_and_grad(theirs, argnums=(0, 1)))(hidden, table)
    assert weight == weights.sum()
    assert_near((value, found), expected)
    assert_near(jit(ours)(hidden, table)[0], value, rtol=1e-6)


def test_far_logits_stay_finite():
    hidden, table, targets, weights = problem()
    mean = jit(cross_entropy, static_argnames=("config", "vocab_size"))(
        1e4 * hidden, table, targets, weights, config=LossConfig(), vocab_size=VOCAB
    )
    assert np.isfinite(mean.total)
    assert mean.total > 1e4


def test_bfloat16_sums_in_float32():
    hidden, table, targets, weights = (
        jnp.asarray(x, jnp.bfloat16 if x.dtype == np.float32 else None) for x in problem()
    )
    rounded = [np.asarray(x, np.float32) for x in (hidden, table)]

    def loss(hidden, table):
        return cross_entropy(hidden, table, targets, weights, config=LossConfig(chunk=2)).total

    run = jit(jax.value_and_grad(loss, argnums=(0, 1)))
    found = run(hidden, table)
    assert found[0].dtype == jnp.float32
    assert {g.dtype for g in found[1]} == {jnp.dtype(jnp.bfloat16)}
    expected = run(*rounded)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert_near(jax.tree.map(np.float32, found[1]), expected[1], rtol=2e-2)


def test_chunks_never_hold_all_logits():
    rows, length, width, vocab = 4, 64, 16, 4096

    def temporary(chunk):
        def loss(hidden, table, targets):
            weights = jnp.ones(targets.shape)
            return cross_entropy(
                hidden, table, targets, weights, config=LossConfig(chunk=chunk)
            ).total

        arguments = (
            jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
            jax.ShapeDtypeStruct((vocab, width), jnp.float32),
            jax.ShapeDtypeStruct((rows, length), jnp.int32),
        )
        compiled = jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * rows * length * vocab
    assert temporary(None) > whole
    assert temporary(4) < whole / 4


def test_padding_counts_only_where_asked():
    config = tiny("t5-tiny")
    params, rows = params_of(config), batch()
    targets, used = rows["targets"], rows["target_segments"] > 0
    assert not used.all()

    def nll(rows):
        log_p = jax.nn.log_softmax(logits(config, params, rows))
        return -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

    def loss(options):
        return jit(lambda params: sequence_loss(bind(config, params), rows, options))(params)

    mean = loss(LossConfig())
    assert mean.weight == used.sum()
    np.testing.assert_allclose(mean.total, nll(rows)[used].sum(), rtol=1e-5)
    # The published trainer: pads are targets like others, seen by the later ones.
    mean = loss(LossConfig(on_padding=True))
    assert mean.weight == used.size
    everywhere = {**rows, "target_segments": np.ones_like(rows["target_segments"])}
    np.testing.assert_allclose(mean.total, nll(everywhere).sum(), rtol=1e-5)


def test_bad_options_are_refused():
    for options in ({"label_smoothing": 1.0}, {"z_loss": -1.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            LossConfig(**options)
