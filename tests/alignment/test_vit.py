"""The vision transformer: sizes, tokens, pooling, numerics, devices, resampling."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.vit.model import ViTConfig, bind, init, preset
from alignment.vit.positions import cubic_weights, resample, resize_model
from common.flops import count_flops
from common.mesh import BATCH_AXES, MeshConfig, make_mesh, parameter_shardings
from common.perf import param_count
from common.tree import named_leaves

TINY = ("vit-tiny", "dinov2-reg-tiny", "clip-tiny", "siglip-tiny")


def abstract(config):
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


@functools.lru_cache
def lively(config):
    """Draw parameters, none of which is at a value that does nothing."""
    rng = np.random.default_rng(0)

    def value(name, shape):
        normal = rng.normal(size=shape).astype(np.float32)
        if name.endswith("kernel"):
            return 0.15 * normal
        return 1 + 0.1 * normal if name.endswith("scale") else 0.3 * normal

    shapes = abstract(config)
    leaves = [value(name, leaf.shape) for name, leaf in named_leaves(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def draw(config, count=4):
    shape = (count, config.image_size, config.image_size, 3)
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def features(config, params, images):
    return bind(config, params)(images)


@functools.partial(jax.jit, static_argnums=0)
def encode(config, params, images):
    return bind(config, params).encode(images)


@functools.partial(jax.jit, static_argnums=0)
def features_and_gradient(config, params, images):
    def loss(params):
        features = bind(config, params)(images.astype(jnp.float32))
        return jnp.sum(
            features * jnp.cos(jnp.arange(features.size).reshape(features.shape))
        ), features

    (_, features), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return features, gradient


def assert_near(found, expected, tolerance=1e-4):
    """Compare leaf by leaf; the gradient of the keys' bias is zero but for rounding."""
    largest = max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(expected))
    for (name, a), b in zip(named_leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(np.abs(np.asarray(b)).max(), 1e-2 * largest)
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * scale, name


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "vit-b16": 85_798_656,
        "dinov2-b14": 86_580_480 - 768,  # without the mask token of its training
        "clip-b32": 87_849_216,
        "siglip-b16": 92_884_224,
        "siglip-so400m14-384": 428_225_600,
    }.items(),
)
def test_presets_have_the_published_sizes(name, count):
    assert param_count(abstract(preset(name))) == count


@pytest.mark.parametrize("name", [*TINY, "vit-s16", "siglip-so400m14-384"])
def test_sharding_rules_split_every_matrix(name):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = preset(name)
    params = abstract(config)
    shardings = parameter_shardings(config.sharding_rules(), params, mesh)
    for (parameter, leaf), sharding in zip(
        named_leaves(params), jax.tree.leaves(shardings), strict=True
    ):
        parts = leaf.size // math.prod(sharding.shard_shape(leaf.shape))
        wide = parameter.endswith("kernel")
        expected = 2 if parameter == "patch/kernel" else 4 if wide else 1
        assert parts == expected, parameter


@pytest.mark.parametrize("name", ["clip-tiny", "siglip-tiny"])
def test_eight_devices_give_the_features_and_gradient_of_one(name):
    config = preset(name)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params, images = lively(config), draw(config, 8)
    expected = features_and_gradient(config, params, images)
    found = features_and_gradient(
        config,
        jax.device_put(params, parameter_shardings(config.sharding_rules(), params, mesh)),
        jax.device_put(images, jax.NamedSharding(mesh, jax.P(BATCH_AXES))),
    )
    assert_near(found, expected)


@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": "full"}, {"remat": "dots"}])
def test_how_blocks_are_run_changes_nothing(changes):
    config = preset("dinov2-reg-tiny")
    params, images = lively(config), draw(config)
    expected = features_and_gradient(config, params, images)
    found = features_and_gradient(dataclasses.replace(config, **changes), params, images)
    assert_near(found, expected)


@pytest.mark.parametrize("name", ["clip-tiny", "siglip-tiny"])
def test_bfloat16_is_near(name):
    config = preset(name)
    params, images = lively(config), draw(config)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    found = features(config, half, images)
    assert found.dtype == jnp.bfloat16
    expected = features(config, params, images)
    assert np.abs(np.asarray(found, np.float32) - expected).max() < 0.05 * np.abs(expected).max()


