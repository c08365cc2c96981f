"""All partial derivatives against nested autodiff, and their transformations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import jet

from born_mlp import packing, taylor
from born_mlp.mlp import MLP, Params
from born_mlp.taylor import evaluate, plan

SMOOTH = ("tanh", "gelu", "gelu_tanh", "silu", "softplus", "sigmoid", "sin", "exp")


def network(seed: int = 0, **kwargs: object) -> tuple[MLP, Params]:
    mlp = MLP(**kwargs)
    keys = jax.random.split(jax.random.key(seed), len(mlp.widths))
    params = mlp.init(keys[0], dtype=jnp.float64)
    for layer, key in zip(params, keys[1:], strict=True):
        layer["bias"] = 0.3 * jax.random.normal(key, layer["bias"].shape, jnp.float64)
    return mlp, params


def nested(mlp: MLP, params: Params, x: jax.Array, order: int) -> jax.Array:
    f = functools.partial(mlp.apply, params)
    for _ in range(order):
        f = jax.jacfwd(f)
    # Run once: compiling quickly matters more than running quickly.
    return jax.jit(jax.vmap(f), compiler_options={"xla_backend_optimization_level": 0})(x)


def assert_close(value: jax.Array, reference: jax.Array, tolerance: float) -> None:
    assert value.shape == reference.shape
    scale = max(float(jnp.abs(reference).max()), 1e-300)
    assert float(jnp.abs(value - reference).max()) <= tolerance * scale


def points(n: int, d: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (n, d), jnp.float64)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("outputs", [None, 2])
def test_one_order_alone_is_that_among_others(order, outputs):
    """What an order needs is computed, whether higher ones are asked for or not."""
    mlp, params = network(in_features=2, hidden=(4, 3, 4), out_features=outputs, activation="tanh")
    x = points(3, 2)
    alone = taylor.derivative(mlp, params, x, order, packed=False)
    assert_close(alone, nested(mlp, params, x, order), 1e-12)


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    activation=st.sampled_from(SMOOTH),
    outputs=st.sampled_from([None, 1, 3]),
    output_activation=st.sampled_from([None, "tanh"]),
    d=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_equal_to_nested_autodiff_up_to_order_four(
    hidden: list[int],
    activation: str,
    outputs: int | None,
    output_activation: str | None,
    d: int,
    seed: int,
) -> None:
    # exp of exp of exp overflows: one such layer only.
    hidden = hidden[:1] if activation == "exp" else hidden
    mlp, params = network(
        seed,
        in_features=d,
        hidden=tuple(hidden),
        out_features=outputs,
        activation=activation,
        output_activation=output_activation,
    )
    x = points(2, d, seed)
    for order, tensor in enumerate(taylor.derivatives(mlp, params, x, 4, packed=False)):
        assert_close(tensor, nested(mlp, params, x, order), 1e-12)


@pytest.mark.parametrize(("hidden", "outputs"), [((4, 3), None), ((2, 3, 2), 2)])
def test_equal_to_nested_autodiff_at_order_five(
    hidden: tuple[int, ...], outputs: int | None
) -> None:
    mlp, params = network(in_features=2, hidden=hidden, out_features=outputs, activation="tanh")
    x = points(2, 2)
    assert_close(
        taylor.derivative(mlp, params, x, 5, packed=False), nested(mlp, params, x, 5), 1e-10
    )


@pytest.mark.parametrize("order", [6, 7])
def test_equal_to_taylor_mode_at_orders_six_and_seven(order: int) -> None:
    mlp, params = network(in_features=2, hidden=(3, 2, 3), activation="tanh")
    x, v = points(2, 2)
    series = [v] + [jnp.zeros_like(v)] * (order - 1)
    along = jet.jet(functools.partial(mlp.apply, params), (x,), (series,))[1][-1]
    products = jnp.prod(v[taylor.multi_indices(2, order)], axis=-1)
    terms = taylor.derivative(mlp, params, x, order) * products * taylor.multiplicities(2, order)
    assert float(jnp.abs(terms.sum() - along)) <= 1e-10 * float(jnp.abs(terms).sum())


def test_orders_six_and_seven_of_one_neuron_by_hand() -> None:
    mlp, params = network(in_features=2, hidden=(1,), activation="sin")
    (first, second), x = params, points(3, 2)
    w, z = first["kernel"][:, 0], x @ first["kernel"][:, 0] + first["bias"][0]
    for order, slope in ((6, -jnp.sin(z)), (7, -jnp.cos(z))):
        products = jnp.prod(w[taylor.multi_indices(2, order)], axis=-1)
        expected = second["kernel"][0, 0] * slope[:, None] * products
        assert_close(taylor.derivative(mlp, params, x, order), expected, 1e-12)


def test_linear_network_has_no_higher_derivatives() -> None:
    mlp, params = network(in_features=3, hidden=(), out_features=2)
    value, jacobian, hessian = taylor.derivatives(mlp, params, points(4, 3), 2)
    assert_close(value, mlp.apply(params, points(4, 3)), 1e-14)
    assert_close(jacobian, jnp.broadcast_to(params[0]["kernel"].T, (4, 2, 3)), 1e-14)
    np.testing.assert_array_equal(hessian, np.zeros((4, 2, 6)))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, params = network(in_features=3, hidden=(5, 4))
    x = points(7, 3)
    whole = taylor.derivatives(mlp, params, x, 4)
    monkeypatch.setattr(evaluate, "chunk_size", lambda *_: 3)
    evaluate.compiled.clear_cache()
    chunked = taylor.derivatives(mlp, params, x, 4)
    evaluate.compiled.clear_cache()
    for a, b in zip(whole, chunked, strict=True):
        assert_close(b, a, 1e-14)


def test_chunk_size_divides_where_it_can_and_shrinks_with_the_order() -> None:
    mlp = MLP(in_features=16, hidden=(64, 64))
    sizes = [evaluate.chunk_size(mlp, 16, (m,), 1000, 8) for m in (1, 2, 3, 4, 5)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(1000 % size == 0 for size in sizes)
    assert evaluate.chunk_size(mlp, 16, (2,), 1, 8) == 1


def test_batch_axes_jit_and_vmap() -> None:
    mlp, params = network(in_features=3, hidden=(4, 4), out_features=2)
    x = points(6, 3).reshape(2, 3, 3)
    third = functools.partial(taylor.derivative, mlp, order=3)
    expected = third(params, x)
    assert expected.shape == (2, 3, 2, 10)
    assert_close(jax.jit(third)(params, x), expected, 1e-14)
    assert_close(jax.vmap(jax.vmap(third, (None, 0)), (None, 0))(params, x), expected, 1e-13)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    assert_close(jax.vmap(third, (0, None))(stacked, x)[0], expected, 1e-13)


def test_gradient_in_the_weights_equals_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, params = network(in_features=2, hidden=(3, 3), activation="gelu")
    x = points(4, 2)
    monkeypatch.setattr(evaluate, "chunk_size", lambda *_: 2)
    evaluate.compiled.clear_cache()

    @jax.jit
    def penalty(params: Params) -> jax.Array:
        return jnp.sum(taylor.derivative(mlp, params, x, 3) ** 2)

    direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size).reshape(p.shape)), params)
    _, slope = jax.jvp(penalty, (params,), (direction,))
    gradient = jax.grad(penalty)(params)
    inner = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.vdot(a, b), gradient, direction)))
    h = 1e-5
    ahead = penalty(jax.tree.map(lambda p, v: p + h * v, params, direction))
    behind = penalty(jax.tree.map(lambda p, v: p - h * v, params, direction))
    evaluate.compiled.clear_cache()
    np.testing.assert_allclose(inner, (ahead - behind) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(inner, slope, rtol=1e-12)


def test_derivative_regularised_training_lowers_the_derivative() -> None:
    mlp, params = network(in_features=2, hidden=(8, 8), activation="tanh")
    x = points(32, 2)
    target = jnp.sum(x, -1)

    @functools.partial(jax.jit, static_argnums=2)
    def descend(params: Params, rate: float, weight: float) -> tuple[Params, jax.Array]:
        def loss(params: Params) -> jax.Array:
            value, _, hessian = taylor.derivatives(mlp, params, x, 2)
            return jnp.mean((value - target) ** 2) + weight * jnp.mean(hessian**2)

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), value

    curvature = {}
    for weight in (0.0, 1.0):
        trained, losses = params, []
        for _ in range(100):
            trained, value = descend(trained, 0.03, weight)
            losses.append(float(value))
        assert losses[-1] < 0.3 * losses[0]
        curvature[weight] = float(jnp.mean(taylor.derivative(mlp, trained, x, 2) ** 2))
    assert curvature[1.0] < 0.5 * curvature[0.0]


def test_selected_entries() -> None:
    mlp, params = network(in_features=4, hidden=(5, 4), out_features=2)
    x = points(3, 4)
    few = [(2,), (2, 1, 0), (), (3, 3, 3)]
    many = list(itertools.product((0, 2), repeat=3))
    dense = taylor.derivatives(mlp, params, x, 3, packed=False)
    for indices in (few, many):
        entries = taylor.selected(mlp, params, x, indices)
        expected = jnp.stack([dense[len(index)][(..., *index)] for index in indices], -1)
        assert_close(entries, expected, 1e-13)
    with pytest.raises(ValueError, match=r"\(0, 4\) names a variable outside 0\.\.3"):
        taylor.selected(mlp, params, x, [(0, 4)])


@pytest.mark.parametrize("outputs", [None, 2])
def test_directional_equals_the_contracted_tensors(outputs: int | None) -> None:
    mlp, params = network(in_features=3, hidden=(4, 5), out_features=outputs, activation="silu")
    x, v = points(3, 3), points(1, 3, seed=5)[0]
    tensors = taylor.derivatives(mlp, params, x, 4, packed=False)
    along = taylor.directional(mlp, params, x, v, 4)
    for tensor, value in zip(tensors, along, strict=True):
        while tensor.ndim > value.ndim:
            tensor = tensor @ v
        assert_close(value, tensor, 1e-12)


def test_directional_of_a_linear_network() -> None:
    mlp, params = network(in_features=3, hidden=())
    x, v = points(2, 3)
    value, slope, zero = taylor.directional(mlp, params, x, v, 2)
    assert_close(value, mlp.apply(params, x), 1e-14)
    assert_close(slope, (v @ params[0]["kernel"])[0], 1e-14)
    assert float(zero) == 0


@given(d=st.integers(1, 5), order=st.integers(0, 4))
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
def test_packing_is_the_order_of_itertools(d: int, order: int) -> None:
    expected = list(itertools.combinations_with_replacement(range(d), order))
    rows = taylor.multi_indices(d, order)
    assert [tuple(row) for row in rows.tolist()] == expected
    assert len(expected) == taylor.size(d, order)
    np.testing.assert_array_equal(taylor.positions(rows, d), np.arange(len(expected)))
    packed = jnp.arange(float(len(expected)))
    dense = np.asarray(taylor.unpack(packed, d, order))
    assert dense.shape == (d,) * order
    assert all(dense[index] == dense[index[::-1]] for index in expected)
    np.testing.assert_array_equal(taylor.pack(dense, order), packed)
    assert int(taylor.multiplicities(d, order).sum()) == d**order


def test_pack_and_unpack_refuse_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="same length"):
        taylor.pack(jnp.zeros((2, 3)), 2)
    with pytest.raises(ValueError, match="has 6 entries"):
        taylor.unpack(jnp.zeros(5), 3, 2)


@pytest.mark.parametrize("order", range(2, 7))
def test_terms_are_counted_as_the_centroid_formula_counts_them(order: int) -> None:
    # Labelled terms of a layer: 1, 4, 26, 116, 652 for m = 2..6.
    total = 0
    for split in plan.splits(order, order // 2, (order - 1) // 2, first=False):
        assert split.w + split.p == order
        for term in split.terms:
            left = packing.shuffles(order, split.w, split.p).shape[0]
            inside = packing.shuffles(order, term.adjoint, split.w - term.adjoint).shape[0]
            blocks = _set_partitions(term.weighted) * _set_partitions(term.plain)
            total += term.coefficient * left * inside * blocks
    assert total == pytest.approx({2: 1, 3: 4, 4: 26, 5: 116, 6: 652}[order])


def _set_partitions(blocks: tuple[int, ...]) -> int:
    factorial = np.cumprod([1, *range(1, 10)])
    count = factorial[sum(blocks)]
    for b in blocks:
        count //= factorial[b]
    for b in set(blocks):
        count //= factorial[blocks.count(b)]
    return int(count)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_refused_before_compute() -> None:
    mlp, params = network(in_features=64, hidden=(8,))
    with pytest.raises(ValueError, match=r"end in the 64 inputs .* \(3, 5\)"):
        taylor.derivatives(mlp, params, jnp.zeros((3, 5)), 2)
    with pytest.raises(ValueError, match=r"order 6 by 64 inputs .* GiB"):
        taylor.derivative(mlp, params, jnp.zeros((1000, 64)), 6)
    with pytest.raises(ValueError, match="kernels have shapes"):
        taylor.derivatives(mlp, params[1:], jnp.zeros((3, 64)), 2)
    with pytest.raises(ValueError, match="at least 0"):
        taylor.derivatives(mlp, params, jnp.zeros((3, 64)), -1)
    rough, weights = network(in_features=2, hidden=(3,), activation="relu")
    with pytest.raises(ValueError, match="'relu' has no derivative of order 2"):
        taylor.derivatives(rough, weights, jnp.zeros((3, 2)), 2)
    assert taylor.derivatives(rough, weights, jnp.ones((3, 2)), 1)[1].shape == (3, 2)
    with pytest.raises(ValueError, match="v must end in the 2 inputs"):
        taylor.directional(rough, weights, jnp.zeros((3, 2)), jnp.zeros(3), 1)
