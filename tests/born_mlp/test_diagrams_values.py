"""Values of the diagrams: sum rules against autodiff, formulas, counts, shares."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from born_mlp.diagrams import enumerate_diagrams, formula, shares, values
from born_mlp.mlp import MLP, Params


def network(
    mlp: MLP, *, seed: int = 0, points: tuple[int, ...] = (2,)
) -> tuple[Params, Array, Array]:
    """Return random parameters with biases, points and directions."""
    keys = jax.random.split(jax.random.key(seed), 3)
    leaves, structure = jax.tree.flatten(mlp.init(keys[0], dtype=jnp.float64))
    noise = jax.random.split(keys[1], len(leaves))
    leaves = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, noise, strict=True)]
    x, v = jax.random.normal(keys[2], (2, *points, mlp.in_features))
    return jax.tree.unflatten(structure, leaves), x, v


@pytest.mark.parametrize(
    ("activation", "hidden", "out_features", "output_activation", "order"),
    [
        ("tanh", (5, 4), 2, None, 4),
        ("gelu", (4, 4, 3), None, None, 3),
        ("gelu", (3, 2), None, None, 5),
        ("silu", (3,), None, None, 4),
        ("softplus", (4, 3), 2, "tanh", 3),
        ("sigmoid", (3, 3), None, "sin", 3),
        ("sin", (4, 3, 3), 2, None, 2),
        ("exp", (3,), 2, "sin", 4),
        ("relu", (4, 4), None, None, 1),
    ],
)
def test_sum_rule(
    activation: str,
    hidden: tuple[int, ...],
    out_features: int | None,
    output_activation: str | None,
    order: int,
) -> None:
    mlp = MLP(
        in_features=3,
        hidden=hidden,
        out_features=out_features,
        activation=activation,
        output_activation=output_activation,
    )
    params, x, _ = network(mlp)
    assert values.check_sum_rule(mlp, params, x, order=order) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 5])
def test_directional_sum_rule(order: int) -> None:
    mlp = MLP(in_features=3, hidden=(4, 3), activation="tanh")
    params, x, v = network(mlp)
    assert values.check_sum_rule(mlp, params, x, order=order, v=v) < 1e-12


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_labelled_diagram_counts_once(depth: int) -> None:
    # All factors are 1 in a network of single neurons with phi = exp - 1, unit weights, at x = 0.
    mlp = MLP(in_features=1, hidden=(1,) * depth, activation=jnp.expm1)
    params = jax.tree.map(jnp.ones_like, mlp.init(jax.random.key(0), dtype=jnp.float64))
    params = [{**layer, "bias": jnp.zeros(1)} for layer in params]
    tensors = values.tensors(mlp, params, jnp.zeros(1), order=4)
    expected = [diagram.multiplicity for diagram in enumerate_diagrams(4, depth)]
    np.testing.assert_allclose(tensors.ravel(), expected, rtol=1e-13)


def test_each_value_is_what_its_formula_says() -> None:
    mlp = MLP(in_features=3, hidden=(4, 3), out_features=2, activation="tanh")
    params, x, v = network(mlp, points=())
    y = [x]
    for layer in params:
        y.append(jnp.tanh(y[-1] @ layer["kernel"] + layer["bias"]))

    def propagator(source: int, target: int) -> Array:
        """Return dz_target/dy_source as a product of matrices; the output is z_3."""
        product = params[target - 1]["kernel"].T
        for l in range(target - 1, source, -1):
            product = product * (1 - y[l] ** 2) @ params[l - 1]["kernel"].T
        return product

    # Second and third derivative of tanh in terms of its value.
    vertex = {2: lambda t: -2 * t * (1 - t**2), 3: lambda t: (1 - t**2) * (6 * t**2 - 2)}

    def array(factor: formula.Factor) -> Array:
        if factor.symbol == "v":
            return v
        layer = factor.layers[0]
        if factor.symbol == "phi":
            return vertex[factor.order](y[layer])
        if factor.symbol == "R":
            return propagator(layer, 3)
        return propagator(factor.layers[1] if factor.symbol == "Q" else 0, layer)

    for order in (1, 3):
        diagrams = values.diagrams_of(mlp, order)
        found = values.contributions(mlp, params, x, v, order=order)
        for diagram, value in zip(diagrams, found, strict=True):
            factors = list(formula.factors(diagram))
            names = dict.fromkeys(index for factor in factors for index in factor.indices)
            letters = dict(zip(names, string.ascii_letters, strict=False))
            subscripts = ["".join(letters[i] for i in factor.indices) for factor in factors]
            product = np.einsum(
                ",".join(subscripts) + "->" + letters["o"], *(np.asarray(array(f)) for f in factors)
            )
            expected = float(diagram.symmetry_factor) * product
            np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-15)


def test_tensors_contract_to_contributions_and_are_symmetric() -> None:
    mlp = MLP(in_features=3, hidden=(4, 3), activation="gelu")
    params, x, v = network(mlp)
    tensors = values.tensors(mlp, params, x, order=3)
    contracted = jnp.einsum("nbijk,bi,bj,bk->nb", tensors, v, v, v) / 6
    found = values.contributions(mlp, params, x, v, order=3)
    np.testing.assert_allclose(found, contracted, rtol=1e-12)
    for axes in [(0, 1, 3, 2, 4), (0, 1, 4, 3, 2)]:
        np.testing.assert_allclose(tensors, jnp.transpose(tensors, axes), rtol=1e-12, atol=1e-15)


def test_shapes_follow_batch_and_output() -> None:
    mlp = MLP(in_features=3, hidden=(4,), out_features=2)
    params, x, v = network(mlp, points=(5, 1))
    directions = jnp.broadcast_to(v, (5, 7, 3))
    assert values.contributions(mlp, params, x, directions, order=2).shape == (1, 5, 7, 2)
    assert values.tensors(mlp, params, x, order=2).shape == (1, 5, 1, 2, 3, 3)


def test_classes_add_up() -> None:
    mlp = MLP(in_features=3, hidden=(4, 3, 3))
    params, x, v = network(mlp)
    diagrams = values.diagrams_of(mlp, 3)
    found = values.contributions(mlp, params, x, v, order=3)
    by_topology = values.by_class(found, diagrams, lambda diagram: diagram.topology)
    by_layer = values.by_class(found, diagrams, lambda diagram: diagram.layer)
    assert len(by_topology) == 2
    assert list(by_layer) == [1, 2, 3]
    for classes in (by_topology, by_layer):
        np.testing.assert_allclose(sum(classes.values()), found.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(by_layer[1], found[[d.layer for d in diagrams].index(1)])


def test_shares_add_up_and_see_cancellation() -> None:
    mlp = MLP(in_features=3, hidden=(4, 3))
    params, x, v = network(mlp)
    found = shares.shares(mlp, params, x, v, order=2, key=lambda diagram: diagram.layer)
    terms = np.asarray(values.contributions(mlp, params, x, v, order=2))
    sizes = np.abs(terms).mean(axis=1)
    assert found.classes == pytest.approx({1: sizes[0] / sizes.sum(), 2: sizes[1] / sizes.sum()})
    assert found.remaining == pytest.approx(np.abs(terms.sum(axis=0)).mean() / sizes.sum())
    # One class of everything leaves nothing to cancel.
    one = shares.shares(mlp, params, x, v, order=2, key=lambda _: "all")
    assert one.classes == {"all": pytest.approx(1.0)}
    assert one.remaining == pytest.approx(1.0)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_refused_before_compute() -> None:
    mlp = MLP(in_features=3, hidden=(4,))
    params, x, v = network(mlp)
    with pytest.raises(ValueError, match=r"3 inputs.*got \(2, 2\)"):
        values.contributions(mlp, params, x[:, :2], v, order=2)
    with pytest.raises(ValueError, match=r"relu.*no derivative of order 2"):
        values.tensors(MLP(in_features=3, hidden=(4,), activation="relu"), params, x, order=2)
    wide = MLP(in_features=300, hidden=(4,))
    with pytest.raises(ValueError, match="GiB"):
        values.tensors(wide, wide.init(jax.random.key(0)), jnp.zeros((10, 300)), order=4)
    linear = MLP(in_features=3, hidden=())
    with pytest.raises(ValueError, match="without a nonlinear layer"):
        values.tensors(linear, linear.init(jax.random.key(0)), x, order=2)
    still = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(ValueError, match="no shares"):
        shares.shares(mlp, still, x, v, order=2, key=lambda diagram: diagram)
