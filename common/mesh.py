"""The device mesh over (data, fsdp, tensor), and how arrays are laid out on it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from common.tree import match_rules, named_leaves

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""The axes over which examples are split; `tensor` splits the layers themselves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each axis of the mesh."""

    data: int = -1
    """Replicas of the parameters; -1 takes all devices that the other axes leave."""
    fsdp: int = 1
    """Devices that share one copy of the parameters, each with its own examples."""
    tensor: int = 1
    """Devices that share the layers of one example."""


def count_slices(devices: Iterable[jax.Device]) -> int:
    """Return how many slices of TPUs the devices belong to; other devices count as one."""
    return len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange the devices (all by default) as the config says, slices of TPUs along `data`.

    Raises:
      ValueError: if an axis has no device, the product of the axes is not the device count, or
        `data` does not divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if any(size < 1 for size in sizes[1:]) or (sizes[0] < 1 and sizes[0] != -1):
        raise ValueError(f"mesh axes must be positive (data may be -1); got {config}")
    if sizes[0] == -1:
        sizes[0] = max(1, len(devices) // math.prod(sizes[1:]))
    if math.prod(sizes) != len(devices):
        shape = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(
            f"the mesh {shape} needs {math.prod(sizes)} devices, and there are {len(devices)}; "
            "set mesh.data, mesh.fsdp and mesh.tensor so that their product is the device count "
            "(mesh.data=-1 takes what is left)"
        )
    slices = count_slices(devices)
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    if sizes[0] % slices:
        raise ValueError(
            f"mesh.data={sizes[0]} does not divide over {slices} slices; only replicas of the "
            "parameters are split over slices, since the network between them is slow"
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices
    )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def parameter_shardings(rules: Any, params: Any, mesh: Mesh) -> Any:
    """Give every parameter the sharding of the first rule that matches its name.

    Args:
      rules: `(pattern, axes)` pairs, see `Task.sharding_rules`; a shorter `axes` leaves the
        trailing dimensions whole.
      params: parameters, or their `jax.ShapeDtypeStruct`s.
      mesh: the mesh.

    Raises:
      ValueError: if a parameter has no rule, a rule no parameter, or a dimension does not divide.
    """
    # A PartitionSpec is no pytree leaf of its own in a list of rules: wrap it while matching.
    specs = match_rules(
        [(pattern, PartitionSpec(*axes)) for pattern, axes in rules], params, what="sharding rule"
    )

    def sharding(name: str, leaf: Any, spec: PartitionSpec) -> NamedSharding:
        if len(spec) > len(leaf.shape):
            raise ValueError(
                f"sharding rule {spec} of {name} has more axes than shape {leaf.shape}"
            )
        for size, axis in zip(leaf.shape, spec, strict=False):
            names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
            unknown = [n for n in names if n not in mesh.shape]
            if unknown:
                raise ValueError(
                    f"sharding rule of {name}: no mesh axis {unknown}; there are {AXES}"
                )
            parts = math.prod(mesh.shape[n] for n in names)
            if size % parts:
                raise ValueError(
                    f"{name} of shape {leaf.shape} does not divide over {axis}={parts}: "
                    f"{size} is not a multiple of {parts}"
                )
        return NamedSharding(mesh, spec)

    leaves = [
        sharding(name, leaf, spec)
        for (name, leaf), spec in zip(named_leaves(params), jax.tree.leaves(specs), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def like_parameters(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Lay out `tree` (an optimizer state, say) as the parameters that its leaves mirror.

    A leaf whose name ends in the name of a parameter of the same shape gets that parameter's
    sharding; every other leaf (counters, factored moments) is replicated.
    """
    by_name = {
        name: (leaf.shape, sharding)
        for (name, leaf), sharding in zip(
            named_leaves(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def sharding(name: str, leaf: Any) -> NamedSharding:
        parts = name.split("/")
        for i in range(len(parts)):
            shape, found = by_name.get("/".join(parts[i:]), (None, None))
            if found is not None and shape == leaf.shape:
                return found
        return NamedSharding(mesh, PartitionSpec())

    leaves = [sharding(name, leaf) for name, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def check_batch(batch_size: int, examples: int, accumulate: int, mesh: Mesh) -> None:
    """Refuse a batch that does not split evenly over microbatches and devices.

    Args:
      batch_size: what the config says.
      examples: length of the first axis of a batch: fewer, where examples come in groups.
      accumulate: number of microbatches.
      mesh: the mesh.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if examples % (shards * accumulate):
        groups = "" if examples == batch_size else f", in {examples} groups,"
        # Where groups are no whole number of examples, what they add up to is not ours to say.
        size = batch_size / examples if batch_size % examples == 0 else 1
        multiple = int(size * shards * accumulate)
        raise ValueError(
            f"batch_size {batch_size}{groups} does not divide into {accumulate} microbatch(es) "
            f"over data*fsdp={shards} devices; make it a multiple of {multiple}"
        )


def round_up(count: int, mesh: Mesh) -> int:
    """Return the smallest number of examples, `count` at least, that divides over the devices."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return math.ceil(count / shards) * shards


def example_shards(x: jax.Array) -> int:
    """Return over how many devices the mesh of an array splits examples; 1 without a mesh."""
    mesh = jax.typeof(x).sharding.mesh
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def constrain(x: jax.Array, *axes: Any, like: jax.Array | None = None) -> jax.Array:
    """Lay out an array inside a compiled function, on the mesh of the function's arguments.

    Args:
      x: the array.
      *axes: mesh axes, or None, for each dimension; `PartitionSpec.UNCONSTRAINED`, and what is not
        given, is left to the compiler.
      like: array that knows the mesh, where `x` was not computed from the arguments.
    """
    known = x if like is None else like
    if example_shards(known) == 1:
        return x
    spec = [*axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))]
    mesh = jax.typeof(known).sharding.mesh
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def split_examples(x: jax.Array) -> jax.Array:
    """Keep the activations of a model split by examples, along their first axis.

    Where parameters are split over `fsdp`, the compiler may else split the width of the activations
    alike, so that each device computes a part of all the examples of its axis: more memory, and
    activations instead of weights on the network. What does not divide is left as it is.
    """
    return x if len(x) % example_shards(x) else constrain(x, BATCH_AXES)


def await_simulated(outputs: Any, mesh: Mesh) -> None:
    """Wait for the outputs of a call where several devices are simulated on one CPU.

    There, calls that run ahead of each other can starve each other's collectives of threads, until
    none goes on. On real devices this returns at once.
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(outputs)


def batch_sharding(mesh: Mesh, *, leading_axes: int = 0) -> NamedSharding:
    """Return the layout of a batch: its examples split over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading_axes, BATCH_AXES))


@functools.cache
def _send(sharding: NamedSharding) -> Callable[[Any], Any]:
    """Return what sends arrays to the devices; ten times as fast as `jax.device_put` for a few."""
    return jax.jit(lambda batch: batch, in_shardings=sharding, out_shardings=sharding)


@functools.cache
def local_examples(mesh: Mesh, count: int) -> Int[np.ndarray, "own"]:
    """Return the numbers of the examples of a batch that this process's devices take, in order.

    Args:
      mesh: the mesh.
      count: examples of the batch.

    Raises:
      ValueError: if they do not divide over the devices.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if count % shards:
        raise ValueError(
            f"a batch of {count} examples does not divide over data*fsdp={shards} devices; make it "
            f"a multiple of {shards}"
        )
    indices = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    found = np.unique([np.arange(count)[index] for index in indices if index is not None])
    found.setflags(write=False)
    return found


def place(batch: Any, mesh: Mesh, *, leading_axes: int = 0, count: int | None = None) -> Any:
    """Send a host batch to the devices, its examples split over the data and fsdp axes.

    Args:
      batch: pytree of arrays, examples along axis `leading_axes`: the whole batch, the same on
        every process, or the `local_examples` of it.
      mesh: the mesh.
      leading_axes: number of axes before the examples (1 for batches stacked over steps).
      count: examples of the whole batch; those of `batch` by default.

    Returns:
      The batch on the devices; where the only one is the CPU itself, the arrays as they are.

    Raises:
      ValueError: if the examples do not divide over the devices, or an array has another number of
        them.
    """
    lengths = {leaf.shape[leading_axes] for leaf in jax.tree.leaves(batch)}
    count = max(lengths) if count is None else count
    own = local_examples(mesh, count)
    if not lengths <= {count, len(own)}:
        found = {name: leaf.shape[leading_axes] for name, leaf in named_leaves(batch)}
        raise ValueError(f"the arrays of a batch must have {count} examples each, not {found}")
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        return batch  # lies where it is needed; to be copied there would take longer than a step
    sharding = batch_sharding(mesh, leading_axes=leading_axes)
    if jax.process_count() == 1:
        return _send(sharding)(batch)

    def place_leaf(leaf: np.ndarray) -> jax.Array:
        whole = leaf.shape[leading_axes] == count
        shape = (*leaf.shape[:leading_axes], count, *leaf.shape[leading_axes + 1 :])

        def read(index: Any) -> np.ndarray:
            start, stop, _ = index[leading_axes].indices(count)
            first = start if whole else int(np.searchsorted(own, start))
            return leaf[(*index[:leading_axes], slice(first, first + stop - start))]

        return jax.make_array_from_callback(shape, sharding, read)

    return jax.tree.map(place_leaf, batch)
