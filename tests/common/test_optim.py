"""Every optimizer against its definition, each schedule at its landmarks, every error once."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from common.optim import OptimConfig, ParamGroup, make_optimizer, make_schedule, trainable
from common.transforms import orthogonalized
from common.tree import named_leaves, split

RULES = ("adamw", "adam", "sgd", "adafactor", "muon")


def make_params(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "layers": [
            {"kernel": jax.random.normal(keys[0], (3, 4), dtype), "bias": jnp.ones(4, dtype)},
            {"kernel": jax.random.normal(keys[1], (4, 2), dtype), "bias": jnp.ones(2, dtype)},
        ],
        "stack": jax.random.normal(keys[2], (2, 3, 5), dtype),
    }


def make_grads(params, seed=1):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
        [jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)]
    )


def run(optimizer, params, steps=4):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for i in range(steps):
        updates, state = update(make_grads(params, seed=i), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def constant(name, **fields):
    return OptimConfig(name=name, schedule="constant", learning_rate=0.1, **fields)


def optimizer_of(config, params, steps=100):
    return make_optimizer(config, params, steps=steps)


def assert_close(actual, expected, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), actual, expected
    )


# --- the update rules -----------------------------------------------------------------------------


def test_adamw_by_hand():
    b1, b2, eps, decay, rate = 0.8, 0.9, 1e-3, 0.05, 0.1
    config = constant("adamw", b1=b1, b2=b2, eps=eps, weight_decay=decay)
    theta, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    params = {"w": jnp.array(theta, jnp.float32)}
    optimizer = optimizer_of(config, params)
    state = optimizer.init(params)
    for t, g in enumerate(np.array([[0.5, 1.0], [-1.0, 0.25], [2.0, 0.0]]), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        direction = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        theta = theta - rate * (direction + decay * theta)
        updates, state = optimizer.update({"w": jnp.array(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], theta, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_by_hand(nesterov):
    config = constant("sgd", momentum=0.5, nesterov=nesterov)
    params = {"w": jnp.array([1.0])}
    optimizer = optimizer_of(config, params)
    state = optimizer.init(params)
    # Gradients 1 and 2: momentum 1, then 0.5 * 1 + 2 = 2.5; Nesterov adds half to the gradient.
    for gradient, step in zip([1.0, 2.0], [1.5, 3.25] if nesterov else [1.0, 2.5], strict=True):
        updates, state = optimizer.update({"w": jnp.array([gradient])}, state, params)
        np.testing.assert_allclose(updates["w"], [-0.1 * step], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (constant("adam"), optax.adam(0.1)),
        (constant("adamw", weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)),
        (constant("sgd", momentum=0.0), optax.sgd(0.1)),
        (constant("sgd", momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
        (constant("adafactor"), optax.adafactor(0.1)),
        (
            constant("adamw", clip_norm=0.5, weight_decay=0.1),
            optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.1)),
        ),
    ],
    ids=lambda x: x.name if isinstance(x, OptimConfig) else "",
)
def test_equal_to_plain_optax(config, reference):
    params = make_params()
    assert_close(run(optimizer_of(config, params), params)[0], run(reference, params)[0])


def test_adafactor_factors_large_matrices():
    params = {"kernel": jax.random.normal(jax.random.key(0), (128, 130))}
    optimizer = optimizer_of(constant("adafactor"), params)
    assert_close(run(optimizer, params)[0], run(optax.adafactor(0.1), params)[0])
    shapes = {leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, params))}
    assert (128,) in shapes
    assert (128, 130) not in shapes


def test_muon_equals_optax_muon_without_momentum():
    # With momentum, optax corrects its bias, which the original does not.
    params = make_params()
    del params["stack"]
    reference = optax.contrib.muon(
        0.1, beta=0.0, nesterov=False, consistent_rms=0.2, adam_b1=0.9, adam_b2=0.999
    )
    optimizer = optimizer_of(constant("muon", momentum=0.0), params)
    assert_close(run(optimizer, params)[0], run(reference, params)[0], rtol=1e-4)


def test_muon_orthogonalises_the_nesterov_momentum():
    params = {"kernel": jnp.zeros((3, 4))}
    optimizer = optimizer_of(constant("muon", momentum=0.5, nesterov=True), params)
    state = optimizer.init(params)
    first, second = make_grads(params, 1), make_grads(params, 2)
    _, state = optimizer.update(first, state, params)
    updates, _ = optimizer.update(second, state, params)
    momentum = 0.5 * first["kernel"] + second["kernel"]
    expected = -0.1 * orthogonalized(second["kernel"] + 0.5 * momentum, eps=1e-8)
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5, atol=1e-7)


def newton_schulz(singular):
    """The five steps on a singular value: the same polynomial as on the matrix."""
    for _ in range(5):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return singular


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (3, 6, 9), (2, 3, 9, 6)])
def test_orthogonalized_changes_only_singular_values(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    u, singular, vt = np.linalg.svd(matrix, full_matrices=False)
    norm = np.sqrt((singular**2).sum(-1, keepdims=True))
    scale = 0.2 * max(shape[-2:]) ** 0.5
    expected = scale * (u * newton_schulz(singular / norm)[..., None, :]) @ vt
    found = orthogonalized(jnp.asarray(matrix, jnp.float32), eps=1e-12)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_newton_schulz_range():
    singular = newton_schulz(np.linspace(0.003, 1, 100_000))
    assert singular.min() > 0.68
    assert singular.max() < 1.21


def test_muon_of_an_ensemble_is_muon_of_its_members():
    members = [make_params(), jax.tree.map(lambda p: 2 * p, make_params())]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    gradients = [make_grads(members[0], seed) for seed in (1, 2)]
    optimizer = optimizer_of(constant("muon", clip_norm=1.0), stacked)

    def first_updates(gradient, member):
        return optimizer.update(gradient, optimizer.init(member), member)[0]

    stacked_gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    updates = jax.jit(jax.vmap(first_updates))(stacked_gradients, stacked)
    for i, (member, gradient) in enumerate(zip(members, gradients, strict=True)):
        expected = jax.jit(first_updates)(gradient, member)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], updates), expected, rtol=1e-4)


# --- decay ----------------------------------------------------------------------------------------


def test_decay_to_init_golden_sequence():
    # Constant gradient 0.5, learning rate 0.1, start at 1: 0.9, 0.81, 0.729 (specs, alignment 5.4).
    config = constant("adamw", weight_decay=1.0, decay_to_init=True)
    params = {"w": jnp.array([1.0])}
    optimizer = optimizer_of(config, params)
    state = optimizer.init(params)
    found = []
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.array([0.5])}, state, params)
        params = optax.apply_updates(params, updates)
        found.append(float(params["w"][0]))
    # theta <- theta - 0.1 * (1 + (theta - 1)) = 0.9 theta
    np.testing.assert_allclose(found, [0.9, 0.81, 0.729], rtol=1e-5)


def test_decay_to_init_can_be_donated_with_the_parameters():
    params = {"w": jnp.ones(3)}
    optimizer = optimizer_of(constant("adamw", weight_decay=1.0, decay_to_init=True), params)

    @jax.jit
    def make():
        return params, optimizer.init(params)

    step = jax.jit(
        lambda p, s: optimizer.update(jax.tree.map(jnp.ones_like, p), s, p), donate_argnums=(0, 1)
    )
    updates, _ = step(*make())
    np.testing.assert_allclose(updates["w"], -0.1 * np.ones(3), rtol=1e-5)


def test_decay_acts_on_all_parameters_unless_a_group_exempts_them():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    exempt = (ParamGroup(pattern="bias", weight_decay=0.0), ParamGroup(pattern=".*"))
    for groups, bias_update in [((), -0.05), (exempt, 0.0)]:
        optimizer = optimizer_of(constant("sgd", weight_decay=0.5, groups=groups), params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], np.full((2, 2), -0.05), rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], np.full(2, bias_update), rtol=1e-6)


# --- groups ---------------------------------------------------------------------------------------


def test_first_matching_group_sets_the_learning_rate():
    groups = (
        ParamGroup(pattern="layers/0/.*", learning_rate_scale=0.5),
        ParamGroup(pattern="layers/.*", learning_rate_scale=2.0),
        ParamGroup(pattern=".*"),
    )
    params = make_params()
    optimizer = optimizer_of(constant("sgd", momentum=0.0, groups=groups), params)
    gradients = make_grads(params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    scales = {"layers/0": 0.05, "layers/1": 0.2, "stack": 0.1}
    for (name, update), (_, gradient) in zip(
        named_leaves(updates), named_leaves(gradients), strict=True
    ):
        scale = next(value for prefix, value in scales.items() if name.startswith(prefix))
        np.testing.assert_allclose(update, -scale * gradient, rtol=1e-6)


def test_a_group_can_have_its_own_rule():
    groups = (ParamGroup(pattern="layers/0/.*", optimizer="adamw"), ParamGroup(pattern=".*"))
    params = make_params()
    mixed, _ = run(optimizer_of(constant("muon", groups=groups), params), params)
    adam, _ = run(optimizer_of(constant("adamw"), params), params)
    muon, _ = run(optimizer_of(constant("muon"), params), params)
    assert_close(mixed["layers"][0], adam["layers"][0])
    assert_close(mixed["layers"][1], muon["layers"][1])
    assert not np.allclose(adam["layers"][0]["kernel"], muon["layers"][0]["kernel"])


@pytest.mark.parametrize("name", RULES)
def test_frozen_parameters(name):
    decay = {} if name == "adam" else {"weight_decay": 0.1, "decay_to_init": True}
    groups = (ParamGroup(pattern="layers/0/.*", freeze=True), ParamGroup(pattern=".*"))
    config = constant(name, clip_norm=1.0, groups=groups, **decay)
    params = make_params()
    optimizer = optimizer_of(config, params)
    gradients = make_grads(params)
    trained, trained_gradients = (
        split(tree, trainable(config, params))[0] for tree in (params, gradients)
    )
    updates, state = optimizer.update(trained_gradients, optimizer.init(trained), trained)
    assert jax.tree.leaves(updates["layers"][0]) == []
    assert not any("layers/0" in leaf_name for leaf_name, _ in named_leaves(state))
    # The rest moves as if the frozen parameters were not there, the clipping included.
    rest = {"layers": [params["layers"][1]], "stack": params["stack"]}
    alone = optimizer_of(dataclasses.replace(config, groups=()), rest)
    rest_gradients = {"layers": [gradients["layers"][1]], "stack": gradients["stack"]}
    expected, _ = alone.update(rest_gradients, alone.init(rest), rest)
    assert_close(updates["layers"][1], expected["layers"][0])
    assert_close(updates["stack"], expected["stack"])


# --- state: dtype, sharding, abstract construction ------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "x64"),
    [
        ("bfloat16", False),
        ("float32", False),
        ("bfloat16", True),
        ("float32", True),
        ("float64", True),
    ],
)
@pytest.mark.parametrize("name", RULES)
def test_state_and_updates_have_the_dtype_of_the_parameters(name, dtype, x64):
    decay = {} if name == "adam" else {"weight_decay": 0.1, "decay_to_init": True}
    config = OptimConfig(name=name, warmup_steps=2, clip_norm=1.0, **decay)
    with jax.enable_x64(x64):
        params = jax.eval_shape(lambda: make_params(jnp.dtype(dtype)))
        optimizer = optimizer_of(config, params)
        state = jax.eval_shape(optimizer.init, params)
        updates, new_state = jax.eval_shape(optimizer.update, params, state, params)
    for leaf in jax.tree.leaves(updates):
        assert leaf.dtype == dtype
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype in (dtype, "int32")
    assert new_state == state


@pytest.mark.parametrize("name", RULES)
def test_sharded_state_gives_the_same_updates(name):
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 6)), "bias": jnp.ones(8)}
    groups = (ParamGroup(pattern="bias", learning_rate_scale=2.0), ParamGroup(pattern=".*"))
    optimizer = optimizer_of(constant(name, clip_norm=1.0, groups=groups), params)
    expected, _ = run(optimizer, params)
    sharded, state = run(optimizer, jax.device_put(params, sharding))
    assert_close(sharded, expected)
    for leaf_name, leaf in named_leaves(state):
        if leaf_name.endswith(("kernel", "bias")) and leaf.shape[0] == 8:
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_abstract_parameters_suffice():
    params = make_params()
    groups = (ParamGroup(pattern="stack", freeze=True), ParamGroup(pattern=".*"))
    for name in RULES:
        config = constant(name, groups=groups)
        optimizer = optimizer_of(config, jax.eval_shape(make_params))
        trained, _ = split(params, trainable(config, params))
        assert_close(run(optimizer, trained)[0], run(optimizer_of(config, params), trained)[0])


# --- schedules ------------------------------------------------------------------------------------


def test_constant_schedule_with_warm_up():
    config = OptimConfig(schedule="constant", learning_rate=0.4, warmup_steps=4)
    schedule = make_schedule(config, steps=10)
    np.testing.assert_allclose(
        [schedule(t) for t in (0, 1, 2, 4, 5, 10)], [0, 0.1, 0.2, 0.4, 0.4, 0.4], rtol=1e-6
    )


def test_cosine_schedule_golden_values():
    # Landmarks of the alignment run: specs, alignment 5.4.
    config = OptimConfig(schedule="cosine", learning_rate=3e-5, warmup_steps=5000)
    schedule = make_schedule(config, steps=100_001)
    found = [schedule(t) for t in (0, 2500, 5000, 52_500, 100_000, 200_000)]
    np.testing.assert_allclose(found, [0, 1.5e-5, 3e-5, 1.5e-5, 0, 0], rtol=1e-6, atol=1e-12)


def test_cosine_schedule_equals_optax():
    config = OptimConfig(learning_rate=2.0, warmup_steps=3, final_fraction=0.1)
    schedule = make_schedule(config, steps=21)
    reference = optax.warmup_cosine_decay_schedule(0.0, 2.0, 3, 20, end_value=0.2)
    for t in range(25):
        np.testing.assert_allclose(schedule(t), reference(t), rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay"])
def test_the_last_update_of_a_run_has_the_final_fraction(name, warmup):
    config = OptimConfig(schedule=name, learning_rate=2.0, warmup_steps=warmup, final_fraction=0.1)
    schedule = make_schedule(config, steps=20)
    values = [float(schedule(t)) for t in range(20)]
    assert values[warmup] == pytest.approx(2.0)
    assert values[19] == pytest.approx(0.2)
    assert values[18] > 0.2001
    stable = [t for t in range(20) if values[t] == pytest.approx(2.0)]
    # A fifth of 20 steps: the last four are lower, each by as much.
    assert stable == (list(range(warmup, 16)) if name == "warmup_stable_decay" else [warmup])


@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay"])
def test_a_run_without_a_step_to_decay_over_has_the_peak(name):
    config = OptimConfig(schedule=name, learning_rate=2.0, warmup_steps=2)
    assert float(make_schedule(config, steps=3)(2)) == 2.0


def halving(step):
    return 0.5 ** (step // 2)


def test_a_function_of_the_step_is_the_factor_on_the_peak():
    config = OptimConfig(name="sgd", momentum=0.0, learning_rate=4.0, schedule=halving)
    params = {"w": jnp.zeros(1)}
    optimizer = optimizer_of(config, params)
    state = optimizer.init(params)
    for expected in (4.0, 4.0, 2.0, 2.0, 1.0):
        updates, state = jax.jit(optimizer.update)({"w": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(updates["w"], [-expected], rtol=1e-6)


def test_a_function_that_returns_a_transformation_is_the_direction():
    params = make_params()
    config = constant(optax.scale_by_lion, weight_decay=0.1)
    lion = optax.lion(0.1, weight_decay=0.1)
    assert_close(run(optimizer_of(config, params), params)[0], run(lion, params)[0])
    groups = (ParamGroup(pattern=".*bias", optimizer=optax.scale_by_lion), ParamGroup(pattern=".*"))
    mixed, _ = run(optimizer_of(constant("adam", groups=groups), params), params)
    alone, _ = run(optimizer_of(constant(optax.scale_by_lion), params), params)
    np.testing.assert_allclose(mixed["layers"][0]["bias"], alone["layers"][0]["bias"], rtol=1e-6)
    with pytest.raises(ValueError, match="must return an optax GradientTransformation"):
        optimizer_of(constant(dict), params)


@pytest.mark.parametrize(
    ("warmup", "landmarks"),
    [(4, {0: 0, 2: 1, 4: 2, 16: 1, 64: 0.5}), (0, {0: 2, 1: 2, 4: 1, 16: 0.5})],
)
def test_rsqrt_schedule(warmup, landmarks):
    config = OptimConfig(schedule="rsqrt", learning_rate=2.0, warmup_steps=warmup)
    schedule = jax.jit(make_schedule(config, steps=100))
    for t, expected in landmarks.items():
        np.testing.assert_allclose(schedule(t), expected, rtol=1e-6)


def test_optimizer_follows_the_schedule_from_step_0():
    config = OptimConfig(name="sgd", momentum=0.0, learning_rate=1.0, warmup_steps=2)
    params = {"w": jnp.zeros(1)}
    optimizer, schedule = optimizer_of(config, params, steps=4), make_schedule(config, steps=4)
    state = optimizer.init(params)
    for t in range(4):
        updates, state = optimizer.update({"w": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(updates["w"][0], -schedule(t), rtol=1e-6)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adafacter"}, r"'adafacter' is unknown; did you mean 'adafactor'\?"),
        ({"name": "x"}, "use one of adamw, adam, sgd, adafactor, muon"),
        ({"schedule": "cosin"}, r"did you mean 'cosine'\?"),
        ({"schedule": 3}, "optim.schedule = 3 is unknown"),
        ({"schedule": halving, "warmup_steps": 3}, "must be 0 where optim.schedule is a function"),
        ({"decay_fraction": 0.0}, r"optim.decay_fraction = 0.0 must be in \(0, 1\]"),
        ({"learning_rate": -1e-3}, r"optim.learning_rate = -0.001 must be positive"),
        ({"learning_rate": math.nan}, "must be positive"),
        ({"warmup_steps": -1}, "optim.warmup_steps = -1 must be at least 0"),
        ({"final_fraction": 1.5}, "between 0 and 1"),
        ({"b1": 1.0}, "optim.b1 = 1.0 must be at least 0 and less than 1"),
        ({"b2": -0.1}, "optim.b2"),
        ({"momentum": 1.0}, "optim.momentum"),
        ({"eps": 0.0}, "optim.eps = 0.0 must be positive"),
        ({"weight_decay": -1.0}, "optim.weight_decay"),
        ({"clip_norm": 0.0}, "optim.clip_norm = 0.0 must be positive, or None"),
        ({"name": "adam", "weight_decay": 0.1}, 'adam has no weight decay.*use "adamw"'),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate_scale": 0.0}, r"optim.groups\['.\*'\].learning_rate_scale = 0.0 must be"),
        ({"weight_decay": -1.0}, "at least 0"),
        ({"optimizer": "muonn"}, r"did you mean 'muon'\?"),
    ],
)
def test_bad_group_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        ParamGroup(pattern=".*", **fields)


def test_warm_up_longer_than_the_run():
    with pytest.raises(ValueError, match=r"optim.warmup_steps = 10 must be less than the 10 steps"):
        make_schedule(OptimConfig(warmup_steps=10), steps=10)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((ParamGroup(pattern="layers/.*"),), "no parameter group covers stack"),
        ((ParamGroup(pattern="head/.*"), ParamGroup(pattern=".*")), "matches no parameter"),
        ((ParamGroup(pattern=".*", freeze=True),), "freeze every parameter"),
    ],
)
def test_bad_groups(groups, message):
    params = make_params()
    with pytest.raises(ValueError, match=message):
        optimizer_of(constant("adamw", groups=groups), params)
