"""Directional derivatives of all orders at once, by the closed recursion along a line.

Along `x + t v` every quantity is a power series in t. Layer by layer, `y(t) = phi(z_0 + dz(t))` has
the coefficients `y_n = sum_k phi^(k)(z_0)/k! [t^n] dz(t)^k`, the partial Bell polynomials; the
coefficients of all orders pass through a weight matrix in one product. The cost grows with the
order as m^2 in matrix products of one vector each, not with the number of derivatives.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from born_mlp.activations import Activation
from born_mlp.mlp import MLP, Params
from born_mlp.taylor.engine import matmul


def directional(
    mlp: MLP,
    params: Params,
    x: Float[Array | np.ndarray, "*#batch d"],
    v: Float[Array | np.ndarray, "*#batch d"],
    order: int,
) -> tuple[Array, ...]:
    """Return `D^n f(x)[v, ..., v]` for n = 0..order, each of the shape of `mlp.apply(params, x)`.

    Args:
        mlp: the architecture.
        params: its weights.
        x: points, `(..., d)`.
        v: directions, `(..., d)`, broadcast against the points.
        order: highest order.

    Raises:
        ValueError: the last axes differ from `mlp.in_features`, or an activation is not smooth.
    """
    for name, array in (("x", x), ("v", v)):
        if array.shape[-1:] != (mlp.in_features,):
            raise ValueError(
                f"{name} must end in the {mlp.in_features} inputs of the network, "
                f"got shape {array.shape}"
            )
    x, v = jnp.broadcast_arrays(x, v)
    series = jnp.stack([x, v][: order + 1])
    for layer, phi in zip(params, mlp.layer_activations, strict=True):
        series = matmul(series, layer["kernel"])
        series = series.at[0].add(layer["bias"])
        if phi is not None:
            series = _compose(phi, list(series), order)
    if len(series) <= order:
        series = jnp.pad(series, [(0, order + 1 - len(series))] + [(0, 0)] * (series.ndim - 1))
    result = tuple(math.factorial(n) * c for n, c in enumerate(series))
    return tuple(c[..., 0] for c in result) if mlp.out_features is None else result


def _compose(phi: Activation, z: list[Array], order: int) -> Array:
    """Power series coefficients 0..order of `phi(z(t))`; absent coefficients of z vanish."""
    tower = phi.derivatives(z[0], order)
    result = [tower[0]] + [jnp.zeros_like(z[0])] * order
    power = {n: z[n] for n in range(1, len(z))}
    for k in range(1, order + 1):
        weight = tower[k] / math.factorial(k)
        for n, coefficient in power.items():
            result[n] = result[n] + weight * coefficient
        power = _times(power, z, order)
    return jnp.stack(result)


def _times(power: dict[int, Array], z: list[Array], order: int) -> dict[int, Array]:
    product: dict[int, Array] = {}
    for n, coefficient in power.items():
        for j in range(1, min(len(z), order - n + 1)):
            term = coefficient * z[j]
            product[n + j] = product[n + j] + term if n + j in product else term
    return product
