"""The T5: sizes, positions, masks, packing, decoding step by step, numerics."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.flops import count_flops
from common.mesh import BATCH_AXES, MeshConfig, make_mesh, parameter_shardings
from common.perf import param_count
from common.rng import Rngs
from common.tree import named_leaves
from molt5_multitask.blocks import position_buckets
from molt5_multitask.losses import LossConfig, sequence_loss
from molt5_multitask.model import PRESETS, T5Config, bind, init, preset, shift_right
from tests.molt5_multitask.t5_toy import (
    VERSIONS,
    VOCAB,
    assert_near,
    batch,
    jit,
    logits,
    loss_and_gradient,
    params_of,
    row,
    tiny,
)

RNGS = Rngs(jax.random.key(3), jnp.int32(0))


def abstract(config):
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "t5-small": 60_506_624,
        "t5-base": 222_903_552,
        "t5-v1_1-small": 76_961_152,
        "t5-v1_1-base": 247_577_856,
        "t5-v1_1-large": 783_150_080,
    }.items(),
)
def test_presets_have_the_published_sizes(name, count):
    assert param_count(abstract(preset(name))) == count


def test_buckets_of_relative_positions():
    distances = [-200, -128, -127, -100, -64, -32, -20, -16, -12, -9, -8, -7, -1]
    distances += [0, 1, 7, 8, 9, 12, 16, 20, 32, 64, 100, 127, 128, 200]
    encoder = [15, 15, 15, 15, 14, 12, 10, 10, 9, 8, 8, 7, 1]
    encoder += [0, 17, 23, 24, 24, 25, 26, 26, 28, 30, 31, 31, 31, 31]
    decoder = [31, 31, 31, 30, 26, 21, 17, 16, 12, 9, 8, 7, 1] + [0] * 14
    for bidirectional, expected in ((True, encoder), (False, decoder)):
        found = position_buckets(
            np.array(distances), buckets=32, max_distance=128, bidirectional=bidirectional
        )
        assert found.tolist() == expected


def test_initial_standard_deviations():
    config = preset("t5-v1_1-tiny", encoder_layers=8, decoder_layers=8, d_kv=32, vocab_size=2000)
    params = jit(init, static_argnums=0)(config, jax.random.key(0))
    d, inner = config.d_model, config.heads * config.d_kv
    for parameter, leaf in named_leaves(params):
        expected = {
            "query": (d * config.d_kv) ** -0.5,
            "key": d**-0.5,
            "value": d**-0.5,
            "out": inner**-0.5,
            "wi": d**-0.5,
            "gate": d**-0.5,
            "wo": config.d_ff**-0.5,
            "relative_bias": d**-0.5,
            "embedding": 1.0,
            "lm_head": 1.0,
        }.get(parameter.split("/")[-2])
        if "blocks" in parameter and expected is not None:
            assert not np.allclose(leaf[0], leaf[1]), parameter
        if expected is None:
            assert parameter.endswith("norm/scale")
            np.testing.assert_array_equal(leaf, 1.0)
        else:
            assert abs(leaf.std() / expected - 1) < 4 / math.sqrt(2 * leaf.size), parameter
            assert abs(leaf.mean()) < 4 * expected / math.sqrt(leaf.size), parameter
    assert not np.allclose(params["embedding"]["table"], params["lm_head"]["table"])


@pytest.mark.parametrize("name", PRESETS)
def test_sharding_rules_split_every_matrix(name):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = preset(name, heads=4)
    params = abstract(config)
    shardings = parameter_shardings(config.sharding_rules(), params, mesh)
    for (parameter, leaf), sharding in zip(
        named_leaves(params), jax.tree.leaves(shardings), strict=True
    ):
        parts = leaf.size // math.prod(sharding.shard_shape(leaf.shape))
        expected = 2 if "relative_bias" in parameter else 1 if "norm" in parameter else 4
        assert parts == expected, parameter


def test_eight_devices_give_the_loss_and_gradient_of_one():
    config = tiny("t5-tiny", heads=4)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params, rows = params_of(config), batch(rows=8)
    options = LossConfig(chunk=3)
    expected = loss_and_gradient(config, params, rows, options=options)
    shardings = parameter_shardings(config.sharding_rules(), params, mesh)
    found = loss_and_gradient(
        config,
        jax.device_put(params, shardings),
        jax.device_put(rows, jax.NamedSharding(mesh, jax.P(BATCH_AXES))),
        options=options,
    )
    assert_near(found, expected)


def test_decoder_inputs_are_shifted_within_segments():
    targets = jnp.array([[5, 6, 1, 7, 1, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0]])
    assert shift_right(targets, segments).tolist() == [[0, 5, 6, 0, 7, 0, 0]]


@pytest.mark.parametrize("name", VERSIONS)
def test_packed_examples_do_not_see_each_other(name):
    """Logits of packed rows are those of the examples apart, and of other lengths of padding."""
    config = tiny(name)
    params = params_of(config)
    rng = np.random.default_rng(1)
    inputs = [rng.integers(2, VOCAB, n).tolist() for n in (5, 3, 6)]
    targets = [rng.integers(2, VOCAB, n).tolist() for n in (4, 7, 3)]
    packed = logits(config, params, row(inputs, targets, length=16))[0]
    start = 0
    for i, t in zip(inputs, targets, strict=True):
        alone = logits(config, params, row([i], [t], length=8))[0]
        here = packed[start : start + len(t)]
        assert_near(here, alone[: len(t)])
        start += len(t)


def test_packed_loss_is_the_sum_of_the_examples():
    config = tiny("t5-tiny")
    params = params_of(config)
    inputs, targets = [[5, 6, 7, 1], [8, 1]], [[9, 1], [10, 11, 12, 1]]
    packed = loss_and_gradient(config, params, row(inputs, targets, length=8))
    one, two = (
        loss_and_gradient(config, params, row([i], [t], length=8))
        for i, t in zip(inputs, targets, strict=True)
    )
    assert_near(packed, jax.tree.map(jnp.add, one, two))


def test_positions_see_what_they_should():
    config = tiny("t5-tiny")
    params = params_of(config)
    rows = row([[5, 6, 7, 8, 9, 1]], [[10, 11, 12, 13, 1]], length=8)
    before = logits(config, params, rows)[0]

    def seen(name, position):
        ids = rows[name].copy()
        ids[0, position] = 20
        after = logits(config, params, {**rows, name: ids})[0]
        return np.flatnonzero(np.abs(after - before).max(-1)[:5] > 1e-3).tolist()

    # A target is an input one later: what is predicted up to it does not depend on it.
    assert seen("targets", 2) == [3, 4]
    assert seen("inputs", 0) == [0, 1, 2, 3, 4]
    assert seen("inputs", 6) == []


@pytest.mark.parametrize("name", VERSIONS)
def test_decoding_step_by_step_equals_decoding_at_once(name):
    """Also after beams have been exchanged, for beams of one example over one encoder result."""
    config = tiny(name)
    params, rows = params_of(config), batch(rows=2)
    beams, steps = 3, 6
    segments = jnp.asarray(rows["input_segments"])

    @jit
    def start(params):
        model = bind(config, params)
        encoded = model.encode(rows["inputs"], segments)
        cache = model.init_cache(encoded, segments, beams=beams, max_tokens=steps)
        return model.step_layers(), encoded, cache

    @jit
    def step(params, layers, cache, tokens):
        return bind(config, params).decode_step(layers, cache, tokens)

    @jit
    def at_once(params, tokens, encoded):
        model = bind(config, params)
        return model.logits(
            model.decode(
                tokens,
                jnp.ones_like(tokens),
                encoded=jnp.repeat(encoded, beams, axis=0),
                input_segments=jnp.repeat(segments, beams, axis=0),
            )
        )

    layers, encoded, cache = start(params)
    rng = np.random.default_rng(0)
    history = np.zeros((2, beams, steps), np.int32)
    for t in range(steps):
        found, cache = step(params, layers, cache, history[:, :, t])
        expected = at_once(params, history.reshape(2 * beams, steps), encoded)[:, t]
        assert_near(found.reshape(expected.shape), expected)
        order = rng.integers(0, beams, (2, beams))
        cache = cache.reorder(jnp.asarray(order))
        history = np.take_along_axis(history, order[..., None], axis=1)
        if t + 1 < steps:
            history[:, :, t + 1] = rng.integers(2, VOCAB, (2, beams))
    assert step._cache_size() == 1


def test_scan_and_remat_change_the_memory_only():
    """Neither values nor gradients, dropout included: its draws belong to the layers."""
    base = tiny("t5-v1_1-tiny", dropout=0.2, encoder_layers=4)
    params, rows = params_of(base), batch(rows=8, inputs=24)
    found, memory = {}, {}
    for changes in ({}, {"scan": False}, {"remat": "dots"}, {"remat": "full"}):
        config = dataclasses.replace(base, **changes)

        def loss(params, config=config):
            encoded = bind(config, params).encode(rows["inputs"], rows["input_segments"], RNGS)
            return jnp.sum(encoded**3)

        name = "".join(map(str, changes.values()))
        compiled = jit(jax.value_and_grad(loss)).lower(params).compile()
        found[name] = compiled(params)
        memory[name] = compiled.memory_analysis().temp_size_in_bytes
    loss, gradient = found.pop("")
    for other_loss, other_gradient in found.values():
        assert_near(other_loss, loss)
        assert_near(other_gradient["encoder"], gradient["encoder"])
    assert memory["full"] < memory["dots"] < memory[""]


@pytest.mark.parametrize("shared", [False, True])
def test_dropout_is_drawn_by_step_and_only_where_asked(shared):
    config = tiny("t5-tiny", dropout=0.3, dropout_shared=shared)
    params, rows = params_of(config), batch()
    run = jit(lambda rngs: bind(config, params)(rows, rngs))
    once = run(RNGS)
    np.testing.assert_array_equal(run(RNGS), once)
    assert not np.allclose(run(dataclasses.replace(RNGS, step=jnp.int32(1))), once)
    assert not np.allclose(run(dataclasses.replace(RNGS, microbatch=1)), once)
    assert not np.allclose(run(None), once)
    # The last dropout zeroes whole features where it is shared, else entries.
    zero = np.asarray(once) == 0
    assert 0.2 < zero.mean() < 0.4
    assert (zero == zero[:, :1]).all() == shared


@pytest.mark.parametrize("name", VERSIONS)
def test_bfloat16_is_near_float32(name):
    config = tiny(name)
    params, rows = params_of(config), batch()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    hidden = jax.eval_shape(lambda: bind(config, half)(rows))
    assert hidden.dtype == jnp.bfloat16
    found = logits(config, half, rows)
    assert found.dtype == np.float32
    exact = logits(config, jax.tree.map(lambda x: x.astype(jnp.float32), half), rows)
    error = np.abs(found - exact)[rows["target_segments"] > 0]
    assert 1e-5 < error.max() / np.abs(exact).max() < 0.03
    loss = jax.eval_shape(lambda: sequence_loss(bind(config, half), rows, LossConfig()))
    assert loss.total.dtype == jnp.float32


def test_output_is_scaled_only_in_version_1_0():
    config = tiny("t5-tiny")
    params, rows = params_of(config), batch()
    scaled = logits(config, params, rows)
    plain = logits(tiny("t5-tiny", scale_output=False), params, rows)
    assert_near(scaled * 32**0.5, plain)
    assert preset("t5-base").scale_output
    assert not preset("t5-v1_1-base").scale_output


@pytest.mark.parametrize("name", VERSIONS)
def test_spare_rows_are_never_predicted(name):
    config = tiny(name, vocab_multiple=16)
    assert config.vocab_rows == 64
    params, rows = params_of(config), batch()
    tables = ("embedding", "lm_head")
    cut = {
        key: {"table": child["table"][:VOCAB]} if key in tables else child
        for key, child in params.items()
    }
    padded, exact = logits(config, params, rows), logits(tiny(name), cut, rows)
    assert_near(padded[..., :VOCAB], exact)
    assert (padded[..., VOCAB:] <= -1e9).all()


@pytest.mark.parametrize("name", VERSIONS)
def test_flops_count_the_matrix_products(name):
    config = tiny(name, scan=False, dropout=0.0, vocab_multiple=16)
    rows = batch(rows=2, inputs=10, targets=6)

    def loss(params):
        return sequence_loss(bind(config, params), rows, LossConfig(chunk=None)).total

    inner, inputs, targets = config.heads * config.d_kv, 10, 6
    square = config.d_model * inner
    wide = (3 if config.feed_forward == "gated-gelu" else 2) * config.d_model * config.d_ff
    encoder = inputs * (4 * square + wide) + 2 * inner * inputs**2
    decoder = targets * (6 * square + wide) + inputs * 2 * square
    decoder += 2 * inner * (targets**2 + targets * inputs)
    output = targets * config.d_model * config.vocab_rows
    forward = config.encoder_layers * encoder + config.decoder_layers * decoder + output
    # Two rows, a product once forward and twice backward.
    assert count_flops(jax.grad(loss), abstract(config)) == 2 * 2 * 3 * forward


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"feed_forward": "gelu"}, "feed_forward"),
        ({"remat": "half"}, "remat"),
        ({"heads": 0}, "heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"buckets": 30}, "buckets"),
        ({"max_distance": 16}, "max_distance"),
    ],
)
def test_bad_configs_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        T5Config(**changes)


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 't5-v1_1-base'"):
        preset("t5-v1.1-base")
