"""Blocks of one kind, stacked: their parameters have a leading axis of layers."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float

from common.mesh import split_examples
from common.step import Remat

Block = TypeVar("Block", bound=nnx.Module)


def make_stack(make: Callable[[nnx.Rngs], Block], layers: int, *, rngs: nnx.Rngs) -> Block:
    """Draw the parameters of `layers` blocks."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap
    def make_all(rngs: nnx.Rngs) -> Block:
        return make(rngs)

    return make_all(rngs)


def run_stack(
    blocks: nnx.Module,
    step: Callable[[Any, Array, Any], Array],
    x: Float[Array, "B L d"],
    each: Any = None,
    *,
    layers: int,
    scan: bool,
    remat: Remat,
) -> Float[Array, "B L d"]:
    """Run a stream through stacked blocks, one after the other.

    Args:
      blocks: the blocks, as `make_stack` makes them.
      step: `(block, x, own) -> x` for one of the blocks.
      x: the stream.
      each: pytree with a leading axis of layers; `own` is a block's part of it.
      layers: number of blocks.
      scan: run by `lax.scan`, which compiles one block; otherwise unrolled.
      remat: what the backward pass recomputes in each block: nothing, all but matrix products, or
        all.
    """
    graph, stacked = nnx.split(blocks)

    def run(x: Array, layer: tuple[Any, Any]) -> Array:
        params, own = layer
        return split_examples(step(nnx.merge(graph, params), split_examples(x), own))

    if remat != "none":
        policies = jax.checkpoint_policies
        dots = policies.dots_with_no_batch_dims_saveable
        run = jax.checkpoint(run, policy=policies.nothing_saveable if remat == "full" else dots)
    if scan:
        return jax.lax.scan(lambda x, layer: (run(x, layer), None), x, (stacked, each))[0]
    for l in range(layers):
        x = run(x, jax.tree.map(lambda leaf, l=l: leaf[l], (stacked, each)))
    return x
