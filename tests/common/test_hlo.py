"""Collectives read from the text of compiled programs, of the CPU's compiler and the TPU's."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from common import MeshConfig
from common.hlo import Collective, collectives
from common.mesh import make_mesh, split_examples

TPU = """HloModule jit_step, entry_computation_layout={()->f32[]}

%start.1 (p: bf16[16,8]) -> bf16[128,8] {
  %all-gather.7 = bf16[128,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=8], device_ids=([2,8]T(1,0)) {'axis_1'}, dimensions={0}
}

%overlapped.1 (p: bf16[16,8]) -> bf16[128,8] {
  %all-gather.8 = bf16[128,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=9, replica_groups=[2,8]<=[16], dimensions={0}
}

%all-reduce-scatter.3 (p: f32[16,4]) -> f32[2,4] {
  %all-reduce.2 = f32[16,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
}

%body.1 (p: (s32[], f32[])) -> (s32[], f32[]) {
  %async-collective-start = (bf16[16,8], bf16[128,8]) fusion(%p), kind=kCustom, calls=%start.1
  %fusion.2 = bf16[128,8] fusion(%p), kind=kCustom, calls=%overlapped.1
  %fusion.3 = f32[2,4] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
  %fusion.4 = f32[2,4] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
}

%condition.1 (p: (s32[], f32[])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

ENTRY %main.1 (p: f32[]) -> f32[] {
  %while.1 = (s32[], f32[]) while(%tuple), condition=%condition.1, body=%body.1
  %collective-permute-start = (s8[10], s8[10], u32[], u32[]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %send.1 = (f32[6]{0:T(8)}, u32[], token[]) send(%x, %after), channel_id=3, is_host_transfer=true
}
"""  # noqa: E501


def test_the_text_of_the_tpu_compiler():
    found = collectives(TPU)
    scatter = Collective(kind="reduce-scatter", count=12, bytes=16 * 4 * 4, devices=8)
    assert found == [
        Collective(kind="all-gather", count=12, bytes=128 * 8 * 2, devices=8),
        scatter,
        scatter,
        Collective(kind="collective-permute", count=1, bytes=10, devices=2),
        Collective(kind="send", count=1, bytes=24, devices=2),
    ]
    assert [c.between_slices for c in found] == [False, False, False, False, True]
    scattered = 12 * 256 * 7 / 8
    assert [c.sent for c in found] == [12 * 2048 * 7 / 8, scattered, scattered, 10, 24]
    # Loops over the parts of a product count without a sign.
    assert collectives(TPU.replace("constant.1 = s32", "constant.1 = u32")) == found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("direction=LT", "direction=NE", "trip count"), ("=[2,8]<=", "=some", "groups of devices")],
)
def test_what_is_not_understood_is_refused(old, new, message):
    with pytest.raises(ValueError, match=message):
        collectives(
            TPU.replace("channel_id=9, replica_groups=[", "replica_groups=[").replace(old, new)
        )


def sent_by_layers(batch: int, constrain) -> float:
    """Bytes that a device sends for the five layers in a gradient, weights split over `fsdp`.

    What the first layer takes is looked up in a table whose width is split, as in the T5: left to
    itself, the compiler goes on with activations that are split by width.
    """
    mesh = make_mesh(MeshConfig(fsdp=8))

    def loss(params, ids):
        def layer(x, w):
            return constrain(jnp.tanh(constrain(x) @ w)), None

        return jnp.sum(jax.lax.scan(layer, params["table"][ids], params["layers"])[0] ** 2)

    def spec(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )

    params = {
        "table": spec((32, 16), jnp.float32, None, "fsdp"),
        "layers": spec((5, 16, 16), jnp.float32, None, "fsdp"),
    }
    ids = spec((batch,), jnp.int32, ("data", "fsdp"))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    program = jax.jit(jax.grad(loss), out_shardings=shardings).lower(params, ids).compile()
    return sum(c.sent for c in collectives(program.as_text()) if c.count == 5)


def test_weights_travel_and_activations_do_not():
    small, large = (sent_by_layers(batch, split_examples) for batch in (64, 512))
    gathered, reduced = (2 * 5 * 16 * 16 * 4 * 7 / 8, 2 * 5 * 16 * 16 * 4 * 7 / 8)
    assert small == large
    assert gathered * 0.5 <= small <= gathered + reduced
    # Without it, as many bytes more are sent as there are more examples.
    small, large = (sent_by_layers(batch, lambda x: x) for batch in (64, 512))
    assert large == 8 * small > 10 * gathered
