"""Derivatives of a multilayer perceptron of any order, by the centroid formula of `plan`.

Everything here works on one chunk of points. Shapes: B points, d inputs, o outputs, H neurons of a
layer, `C_b = packing.size(d, b)`.

- `z[b]`, the derivative of order b of the preactivations: `(B, C_b, H)`. In the first layer `z[1]`
  is the kernel, `(d, H)`, the same at all points, and higher ones vanish (are absent).
- `r[a]`, the derivative of order a of the root propagator: `(B, o, C_a, H)`. In the last nonlinear
  layer `r[0]` is the same at all points, `(o, 1, H)`, and higher ones vanish.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from born_mlp import packing
from born_mlp.activations import Activation, polynomial
from born_mlp.mlp import Params
from born_mlp.taylor import plan

Tables = dict[tuple[int, int, bool], Array | np.ndarray]
"""Gather tables by order, size of the weighted group, and whether the block is symmetric."""

matmul = functools.partial(jnp.matmul, precision="highest")
"""Reduced-precision passes of a GPU or TPU would destroy derivatives of order 2 and higher."""


def rows(tensor: Array, index: np.ndarray) -> Array:
    """Take rows of the axis before the last, which is contiguous in memory.

    The leading axes are merged into that of the rows: XLA puts the gathered axis first, and would
    otherwise transpose the result (order 4 at three hidden layers of 64: 10% of the time).
    """
    *leading, length, width = tensor.shape
    starts = length * jnp.arange(math.prod(leading), dtype=np.int32)
    flat = tensor.reshape(-1, width).at[(starts[:, None] + index).reshape(-1)]
    return flat.get(mode="promise_in_bounds").reshape(*leading, len(index), width)


def shuffle_product(a: Array, b: Array, table: np.ndarray) -> Array:
    """Symmetrised product of packed tensors `(..., C_p, H)` and `(..., C_q, H)`."""
    terms = [rows(a, ia) * rows(b, ib) for ia, ib in table]
    return functools.reduce(jnp.add, terms)


class Layer:
    """A nonlinear layer: its tower, the derivatives of z and their symmetrised products."""

    def __init__(self, z: dict[int, Array], tower: list[Array], d: int):
        self.z = z
        self.tower = tower
        self.d = d
        self.z_order = max(z)
        self._products: dict[plan.Partition, Array] = {(b,): z[b] for b in z if b}

    def product(self, blocks: plan.Partition) -> Array:
        """Sum over the set partitions with these block sizes of `prod_b D^b z`, packed."""
        if blocks not in self._products:
            run = blocks.count(blocks[0])
            anchored = run == len(blocks)
            head, tail = (blocks[:1], blocks[1:]) if anchored else (blocks[:run], blocks[run:])
            table = packing.shuffles(self.d, sum(head), sum(tail), anchored)
            self._products[blocks] = shuffle_product(self.product(head), self.product(tail), table)
        return self._products[blocks]

    def compose(self, shift: int, order: int) -> Array:
        """Derivative of `order` of `phi^(shift)(z)`, `(B, C_order, H)`: Faa di Bruno's formula."""
        if order == 0:
            return self.tower[shift][:, None, :]
        terms = [
            self.tower[shift + len(blocks)][:, None, :] * self.product(blocks)
            for blocks in plan.partitions(order, self.z_order)
        ]
        return functools.reduce(jnp.add, terms)


def nonlinear(activations: Sequence[Activation | None]) -> list[Activation]:
    """Return the activations of the nonlinear layers; a linear network counts as one identity."""
    return [phi for phi in activations if phi is not None] or [polynomial((0.0, 1.0))]


