"""The value of every diagram for a given network, and the sum rule that they obey.

One sweep from the input to the output carries a field for each subdiagram that exists so far: the
leg starts as the displacement, each layer pushes all fields through its weights in one product,
multiplies them by phi', and adds the vertices that it can form. Subdiagrams are shared by all
diagrams that contain them. This is for reporting: `born_mlp.taylor` computes totals faster.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from born_mlp.diagrams.tree import LEG, Diagram, enumerate_diagrams
from born_mlp.mlp import MLP, Params

Key = TypeVar("Key", bound=Hashable)

MAX_BYTES = 4 * 2**30
"""Largest array that `tensors` returns."""


def diagrams_of(mlp: MLP, order: int) -> tuple[Diagram, ...]:
    """Return the diagrams of `order` for an architecture: its depth K counts nonlinear layers.

    Raises:
        ValueError: there is none, as a linear network has no derivatives of order 2 or more.
    """
    depth = sum(phi is not None for phi in mlp.layer_activations)
    diagrams = enumerate_diagrams(order, depth)
    if not diagrams:
        raise ValueError(f"an MLP without a nonlinear layer has no derivatives of order {order}")
    return diagrams


def contributions(
    mlp: MLP,
    params: Params,
    x: Float[Array, "*#batch d"],
    v: Float[Array, "*#batch d"],
    *,
    order: int,
) -> Float[Array, "n ..."]:
    """Return what each diagram contributes to `f(x + v)`: its value at v times 1/|Aut|.

    The result has shape (n, *batch), or (n, *batch, o) for vector output. Its first axis follows
    `diagrams_of(mlp, order)`; its sum is `D^m f(x)[v, ..., v] / m!`. Each diagram costs O(H^2) a
    layer and point.

    Raises:
        ValueError: the activation is not smooth, or the last axis of x or v is not d.
    """
    diagrams = diagrams_of(mlp, order)
    _check_inputs(mlp, order, x, v)
    return _scaled(_batched(mlp, order, params, x, v[..., None])[..., 0], diagrams)


def tensors(
    mlp: MLP, params: Params, x: Float[Array, "*batch d"], *, order: int
) -> Float[Array, "n ..."]:
    """Return each diagram as a tensor with `order` axes of d, summed over all labels of its legs.

    The result has shape (n, *batch, d, ..., d), with o after the batch for vector output. Its first
    axis follows `diagrams_of(mlp, order)`; its sum is `D^m f(x)`. Each tensor is symmetric, the sum
    of as many labelled diagrams as its multiplicity says.

    Raises:
        ValueError: the activation is not smooth, the last axis of x is not d, or the result is
            larger than `MAX_BYTES`.
    """
    diagrams = diagrams_of(mlp, order)
    _check_inputs(mlp, order, x)
    d = mlp.in_features
    entries = len(diagrams) * math.prod(x.shape[:-1]) * mlp.widths[-1] * d**order
    if entries * x.dtype.itemsize > MAX_BYTES:
        raise ValueError(
            f"{len(diagrams)} tensors of order {order} with d = {d} at {math.prod(x.shape[:-1])} "
            f"points take {entries * x.dtype.itemsize / 2**30:.1f} GiB; take fewer points or a "
            "lower order, or contract with directions: contributions(mlp, params, x, v, order=...)"
        )
    values = _batched(mlp, order, params, x, jnp.eye(d, dtype=x.dtype))
    values = values.reshape(*values.shape[:-1], *(d,) * order)
    return _scaled(_sum_over_permutations(values, order), diagrams)


def by_class(
    values: Float[Array, "n *rest"], diagrams: Sequence[Diagram], key: Callable[[Diagram], Key]
) -> dict[Key, Float[Array, "*rest"]]:
    """Add up the values of the diagrams that have the same `key`.

    By topology: `key=lambda diagram: diagram.topology`; by the layer of the root, the deepest
    nonlinearity: `lambda diagram: diagram.layer`; by all layers: `lambda diagram: diagram.layers`.
    """
    classes: dict[Key, Array] = {}
    for diagram, value in zip(diagrams, values, strict=True):
        name = key(diagram)
        classes[name] = classes[name] + value if name in classes else value
    return classes


def check_sum_rule(
    mlp: MLP,
    params: Params,
    x: Float[Array, "*#batch d"],
    *,
    order: int,
    v: Float[Array, "*#batch d"] | None = None,
) -> float:
    """Compare the sum over all diagrams with nested forward-mode autodiff of `mlp.apply`.

    Compares full tensors, or terms of `f(x + v)` where a direction is given. Autodiff nests `order`
    times and knows nothing of the diagrams.

    Returns:
        The largest error over the largest entry of the reference.
    """
    if v is None:
        total = tensors(mlp, params, x, order=order).sum(axis=0)
        derivative: Callable[[Array], Array] = functools.partial(mlp.apply, params)
        for _ in range(order):
            derivative = jax.jacfwd(derivative)
        points = x.reshape(-1, x.shape[-1])
        reference = jax.jit(jax.vmap(derivative))(points).reshape(total.shape)
    else:
        total = contributions(mlp, params, x, v, order=order).sum(axis=0)

        def along(t: Array) -> Array:
            return mlp.apply(params, x + t * v)

        derivative = along
        for _ in range(order):
            derivative = jax.jacfwd(derivative)
        reference = jax.jit(derivative)(jnp.zeros((), x.dtype)) / math.factorial(order)
    error = np.max(np.abs(np.asarray(total - reference)))
    return float(error / np.max(np.abs(np.asarray(reference))))


def _check_inputs(mlp: MLP, order: int, *inputs: Array) -> None:
    for activation in mlp.layer_activations:
        if activation is not None:
            activation.require_smooth(order)
    for array in inputs:
        if array.ndim == 0 or array.shape[-1] != mlp.in_features:
            raise ValueError(
                f"the MLP has {mlp.in_features} inputs, so points and directions have shape "
                f"(..., {mlp.in_features}); got {array.shape}"
            )


def _scaled(values: Array, diagrams: Sequence[Diagram]) -> Array:
    """Multiply each diagram by its symmetry factor."""
    weights = [float(diagram.symmetry_factor) for diagram in diagrams]
    return values * jnp.asarray(weights, values.dtype).reshape(-1, *(1,) * (values.ndim - 1))


@functools.partial(jax.jit, static_argnames="order")
def _sum_over_permutations(values: Array, order: int) -> Array:
    """Add the m! permutations of the last `order` axes, as products of transpositions (i j)."""
    for j in range(1 - order, 0):
        values = values + sum(jnp.swapaxes(values, i, j) for i in range(-order, j))
    return values


@functools.partial(jax.jit, static_argnames=("mlp", "order"))
def _batched(mlp: MLP, order: int, params: Params, x: Array, frame: Array) -> Array:
    """Return the values for legs along every combination of the columns of `frame`.

    Takes x (*batch, d) and frame (*batch, d, n) to values (diagrams, *batch, *out, n^m).
    """
    batch = jnp.broadcast_shapes(x.shape[:-1], frame.shape[:-2])
    points = jnp.broadcast_to(x, (*batch, *x.shape[-1:])).reshape(-1, x.shape[-1])
    frames = jnp.broadcast_to(frame, (*batch, *frame.shape[-2:])).reshape(-1, *frame.shape[-2:])
    values = jax.vmap(functools.partial(_sweep, mlp, order, params), out_axes=1)(points, frames)
    if mlp.out_features is None:
        values = values[:, :, 0]
    return values.reshape(values.shape[0], *batch, *values.shape[2:])


def _sweep(mlp: MLP, order: int, params: Params, x: Array, frame: Array) -> Array:
    """Return (diagrams, o, n^m) at one point: legs in the order in which the diagram has them."""
    y, fields = x, {LEG: frame}
    for l, (layer, phi) in enumerate(zip(params, mlp.layer_activations, strict=True), start=1):
        z = y @ layer["kernel"] + layer["bias"]
        ends = np.cumsum([field.shape[1] for field in fields.values()])[:-1]
        pushed = layer["kernel"].T @ jnp.concatenate(list(fields.values()), axis=1)
        incoming = dict(zip(fields, jnp.split(pushed, ends, axis=1), strict=True))
        if phi is None:
            y, fields = z, incoming
            continue
        tower = phi.derivatives(z, order)
        y, fields = tower[0], {tree: tower[1][:, None] * s for tree, s in incoming.items()}
        for legs in range(2, order + 1):
            for vertex in enumerate_diagrams(legs, l):
                if vertex.layer == l:
                    factors = [incoming[child] for child in vertex.children]
                    product = functools.reduce(_outer, factors)
                    fields[vertex] = tower[len(factors)][:, None] * product
    return jnp.stack([fields[diagram] for diagram in diagrams_of(mlp, order)])


def _outer(a: Float[Array, "h n"], b: Float[Array, "h m"]) -> Float[Array, "h nm"]:
    """Outer product over the legs, diagonal in the neuron that they share."""
    return (a[:, :, None] * b[:, None, :]).reshape(a.shape[0], -1)
