"""The two-layer perceptron between the attentions of a transformer."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float

from common.nn.layers import Keep, Linear, dropout

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu"]


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
}
"""Activations by name: GELU (arXiv:1606.08415) is exact, by tanh, or `x sigmoid(1.702 x)`."""


class MLP(nnx.Module):
    """`wo(f(wi x))`, or `wo(f(gate x) * wi x)` (arXiv:2002.05202), with an activation f."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Activation,
        gated: bool = False,
        bias: bool = False,
        stddev: float,
        out_stddev: float,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the kernels; the standard deviations are of those into the hidden layer, and out.

        `dropout_rate` is the rate with which `keep` is drawn.
        """
        self.activation, self.dropout_rate = activation, dropout_rate
        narrow, wide = (features,), (hidden,)
        self.wi = Linear(narrow, wide, stddev=stddev, bias=bias, rngs=rngs)
        self.gate = Linear(narrow, wide, stddev=stddev, bias=bias, rngs=rngs) if gated else None
        self.wo = Linear(wide, narrow, stddev=out_stddev, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B L d"], keep: Keep = None) -> Float[Array, "B L d"]:
        """Map each position by itself; `keep` says which hidden entries survive dropout."""
        f = ACTIVATIONS[self.activation]
        hidden = self.wi(x)
        hidden = f(hidden) if self.gate is None else f(self.gate(x)) * hidden
        return self.wo(dropout(hidden, keep, self.dropout_rate))
