"""The multilayer perceptron whose Taylor coefficients this package computes.

In the paper's notation `z_l = W_l y_{l-1} + b_l`, `y_l = phi_l(z_l)`, `y_0 = x`, `l = 1..L`.
A kernel is stored as Flax stores it, `(inputs, outputs)`, so that `W_l = kernel.T`.
"""

import dataclasses
import json
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy
from jax import Array
from jax.typing import DTypeLike

from born_mlp import activations

_FILE_FORMAT = "born_mlp.mlp/1"

Params = list[dict[str, Array]]
"""One `{"kernel": (inputs, outputs), "bias": (outputs,)}` for each layer 1..L, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP:
    """Architecture of a multilayer perceptron `f: R^d -> R^o`, or `R^d -> R`."""

    in_features: int
    """Dimension d of the input."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    out_features: int | None = None
    """Dimension o of the output; None makes the output a scalar, without an axis."""
    activation: str | Callable[[Array], Array] = "gelu"
    """Name in `activations.ACTIVATIONS`, or an elementwise function."""
    output_activation: str | Callable[[Array], Array] | None = None
    """Activation of the output layer; None leaves it linear."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths `(d, H_1, ..., H_{L-1}, o)`, with o = 1 for a scalar output."""
        out = 1 if self.out_features is None else self.out_features
        return (self.in_features, *self.hidden, out)

    @property
    def layer_activations(self) -> tuple[activations.Activation | None, ...]:
        """Activation of each layer 1..L; None at the end is a linear output."""
        hidden = activations.resolve(self.activation)
        out = (
            None if self.output_activation is None else activations.resolve(self.output_activation)
        )
        return (hidden,) * len(self.hidden) + (out,)

    def init(self, key: Array, *, gain: float = 1.0, dtype: DTypeLike = jnp.float32) -> Params:
        """Draw kernels from `N(0, gain^2 / inputs)`; biases are zero."""
        params = []
        for n_in, n_out in zip(self.widths[:-1], self.widths[1:], strict=True):
            key, layer_key = jax.random.split(key)
            kernel = jax.random.normal(layer_key, (n_in, n_out), dtype) * (gain / n_in**0.5)
            params.append({"kernel": kernel.astype(dtype), "bias": jnp.zeros((n_out,), dtype)})
        return params

    def apply(self, params: Params, x: Array) -> Array:
        """Evaluate at `x` of shape `(..., d)`; returns `(..., o)`, or `(...)` if scalar."""
        y = x
        for layer, phi in zip(params, self.layer_activations, strict=True):
            z = y @ layer["kernel"] + layer["bias"]
            y = z if phi is None else phi.function(z)
        return y[..., 0] if self.out_features is None else y


def save_network(path: str | os.PathLike[str], mlp: MLP, params: Params) -> None:
    """Write a network, or an ensemble whose arrays have a leading axis of members, as safetensors.

    Raises:
      ValueError: if an activation is a function, which has no name to be written down.
    """
    architecture = dataclasses.asdict(mlp)
    for field in ("activation", "output_activation"):
        if architecture[field] is not None and not isinstance(architecture[field], str):
            raise ValueError(f"{field} is a function; only named activations can be saved")
    arrays = {
        f"{l}/{name}": jax.device_get(array)
        for l, layer in enumerate(params)
        for name, array in layer.items()
    }
    metadata = {"format": _FILE_FORMAT, "architecture": json.dumps(architecture)}
    safetensors.numpy.save_file(arrays, path, metadata=metadata)


def load_network(path: str | os.PathLike[str]) -> tuple[MLP, Params]:
    """Read what `save_network` wrote.

    Raises:
      ValueError: if the file was written by something else.
    """
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FILE_FORMAT:
            raise ValueError(f"{path} holds no network written by born_mlp.mlp.save_network")
        architecture = json.loads(metadata["architecture"])
        arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    mlp = MLP(**architecture | {"hidden": tuple(architecture["hidden"])})
    layers = range(len(mlp.widths) - 1)
    return mlp, [{name: arrays[f"{l}/{name}"] for name in ("kernel", "bias")} for l in layers]
