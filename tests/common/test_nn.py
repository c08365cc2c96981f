"""The shared layers, and the exchange of weights."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from common.nn.attention import MultiHeadAttention, dot_product_attention
from common.nn.layers import Linear, RMSNorm, dropout, dropout_masks
from common.nn.weights import Entry, check_keys, export, load, open_safetensors, write_safetensors


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_linear_contracts_its_input_axes():
    layer = Linear((2, 3), (4, 5), stddev=0.5, bias=True, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(normal(1, 4, 5))
    x = jnp.asarray(normal(0, 7, 2, 3))
    expected = np.tensordot(x, layer.kernel[...], 2) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    assert Linear((2,), (3,), stddev=1.0, rngs=nnx.Rngs(0)).bias is None


def test_rms_norm_keeps_type_and_computes_in_float32():
    norm = RMSNorm(256, eps=1e-6)
    norm.scale[...] = jnp.asarray(1 + normal(0, 256) / 10)
    x = 300 * normal(1, 5, 256)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)
    expected = expected * np.asarray(norm.scale[...])
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5)
    # float16 squares of 300 overflow; the statistics must not see them.
    half = norm(jnp.asarray(x, jnp.float16))
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half, expected, rtol=3e-3, atol=1e-3)


def test_dropout_drops_the_rate_and_keeps_the_mean():
    (keep,) = dropout_masks(jax.random.key(0), 0.3, 4, (50_000,))
    y = np.asarray(dropout(jnp.ones((4, 50_000)), keep, 0.3))
    assert abs((y == 0).mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / y.size)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-4)


def test_dropout_masks_are_independent_and_shared_where_asked():
    keep = dropout_masks(jax.random.key(0), 0.5, 3, (101, 7), (1, 707), (101, 7))
    assert [k.shape for k in keep] == [(3, 101, 7), (3, 1, 707), (3, 101, 7)]
    flat = [np.asarray(k).reshape(3, -1) for k in keep]
    rows = np.concatenate(flat)  # nine masks of 707 entries, no two alike
    for a, b in itertools.combinations(rows, 2):
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / math.sqrt(707)
    assert dropout_masks(None, 0.5, 3, (2,), (3,)) == [None, None]
    assert dropout_masks(jax.random.key(0), 0.0, 3, (2,)) == [None]
    x = jnp.ones((3, 4))
    assert dropout(x, None, 0.5) is x


def test_attention_is_its_formula():
    query, key, value = normal(0, 2, 3, 4, 8), normal(1, 2, 3, 5, 8), normal(2, 2, 3, 5, 8)
    bias = normal(3, 1, 3, 4, 5)
    mask = np.random.default_rng(4).random((2, 1, 4, 5)) < 0.7
    mask[..., 0] = True
    arrays = jax.tree.map(jnp.asarray, (query, key, value, mask, bias))
    found = dot_product_attention(*arrays[:3], mask=arrays[3], bias=arrays[4])
    expected = np.zeros((2, 3, 4, 8))
    for b, h, q in itertools.product(range(2), range(3), range(4)):
        allowed = np.flatnonzero(mask[b, 0, q])
        scores = key[b, h, allowed] @ query[b, h, q] + bias[0, h, q, allowed]
        weights = np.exp(scores - scores.max())
        expected[b, h, q] = weights @ value[b, h, allowed] / weights.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_without_any_key_is_finite():
    query = jnp.asarray(normal(0, 1, 1, 2, 8))
    mask = jnp.zeros((1, 1, 2, 2), bool)
    assert np.isfinite(dot_product_attention(query, query, query, mask=mask)).all()


def test_attention_drops_weights():
    value = jnp.ones((1, 1, 4, 8))
    keep = jnp.array([True, False, True, True]).reshape(1, 1, 1, 4)
    zero = jnp.zeros((1, 1, 2, 8))
    y = dot_product_attention(zero, jnp.zeros_like(value), value, keep=keep, dropout_rate=0.25)
    np.testing.assert_allclose(y, 1.0, rtol=1e-5)  # 3 of 4 equal weights, each over 1 - 0.25


def test_projections_invert_each_other():
    """With orthogonal query and out kernels, merging the split heads gives the input back."""
    attention = MultiHeadAttention(
        6, heads=2, d_head=3, query_stddev=1.0, stddev=1.0, out_stddev=1.0, rngs=nnx.Rngs(0)
    )
    rotation, _ = np.linalg.qr(normal(0, 6, 6))
    attention.query.kernel[...] = jnp.asarray(rotation).reshape(6, 2, 3)
    attention.out.kernel[...] = jnp.asarray(rotation.T).reshape(2, 3, 6)
    x = jnp.asarray(normal(1, 4, 5, 6))
    assert attention.queries(x).shape == (4, 2, 5, 3)
    np.testing.assert_allclose(attention.merge(attention.queries(x)), x, atol=1e-5)


def test_shapes_and_types_are_checked_at_each_call():
    """By the hook of `tests/conftest.py`; without it, both masks would broadcast in silence."""
    x, keep = jnp.ones((4, 3)), jnp.ones((4, 1), bool)
    assert dropout(x, keep, 0.5).shape == (4, 3)
    for wrong in (keep[:1], keep.astype(jnp.float32)):
        with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'keep'"):
            dropout(x, wrong, 0.5)


@pytest.mark.usefixtures("unchecked_shapes")
def test_checks_can_be_switched_off_for_a_test():
    assert dropout(jnp.ones((4, 3)), jnp.ones((1, 1), bool), 0.5).shape == (4, 3)


ENTRIES = (
    Entry(name="blocks/kernel", keys=("0.w", "1.w"), shape=(6, 4), transpose=True, stacked=True),
    Entry(name="table", keys=("t",), shape=(5, 4)),
)
PARAMS = {"blocks": {"kernel": normal(0, 2, 4, 2, 3)}, "table": normal(1, 5, 4)}


def test_weights_come_back(tmp_path):
    tensors = export(ENTRIES, PARAMS)
    # y = x . kernel and torch's y = W x.
    x = normal(2, 4)
    expected = np.tensordot(x, PARAMS["blocks"]["kernel"][1], 1).ravel()
    np.testing.assert_allclose(tensors["1.w"] @ x, expected, rtol=1e-5)
    write_safetensors(tmp_path / "a.safetensors", tensors)
    stored = open_safetensors(tmp_path / "a.safetensors")
    assert stored["0.w"].shape == (6, 4)
    loaded = load(ENTRIES, stored, PARAMS)
    np.testing.assert_array_equal(loaded["blocks"]["kernel"], PARAMS["blocks"]["kernel"])
    np.testing.assert_array_equal(loaded["table"], PARAMS["table"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_low_precision_is_read_as_float32(tmp_path):
    table = PARAMS["table"].astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"t": table}, tmp_path / "a.safetensors")
    like = {"table": PARAMS["table"]}
    loaded = load(ENTRIES[1:], open_safetensors(tmp_path / "a.safetensors"), like)["table"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, table.astype(np.float32))


def test_several_files_are_one_checkpoint(tmp_path):
    tensors = export(ENTRIES, PARAMS)
    index = tmp_path / "model.safetensors.index.json"
    for name, keys in (("a.safetensors", ["0.w"]), ("b.safetensors", ["1.w", "t"])):
        safetensors.numpy.save_file({key: tensors[key] for key in keys}, tmp_path / name)
    files = {"0.w": "a.safetensors", "1.w": "b.safetensors", "t": "b.safetensors"}
    index.write_text(json.dumps({"weight_map": files}))
    loaded = load(ENTRIES, open_safetensors(index), PARAMS)
    np.testing.assert_array_equal(loaded["blocks"]["kernel"], PARAMS["blocks"]["kernel"])

    index.write_text(json.dumps({"weight_map": files | {"t": "a.safetensors"}}))
    with pytest.raises(ValueError, match=r"places t in a\.safetensors"):
        open_safetensors(index)
    index.write_text(json.dumps({"weight_map": files | {"t": "../b.safetensors"}}))
    with pytest.raises(ValueError, match="no file of the same folder"):
        open_safetensors(index)
    index.write_text(json.dumps({"files": {}}))
    with pytest.raises(ValueError, match="weight_map"):
        open_safetensors(index)
    index.write_text(json.dumps({"weight_map": files | {"t": "c.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"c\.safetensors"):
        open_safetensors(index)


def test_bad_weights_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, export(ENTRIES, PARAMS) | {"1.w": normal(0, 4, 6)})
    with pytest.raises(
        ValueError, match=r"a\.safetensors: 1\.w .*\(4, 6\).*blocks/kernel.*\(6, 4\)"
    ):
        load(ENTRIES, open_safetensors(path), PARAMS)
    with pytest.raises(ValueError, match=r"here lacks 1 key.*: u and has unknown 1 key.*: t"):
        check_keys(open_safetensors(path), ["0.w", "1.w", "u"], where="here")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        open_safetensors(path)