def test_a_patch_is_the_linear_map_of_its_pixels():
    """By a model without blocks' effect: their outputs are scaled to zero."""
    config = preset("dinov2-tiny", layer_scale=0.0, image_size=19, layers=1)  # two patches and 3
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    images = draw(config, 2)
    found = jax.jit(lambda params: bind(config, params).tokens(images))(params)
    assert found.shape == (2, 4, 64)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cut = images[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        x = np.tensordot(cut, params["patch"]["kernel"], 3) + params["patch"]["bias"]
        x = x + params["positions"][1 + 2 * row + column]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
        np.testing.assert_allclose(found[:, 2 * row + column], x, rtol=1e-3, atol=1e-4)


def test_mean_pooling_leaves_class_and_registers_out():
    config = preset("dinov2-reg-tiny", pool="mean")
    params, images = lively(config), draw(config)
    encoded = encode(config, params, images)
    assert encoded.shape == (4, 1 + 4 + 16, 64)
    pooled = features(config, params, images)
    np.testing.assert_allclose(pooled, encoded[:, 5:].mean(1), rtol=1e-4, atol=1e-5)


def test_attention_pooling_does_not_see_the_order_of_tokens():
    config = preset("siglip-tiny")
    model = bind(config, lively(config))
    encoded = encode(config, lively(config), draw(config))
    shuffled = encoded[:, np.random.default_rng(0).permutation(16)]
    np.testing.assert_allclose(model.map_pool(shuffled), model.map_pool(encoded), atol=1e-5)


def test_flops_are_those_of_the_compiled_products():
    """XLA counts some more: norms, softmax, activations; unrolled, as it counts a scan once."""
    config = preset("siglip-tiny", scan=False, width=256, mlp=1024, heads=2, patch=4)
    params = abstract(config)
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)

    def loss(params, images):
        return jnp.sum(bind(config, params)(images))

    analysis = jax.jit(jax.grad(loss)).lower(params, images).compile().cost_analysis()
    counted = count_flops(jax.grad(loss), params, images)
    assert 1 < analysis["flops"] / counted < 1.05
    d, mlp, patches = 256, 1024, 64
    block = patches * (4 * d * d + 2 * d * mlp) + 2 * patches**2 * d
    pool = 2 * d * d * (1 + patches) + 2 * patches * d + 2 * d * mlp
    patch = patches * 3 * 4**2 * d
    forward = patch + config.layers * block + pool
    # The pixels need no gradient: the patches' map costs two thirds.
    assert counted == pytest.approx(2 * 8 * (3 * forward - patch), rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "clas"}, "did you mean 'class'"),
        ({"activation": "gelu-tanh"}, "did you mean 'gelu_tanh'"),
        ({"heads": 5}, "no multiple of model.heads = 5"),
        ({"class_token": False}, "needs model.class_token"),
        ({"layers": 0}, "model.layers = 0 must be an integer >= 1"),
        ({"image_size": 8}, "holds no patch of 16"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**changes)


def test_images_of_another_size_are_refused():
    config = preset("vit-tiny")
    model = bind(config, lively(config))
    with pytest.raises(ValueError, match=r"shape \(24, 32, 3\) do not fit model.image_size = 32"):
        model(jnp.zeros((1, 24, 32, 3)))


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'siglip-b16'"):
        preset("siglipb16")


def test_cubic_weights_are_keys_kernel():
    """Twice as many points lie a quarter beside the old ones."""
    weights = cubic_weights(8, 16)
    a, x = -0.75, 0.25
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (2 - x) ** 3 - 5 * a * (2 - x) ** 2 + 8 * a * (2 - x) - 4 * a
    assert weights[7, 3] == pytest.approx(near, abs=1e-6)
    assert weights[7, 5] == pytest.approx(far, abs=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(cubic_weights(5, 5), np.eye(5))


def test_linear_resampling_is_big_visions():
    table = np.random.default_rng(0).normal(size=(14, 14, 3)).astype(np.float32)
    found = resample(table, 27, "linear")  # the old points, and one between any two of them
    np.testing.assert_allclose(found[::2, ::2], table, atol=1e-5)
    np.testing.assert_allclose(found[1::2, ::2], (table[:-1] + table[1:]) / 2, atol=1e-5)
    corners = np.ix_([0, -1], [0, -1])
    np.testing.assert_allclose(resample(table, 9, "linear")[corners], table[corners], atol=1e-5)


def test_a_resized_model_keeps_class_position_and_smooth_tables():
    config = preset("clip-tiny")
    params = lively(config)
    ramp = np.linspace(0, 1, 4)[:, None, None] + np.zeros((4, 4, 64))
    positions = np.concatenate([np.full((1, 64), 7.0), ramp.reshape(16, 64)]).astype(np.float32)
    params = {**params, "positions": positions}
    new, resized = resize_model(config, params, 80, method="bilinear_antialias")
    assert new == dataclasses.replace(config, image_size=80)
    assert resized["positions"].shape == (101, 64)
    np.testing.assert_array_equal(resized["positions"][0], 7)
    table = resized["positions"][1:].reshape(10, 10, 64)
    np.testing.assert_allclose(table[:, :1] + 0 * table, table, atol=1e-6)  # constant along a row
    inner = table[2:-2, 0, 0]
    np.testing.assert_allclose(np.diff(inner), 4 / 10 / 3, atol=1e-5)
    assert features(new, resized, draw(new)).shape == (4, 48)
    same, untouched = resize_model(config, params, 33)  # no more patches than before
    assert same.image_size == 33
    assert untouched is params
