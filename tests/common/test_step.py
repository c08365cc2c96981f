"""Numerics and form of the training step (design invariants 3 and 9)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import (
    CheckpointConfig,
    Mean,
    MeshConfig,
    OptimConfig,
    ParamGroup,
    StepConfig,
    train,
)
from common.data import stack_steps
from common.mesh import place
from common.setup import prepare
from tests.common.toy import Toy, experiment

SGD = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.0, schedule="constant")


def final_params(**changes):
    return jax.device_get(train(experiment(**changes)).params)


def assert_close(a, b, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted(Toy):
    """Toy task whose examples have uneven weights, so that a mean of means would be wrong."""

    def loss(self, params, batch, rngs):
        weight = (batch["x"][:, 0] > 0).astype(jnp.float32) * (1 + batch["x"][:, 1] ** 2)
        error = self.predict(params, batch["x"]) - batch["y"]
        return {"loss": Mean.of(error**2, weight)}


def test_gradient_is_that_of_the_weighted_mean():
    task = Weighted()
    config = experiment(task, optim=SGD, steps=1, log=experiment().log)
    config = dataclasses.replace(
        config,
        log=dataclasses.replace(config.log, every=1),
        checkpoint=dataclasses.replace(config.checkpoint, every=1),
    )
    setup = prepare(config)
    before = jax.device_get(setup.init_state().params)
    batch = setup.data.batch(0)

    def mean_loss(params):
        return task.loss(params, batch, None)["loss"].compute()

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, jax.grad(mean_loss)(before))
    assert_close(expected, jax.device_get(train(config).params))


@pytest.mark.parametrize("accumulate", [2])
def test_accumulation_does_not_change_the_step(accumulate):
    split = final_params(task=Weighted(), step=StepConfig(accumulate=accumulate))
    assert_close(final_params(task=Weighted()), split)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_does_not_change_the_step(remat):
    assert_close(final_params(), final_params(step=StepConfig(remat=remat)))


def test_dropout_is_the_same_under_remat():
    task = Toy(dropout=0.3)
    assert_close(final_params(task=task), final_params(task=task, step=StepConfig(remat="full")))


def test_steps_per_call_do_not_change_the_result():
    assert_close(final_params(), final_params(step=StepConfig(per_call=2)), rtol=1e-6)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=8)]
)
def test_mesh_does_not_change_the_result(mesh):
    rules = (("in/kernel", ("fsdp", "tensor")), ("out/kernel", ("tensor", None)), (".*", ()))
    alone = MeshConfig(data=1, tensor=8)
    assert_close(final_params(mesh=alone), final_params(task=Toy(rules=rules), mesh=mesh))


def test_bfloat16_stays_near_float32():
    full, half = final_params(), final_params(step=StepConfig(compute_dtype="bfloat16"))
    assert half["in"]["kernel"].dtype == np.float32
    assert_close(full, half, rtol=0, atol=0.02)
    assert np.abs(full["in"]["kernel"] - half["in"]["kernel"]).max() > 0


def test_the_step_compiles_once():
    setup = prepare(experiment(step=StepConfig(ema_decay=0.9)))
    state = setup.init_state()
    for step in range(4):
        batch = place(dict(stack_steps(setup.data, step, 1)), setup.mesh, leading_axes=1)
        state, _ = setup.train_step(state, batch)
    assert setup.train_step._cache_size() == 1


def test_ema_follows_its_definition():
    result = train(experiment(step=StepConfig(ema_decay=0.9), steps=2))
    setup = prepare(experiment(steps=2))
    state = setup.init_state()
    ema = jax.device_get(state.params)
    for step in range(2):
        batch = place(dict(stack_steps(setup.data, step, 1)), setup.mesh, leading_axes=1)
        state, _ = setup.train_step(state, batch)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, jax.device_get(state.params))
    assert_close(ema, jax.device_get(result.params))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Half(Toy):
    """Toy task whose parameters are bfloat16."""

    def init(self, key):
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16), super().init(key))


def run_steps(config, steps):
    """The states before and after some steps, on the host."""
    setup = prepare(config)
    state = setup.init_state()
    states = [jax.device_get(state)]
    for step in range(steps):
        batch = place(dict(stack_steps(setup.data, step, 1)), setup.mesh, leading_axes=1)
        state, _ = setup.train_step(state, batch)
        states.append(jax.device_get(state))
    return states


def test_the_average_of_bfloat16_parameters_moves():
    optim = dataclasses.replace(SGD, learning_rate=1.0)
    states = run_steps(experiment(Half(), optim=optim, step=StepConfig(ema_decay=0.999)), 4)
    ema = states[0].params["in"]["kernel"].astype(np.float32)
    for state in states[1:]:
        ema = 0.999 * ema + 0.001 * state.params["in"]["kernel"].astype(np.float32)
    found = states[-1].ema["in"]["kernel"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ema, rtol=1e-6, atol=1e-7)  # sums of numbers under 1
    assert np.abs(found - states[0].ema["in"]["kernel"]).max() > 0
    # What is evaluated has the parameters' type.
    kernel = states[-1].eval_params["in"]["kernel"]
    np.testing.assert_array_equal(kernel, found.astype(jnp.bfloat16))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(Toy):
    """Toy task with a metric of the gradient and the update of one parameter."""

    def step_metrics(self, params, grads, updates):
        assert params["out"]["bias"] is None  # frozen
        size = jnp.abs(updates["in"]["kernel"] / grads["in"]["kernel"]).reshape(-1)
        return {"step_size": Mean.of(size)}


FROZEN_OUT = (ParamGroup(pattern="out/.*", freeze=True), ParamGroup(pattern=".*"))


def test_norms_are_those_of_the_trained_parameters():
    optim = dataclasses.replace(SGD, groups=FROZEN_OUT)
    log = dataclasses.replace(experiment().log, every=1)
    config = experiment(Watched(), optim=optim, log=log)
    before, after = run_steps(config, 1)
    found = {name: float(metric.compute()) for name, metric in after.window.items()}
    change = np.linalg.norm(after.params["in"]["kernel"] - before.params["in"]["kernel"])
    expected = {
        "learning_rate": 0.1,
        "param_norm": np.linalg.norm(before.params["in"]["kernel"]),
        "update_norm": change,
        "grad_norm": change / 0.1,
        "step_size": 0.1,
        "skipped": 0.0,
    }
    assert found.keys() == {*expected, "loss"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, before.params["out"], after.params["out"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deep(Toy):
    """Five equal layers one after the other."""

    def init(self, key):
        return {str(i): jax.random.normal(key, (64, 64)) for i in range(5)}

    def predict(self, params, x, rngs=None):
        x = jnp.tile(x, (1, 8))
        for i in range(5):
            x = jnp.tanh(x @ params[str(i)])
        return x[:, 0]


def test_frozen_parameters_have_no_backward_pass():
    def compiled(*groups):
        setup = prepare(experiment(Deep(), optim=OptimConfig(groups=groups)))
        batch = {
            name: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
            for name, leaf in setup.data.spec().items()
        }
        step = setup.train_step.lower(setup.abstract_state, batch).compile()
        memory = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract_state.opt_state))
        return step.cost_analysis()["flops"], setup.flops, memory

    whole = compiled()
    frozen = compiled(ParamGroup(pattern="[0-3]", freeze=True), ParamGroup(pattern=".*"))
    product = 2 * 16 * 64 * 64
    assert whole[1] == 14 * product  # five forward, five for the kernels, four for the inputs
    assert frozen[1] == 6 * product
    assert frozen[0] < 0.5 * whole[0]
    assert frozen[2] < 0.25 * whole[2]


def test_a_frozen_parameter_that_is_not_finite_does_not_matter_where_the_loss_is():
    @dataclasses.dataclass(frozen=True)
    class Unused(Toy):
        def init(self, key):
            return {**super().init(key), "unused": jnp.full((3,), jnp.nan)}

    groups = (ParamGroup(pattern="unused", freeze=True), ParamGroup(pattern=".*"))
    config = experiment(Unused(), optim=dataclasses.replace(SGD, groups=groups))
    _, after = run_steps(config, 1)
    assert float(after.window["skipped"].total) == 0
    assert after.fault.gradient.shape == (3,)
    assert np.isnan(after.params["unused"]).all()


def test_a_batch_of_weight_zero_changes_nothing():
    @dataclasses.dataclass(frozen=True)
    class Padding(Toy):
        def loss(self, params, batch, rngs):
            error = self.predict(params, batch["x"]) - batch["y"]
            return {"loss": Mean.of(error**2, jnp.zeros(len(error)))}

    before, after = run_steps(experiment(Padding(), optim=SGD), 1)
    assert float(after.window["skipped"].total) == 0
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


@pytest.mark.parametrize("nan_at", [0, 1])
def test_a_skipped_step_leaves_parameters_optimizer_and_average(nan_at):
    optim = OptimConfig(learning_rate=0.1)
    config = experiment(Toy(nan_at=nan_at), optim=optim, step=StepConfig(ema_decay=0.5))
    states = run_steps(config, nan_at + 1)
    before, after = states[-2:]
    jax.tree.map(
        np.testing.assert_array_equal,
        (before.params, before.ema, before.opt_state[:-1]),
        (after.params, after.ema, after.opt_state[:-1]),
    )
    if nan_at:  # the average is not that of the parameters any more
        assert not np.array_equal(after.params["in"]["kernel"], after.ema["in"]["kernel"])


def test_the_schedule_ends_with_the_run_whatever_was_skipped():
    optim = dataclasses.replace(SGD, schedule="linear", final_fraction=0.1)
    log = dataclasses.replace(experiment().log, every=1)
    config = experiment(Toy(nan_at=1), optim=optim, log=log, steps=4)
    *_, before, after = run_steps(config, 4)
    window = {name: float(metric.compute()) for name, metric in after.window.items()}
    assert window["learning_rate"] == pytest.approx(0.01)
    assert window["update_norm"] == pytest.approx(0.01 * window["grad_norm"], rel=1e-4)
    assert int(before.step) == 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Toy):
    """Toy task that reports a random number and its square."""

    def loss(self, params, batch, rngs):
        draw = jax.random.uniform(rngs("draw"))
        one = jnp.ones(())
        return {
            **self.metrics(params, batch),
            "draw": Mean(draw, one),
            "square": Mean(draw**2, one),
        }


@pytest.mark.parametrize("steps", [StepConfig(accumulate=2), StepConfig(per_call=2)])
def test_every_microbatch_and_step_draws_anew(steps):
    log = dataclasses.replace(experiment().log, every=2)
    found = train(experiment(Drawing(), steps=2, step=steps, log=log)).metrics
    assert found["train/square"] - found["train/draw"] ** 2 > 1e-4
    if steps.accumulate == 2:
        log = dataclasses.replace(log, every=1)
        settings = {"steps": 1, "log": log, "checkpoint": CheckpointConfig(every=1)}
        found = train(experiment(Drawing(), step=steps, **settings)).metrics
        assert found["train/square"] - found["train/draw"] ** 2 > 1e-4


def test_a_step_that_is_not_finite_is_skipped():
    clean, skipped = train(experiment()), train(experiment(Toy(nan_at=10)))
    assert int(skipped.state.step) == 12
    assert skipped.metrics["train/skipped"] == 0.5
    # Not the last step: with a cosine to 0 that one changes nothing.
    eleven = train(experiment(Toy(nan_at=10)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(eleven.params)))
    assert not np.array_equal(clean.params["out"]["bias"], skipped.params["out"]["bias"])
    assert np.isfinite(skipped.metrics["train/loss"])


def test_training_stops_when_nothing_is_finite_any_more():
    config = experiment(optim=OptimConfig(name="sgd", learning_rate=1e30, schedule="constant"))
    with pytest.raises(FloatingPointError, match=r"lower optim\.learning_rate"):
        train(config)


def test_a_loss_of_the_wrong_form_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Scalar(Toy):
        def loss(self, params, batch, rngs):
            return jnp.zeros(())

    with pytest.raises(TypeError, match=r"Scalar\.loss must return a dict of metrics"):
        train(experiment(Scalar()))


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"acc": jnp.zeros(())}, TypeError, r"its entry 'acc' is .*common\.Mean\.of\(values\)"),
        ({"grad_norm": Mean.of(jnp.zeros(2))}, ValueError, "must not name a metric 'grad_norm'"),
    ],
)
@pytest.mark.parametrize("method", ["loss", "step_metrics"])
def test_metrics_of_the_wrong_form_or_a_taken_name_are_refused(entry, error, message, method):
    class Wrong(Toy):
        def loss(self, params, batch, rngs):
            return super().loss(params, batch, rngs) | (entry if method == "loss" else {})

        def step_metrics(self, params, grads, updates):
            return entry if method == "step_metrics" else {}

    with pytest.raises(error, match=rf"Wrong\.{method} .*{message}"):
        prepare(experiment(Wrong()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_metrics_of_narrow_types_are_summed_in_float32(accumulate):
    @dataclasses.dataclass(frozen=True)
    class Narrow(Toy):
        def loss(self, params, batch, rngs):
            ones = jnp.ones(len(batch["y"]), jnp.bfloat16)
            true = jnp.ones((len(batch["y"]), 4096), bool)
            own = Mean(ones.sum(), ones.sum())  # not by `Mean.of`
            zero = 0 * self.metrics(params, batch)["loss"].total.astype(jnp.bfloat16)
            return {"loss": Mean(zero + ones.sum(), ones.sum()), "own": own, "hit": Mean.of(true)}

    config = experiment(
        Narrow(eval_every=300),
        steps=300,
        log=dataclasses.replace(experiment().log, every=300),
        step=StepConfig(per_call=300, accumulate=accumulate),
        checkpoint=CheckpointConfig(every=300),
    )
    setup = prepare(config)
    batch = place(dict(stack_steps(setup.data, 0, 300)), setup.mesh, leading_axes=1)
    _, window = setup.train_step(setup.init_state(), batch)
    found = {name: float(window[name].compute()) for name in ("loss", "own", "hit")}
    assert found == {"loss": 1.0, "own": 1.0, "hit": 1.0}


def test_logged_metrics_are_means_over_the_window():
    windowed = train(experiment(log=dataclasses.replace(experiment().log, every=12)))
    losses = []
    setup = prepare(experiment(log=dataclasses.replace(experiment().log, every=1)))
    state = setup.init_state()
    for step in range(12):
        batch = place(dict(stack_steps(setup.data, step, 1)), setup.mesh, leading_axes=1)
        state, window = setup.train_step(state, batch)
        losses.append(float(window["loss"].compute()))
    np.testing.assert_allclose(windowed.metrics["train/loss"], np.mean(losses), rtol=1e-5)


def test_no_double_precision_sneaks_in():
    with jax.enable_x64(True):
        state = train(experiment()).state
        wide = [x.dtype for x in jax.tree.leaves(state) if x.dtype in (np.float64, np.int64)]
    assert not wide
