"""Numerics and form of the training step (design invariants 3 and 9)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import CheckpointConfig, Mean, MeshConfig, OptimConfig, StepConfig, train
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
    assert result.params is result.state.ema
    assert_close(ema, jax.device_get(result.params))


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
    clean, skipped = train(experiment()), train(experiment(Toy(nan_at=11)))
    assert int(skipped.state.step) == 12
    assert skipped.metrics["train/skipped"] == 0.5
    eleven = train(experiment(Toy(nan_at=11)))
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
