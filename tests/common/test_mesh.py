"""Meshes, sharding rules, and what is refused before compute is spent."""

import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from common import MeshConfig
from common.mesh import like_parameters, make_mesh, parameter_shardings, place
from common.setup import prepare
from common.tree import match_rules, named_leaves
from tests.common.toy import Toy, experiment

PARAMS = {"block": {"kernel": jnp.zeros((8, 16)), "bias": jnp.zeros((16,))}}


def test_names_are_joined_by_slashes():
    assert [name for name, _ in named_leaves({"a": [1, {"b": 2}]})] == ["a/0", "a/1/b"]


def test_data_axis_takes_what_is_left():
    assert dict(make_mesh(MeshConfig(tensor=2)).shape) == {"data": 4, "fsdp": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), "needs 3 devices, and there are 8"),
        (MeshConfig(fsdp=3), "needs 6 devices, and there are 8"),
        (MeshConfig(fsdp=0), "must be positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config)


def test_the_first_matching_rule_decides():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rules = ((".*kernel", ("fsdp", "tensor")), (".*", ()))
    shardings = parameter_shardings(rules, PARAMS, mesh)
    assert shardings["block"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert shardings["block"]["bias"].spec == PartitionSpec()
    state = optax.adam(1e-3).init(PARAMS)
    laid_out = like_parameters(state, PARAMS, shardings, mesh)
    assert laid_out[0].mu["block"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert laid_out[0].count.spec == PartitionSpec()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("block/kernel", 1)], "no rule covers block/bias"),
        ([("block/kernal", 1), (".*", 2)], "rule 'block/kernal' matches no parameter; the names"),
        ([("*", 1)], r"rule '\*' is not a regular expression"),
    ],
)
def test_rules_and_parameters_must_cover_each_other(rules, message):
    with pytest.raises(ValueError, match=message):
        match_rules(rules, PARAMS, what="rule")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((".*kernel", ("model",)), (".*", ())), r"block/kernel: no mesh axis \['model'\]"),
        (((".*", ("fsdp", None)),), "of block/bias has more axes than shape"),
        (((".*", ("data",)),), r"block/bias of shape \(6,\) does not divide over data=4"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(rules, message):
    params = {"block": {"bias": jnp.zeros((6,)), "kernel": jnp.zeros((8, 6))}}
    with pytest.raises(ValueError, match=message):
        parameter_shardings(rules, params, make_mesh(MeshConfig(data=4, fsdp=2)))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size 12 does not divide .* multiple of 8"):
        prepare(experiment(batch_size=12))


def test_parameters_and_optimizer_are_born_in_their_layout():
    rules = ((".*kernel", ("fsdp", None)), (".*", ()))
    setup = prepare(experiment(Toy(rules=rules), mesh=MeshConfig(data=2, fsdp=4)))
    state = setup.init_state()
    kernel = state.params["in"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 16)}
    moments = [x for name, x in named_leaves(state.opt_state) if name.endswith("in/kernel")]
    assert len(moments) == 2
    assert all(m.sharding == kernel.sharding for m in moments)


def test_examples_are_split_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = place({"x": jnp.zeros((3, 8))}, mesh, leading_axes=1)["x"]
    assert {s.data.shape for s in placed.addressable_shards} == {(3, 2)}
    with pytest.raises(ValueError, match=r"6 examples .* data\*fsdp=4 devices"):
        place({"x": jnp.zeros((3, 6))}, mesh, leading_axes=1)
    with pytest.raises(ValueError, match=r"must have 8 examples each, not .*'y': 4"):
        place({"x": jnp.zeros((3, 8)), "y": jnp.zeros((3, 4))}, mesh, leading_axes=1)
