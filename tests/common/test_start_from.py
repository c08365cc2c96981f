"""Parameters taken over from a checkpoint of another run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from common import MeshConfig, StepConfig, train
from common.preempt import Preempted
from common.setup import prepare
from tests.common.test_resume import flip_bits, lose_arrays, saved_steps, stop_at
from tests.common.toy import Toy, experiment


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run that keeps averaged parameters, with checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("source")
    return folder, train(experiment(step=StepConfig(ema_decay=0.5), workdir=str(folder)))


def start(path, task=None, **settings):
    return prepare(experiment(task, start_from=str(path), **settings)).init_state()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_a_run_starts_from_the_averaged_parameters_of_another(source):
    folder, result = source
    state = start(folder, step=StepConfig(ema_decay=0.9))
    assert_equal(state.params, result.state.ema)
    assert_equal(state.ema, result.state.ema)
    assert int(state.step) == 0
    for path in (folder / "checkpoints" / "12", str(folder) + "/"):
        assert_equal(start(path).params, result.state.ema)
    assert np.any(
        start(folder / "checkpoints" / "4").params["out"]["bias"] != result.state.ema["out"]["bias"]
    )


def test_on_other_devices_and_in_another_type(source):
    class Half(Toy):
        def init(self, key):
            return jax.tree.map(lambda p: p.astype(jnp.bfloat16), super().init(key))

    folder, result = source
    task = Half(rules=((".*kernel", ("fsdp", None)), (".*", ())))
    params = start(folder, task, mesh=MeshConfig(data=2, fsdp=4)).params
    assert_equal(params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), result.state.ema))
    assert params["in"]["kernel"].sharding.spec == PartitionSpec("fsdp", None)


def test_some_parameters_by_name(source):
    folder, result = source
    own = prepare(experiment(Toy(width=16), seed=3)).init_state().params
    params = start(folder, seed=3, start_from_parameters=("in/.*",)).params
    assert_equal(params["in"], result.state.ema["in"])
    assert_equal(params["out"], own["out"])


def test_what_does_not_fit_is_named(source):
    class More(Toy):
        def init(self, key):
            return super().init(key) | {"head": jnp.zeros((3,))}

    folder, _ = source
    with pytest.raises(ValueError, match=r"in/kernel: \(8, 16\), expected \(8, 4\)\n.*out/kernel"):
        start(folder, Toy(width=4))
    with pytest.raises(ValueError, match=r"head: missing, expected \(3,\)"):
        start(folder, More())
    start(folder, More(), start_from_parameters=("(in|out)/.*",))
    with pytest.raises(ValueError, match=r"'encoder.*' matches no parameter; the names are: in/ke"):
        start(folder, start_from_parameters=("encoder.*",))
    with pytest.raises(ValueError, match=r"is not a regular expression"):
        start(folder, start_from_parameters=("(",))


def test_a_place_without_a_checkpoint(source, tmp_path):
    folder, _ = source
    for path in (tmp_path, tmp_path / "nowhere", folder / "checkpoints" / "5"):
        with pytest.raises(ValueError, match="neither the work folder of a run with checkpoints"):
            start(path)


@pytest.mark.parametrize("tear", [flip_bits, lose_arrays])
def test_a_torn_checkpoint_is_refused(tear, tmp_path):
    result = train(experiment(steps=4, workdir=str(tmp_path)))
    assert_equal(start(tmp_path).params, result.params)  # no average is kept
    tear(tmp_path / "checkpoints" / "4")
    with pytest.raises(ValueError, match=r"start_from: .*checkpoints/4 cannot be read"):
        start(tmp_path)


def test_it_is_read_at_step_0_only(source, tmp_path, monkeypatch):
    folder, _ = source
    config = experiment(start_from=str(folder), workdir=str(tmp_path))
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Preempted):
            train(config)
    assert saved_steps(tmp_path)
    monkeypatch.setattr("common.setup.take_parameters", lambda *a: pytest.fail("read again"))
    resumed = train(config)
    monkeypatch.undo()
    whole = train(dataclasses.replace(config, workdir=None))
    assert_equal(resumed.state, whole.state)