def forward(
    z: Array, slope: Array, params: Params, activations: Sequence[Activation], order: int
) -> list[Layer]:
    """Push the derivatives of order up to `order // 2` through the nonlinear layers.

    Args:
        z: preactivations of the first layer, `(B, H)`.
        slope: their derivative, `(d, H)`.
        params: the other layers.
        activations: those of the nonlinear layers.
        order: highest derivative that will be contracted.
    """
    tensors = {0: z, 1: slope}
    layers = []
    for index, phi in enumerate(activations):
        layer = Layer(tensors, phi.derivatives(tensors[0], order), len(slope))
        layers.append(layer)
        if index < len(activations) - 1:
            kernel, bias = params[index]["kernel"], params[index]["bias"]
            tensors = {0: matmul(layer.tower[0], kernel) + bias}
            for b in range(1, order // 2 + 1):
                tensors[b] = matmul(layer.compose(0, b), kernel)
    return layers


def backward(
    layers: list[Layer], params: Params, root: Array, highest: int
) -> list[dict[int, Array]]:
    """Return the derivatives of the root propagator of each layer, of the orders 0..highest.

    Args:
        layers: result of `forward`.
        params: the layers after the first one.
        root: `r[0]` of the last nonlinear layer, `(o, 1, H)`.
        highest: highest order of the derivatives.
    """
    roots = [{0: root}]
    for index in range(len(layers) - 1, 0, -1):
        kernel, r = params[index - 1]["kernel"], roots[0]
        pulled = {a: matmul(through(layers[index], r, a), kernel.T) for a in range(highest + 1)}
        roots.insert(0, pulled)
    return roots


def through(layer: Layer, r: dict[int, Array], order: int) -> Array:
    """Derivative of `order` of `r phi'(z)`, `(B, o, C_order, H)`: Leibniz' rule."""
    terms = [
        attach(r[a], layer.compose(1, order - a)[:, None], a, order - a, layer.d)
        for a in range(order + 1)
        if a in r
    ]
    return functools.reduce(jnp.add, terms)


def attach(r: Array, other: Array, a: int, b: int, d: int) -> Array:
    """Symmetrised product of `D^a r` and a packed tensor of order b, with broadcasting."""
    if a == 0 or b == 0:
        return r * other
    return shuffle_product(r, other, packing.shuffles(d, a, b))


def contract(
    layers: list[Layer], roots: list[dict[int, Array]], order: int, tables: Tables
) -> Array:
    """Sum the centroid formula over layers and neurons: `D^m f`, `(B, o, C_m)`, for m >= 3."""
    summed: dict[tuple[int, bool], Array] = {}
    for layer, r, layer_splits in zip(
        layers, roots, plan.layer_splits(order, len(layers)), strict=True
    ):
        for split in layer_splits:
            block = _block(layer, r, split)
            key = (split.w, split.symmetric)
            summed[key] = summed[key] + block if key in summed else block
    result = []
    for (w, symmetric), block in summed.items():
        if w == 0:
            result.append(block)
            continue
        ways = [
            block.at[..., index].get(mode="promise_in_bounds")
            for index in tables[order, w, symmetric]
        ]
        gathered = functools.reduce(jnp.add, ways)
        result.append(order / w * gathered if symmetric else gathered)
    return functools.reduce(jnp.add, result)


def _block(layer: Layer, r: dict[int, Array], split: plan.Split) -> Array:
    """Matrix product of the plain and the weighted group of one layer, `(B, o, C_p * C_w)`.

    One product for each plain factor: concatenating the factors along the neurons to a single
    product copies both sides (order 4 at 8 to 16 inputs takes up to 20% longer).
    """
    products = []
    for plain in split.plains:
        terms = []
        for term in split.terms:
            if term.plain == plain:
                vertex = term.coefficient * layer.tower[term.vertex][:, None, None, :]
                value = r[term.adjoint] * vertex
                if term.weighted:
                    other = layer.product(term.weighted)[..., None, :, :]
                    value = attach(value, other, term.adjoint, sum(term.weighted), layer.d)
                terms.append(value)
        left, right = layer.product(plain), functools.reduce(jnp.add, terms)
        points, outputs, rows, inner = right.shape
        # The larger factor on the left: XLA's CPU kernels repack the one on the right.
        product = jnp.einsum(
            "bni,bmi->bnm" if left.ndim == 3 else "ni,bmi->bnm",
            left,
            right.reshape(points, outputs * rows, inner),
            precision="highest",
        )
        products.append(product.reshape(points, -1, outputs, rows))
    return functools.reduce(jnp.add, products).swapaxes(1, 2).reshape(points, outputs, -1)


@functools.lru_cache(maxsize=16)
def gather_tables(d: int, orders: tuple[int, ...], n_layers: int) -> Tables:
    """Return the tables that `contract` needs, each `(ways, C_m)`, into flat `(C_p, C_w)` blocks.

    They are arguments of the compiled function, because the large ones would bloat it as constants.
    """
    tables = {}
    for order in orders:
        if order >= 3:
            for split in {s for each in plan.layer_splits(order, n_layers) for s in each}:
                if split.w:
                    weighted, other = packing.shuffles(
                        d, split.w, split.p, split.symmetric
                    ).swapaxes(0, 1)
                    flat = other * packing.size(d, split.w) + weighted
                    tables[order, split.w, split.symmetric] = flat
    return tables


def evaluate(
    z: Array,
    slope: Array,
    params: Params,
    activations: Sequence[Activation | None],
    orders: Sequence[int],
    tables: Tables,
) -> list[Array]:
    """Return the derivatives of the given orders at one chunk of points, each `(B, o, C_m)`.

    Args:
        z: preactivations of the first layer, `(B, H)`.
        slope: their derivative by the inputs, `(d, H)`.
        params: the layers after the first one.
        activations: of all layers; None at the end is a linear output.
        orders: the orders m wanted.
        tables: `gather_tables` of these orders.
    """
    top = max(orders)
    layers = forward(z, slope, params, nonlinear(activations), top)
    linear = params[-1] if params and activations[-1] is None else None
    last = layers[-1].tower[0]
    if linear is None:
        value, root = last, jnp.eye(last.shape[-1], dtype=last.dtype)[:, None, :]
    else:
        value = matmul(last, linear["kernel"]) + linear["bias"]
        root = linear["kernel"].T[:, None, :]
    # Order 2 is cheaper as the derivative of the gradient than by the centroid formula: one sweep
    # more, but with kernels that all points share, instead of a small product for each point.
    highest = max((top - 1) // 2, 1 if 2 in orders else 0)
    roots = backward(layers, params, root, highest) if top else []
    results = []
    for order in orders:
        if order == 0:
            results.append(value[..., None])
        elif order <= 2:
            dense = matmul(through(layers[0], roots[0], order - 1), slope.T)
            results.append(packing.pack(dense, 2) if order == 2 else dense[..., 0, :])
        else:
            results.append(contract(layers, roots, order, tables))
    return results
