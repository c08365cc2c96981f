"""A run that starts from given parameters: they, and all that is made of them, are what it gets."""

import dataclasses

import jax
import numpy as np
import pytest

from common import MeshConfig, ParamGroup, StepConfig, train
from common.setup import prepare
from tests.common.toy import Toy, experiment


def given(width: int = 16) -> dict:
    rng = np.random.default_rng(7)
    shapes = {"in": {"kernel": (8, width)}, "out": {"kernel": (width, 1), "bias": (1,)}}
    return jax.tree.map(
        lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started(Toy):
    """A task that starts from `given`."""

    start_width: int = 16

    def pretrained(self):
        return given(self.start_width)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=4)])
def test_parameters_and_their_average_start_from_the_given_ones(mesh):
    rules = ((".*kernel", ("fsdp",)), (".*", ()))
    config = experiment(Started(rules=rules), mesh=mesh, step=StepConfig(ema_decay=0.9))
    setup = prepare(config)
    state = setup.init_state()
    for tree in (state.params, state.ema):
        jax.tree.map(
            lambda leaf, expected: np.testing.assert_array_equal(leaf, expected.astype(np.float32)),
            tree,
            given(),
        )
    layout = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == layout


def test_training_decays_to_the_given_parameters():
    optim = dataclasses.replace(
        experiment().optim,
        name="sgd",
        learning_rate=1e-3,
        schedule="constant",
        weight_decay=1e3,
        decay_to_init=True,
        groups=(ParamGroup(pattern=".*"),),
    )
    # With lr * decay = 1 each step ends at the start minus lr * gradient, wherever it was before.
    with_decay = train(experiment(Started(), optim=optim, steps=12)).params
    start = given()
    moved = jax.tree.map(lambda p, s: np.abs(np.asarray(p) - s).max(), with_decay, start)
    free = train(
        experiment(Started(), optim=dataclasses.replace(optim, weight_decay=0.0), steps=12)
    ).params
    moved_free = jax.tree.map(lambda p, s: np.abs(np.asarray(p) - s).max(), free, start)
    assert max(jax.tree.leaves(moved)) < 0.5 * max(jax.tree.leaves(moved_free))


def test_a_resumed_run_does_not_read_them_again(tmp_path, monkeypatch):
    config = experiment(Started(), workdir=str(tmp_path))
    first = train(config)
    monkeypatch.setattr(Started, "pretrained", lambda self: pytest.fail("read again"))
    again = train(config)
    np.testing.assert_array_equal(again.params["out"]["bias"], first.params["out"]["bias"])


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"fit the model:\n  in/kernel: \(8, 5\), expected \(8, 16\)"
    ):
        prepare(experiment(Started(start_width=5))).init_state()
