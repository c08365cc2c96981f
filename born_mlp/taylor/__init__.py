"""All partial derivatives of a multilayer perceptron, in any order, exactly.

    from born_mlp import taylor
    value, gradient, hessian, third = taylor.derivatives(mlp, params, x, 3)

Derivatives are packed: `hessian[..., n]` belongs to the indices `taylor.multi_indices(d, 2)[n]`.
`taylor.unpack` makes the dense tensor.
"""

from born_mlp.packing import multi_indices, multiplicities, pack, positions, size, unpack
from born_mlp.taylor.directional import directional
from born_mlp.taylor.evaluate import derivative, derivatives, selected

__all__ = [
    "derivative",
    "derivatives",
    "directional",
    "multi_indices",
    "multiplicities",
    "pack",
    "positions",
    "selected",
    "size",
    "unpack",
]
