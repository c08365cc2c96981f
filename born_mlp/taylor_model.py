"""The Taylor polynomial of a network at a point, as an object.

model = taylor_model.expand(mlp, params, center, order=4)
model(x), model.differentiate(0), model.shift(other), model.to_sympy()
"""

import dataclasses
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jax import Array
from jaxtyping import Float

from born_mlp import packing, taylor
from born_mlp.mlp import MLP, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TaylorModel:
    """The polynomial `sum_alpha D^alpha f(c) / alpha! (x - c)^alpha` with `|alpha| <= order`."""

    center: Array
    """Point of expansion c, `(d,)`."""
    derivatives: tuple[Array, ...]
    """Packed derivatives at the center, as `taylor.derivatives` returns them: `[o,]` for order 0,
    then `([o,] C(d+n-1, n))`."""

    @property
    def order(self) -> int:
        """Degree of the polynomial."""
        return len(self.derivatives) - 1

    @property
    def coefficients(self) -> tuple[Array, ...]:
        """Packed polynomial coefficients `D^alpha f(c) / alpha!` of each order."""
        weights = (
            taylor.multiplicities(self.center.size, n) / math.factorial(n)
            for n in range(1, self.order + 1)
        )
        scaled = (
            t * jnp.asarray(w, t.dtype) for t, w in zip(self.derivatives[1:], weights, strict=True)
        )
        return (self.derivatives[0], *scaled)

    def __call__(self, x: Float[Array, "*batch d"]) -> Array:
        """Evaluate at `x`, `(..., d)`; returns `(..., [o])`."""
        self._require_inputs(x)
        step = x - self.center
        value, *rest = self.coefficients
        value = jnp.broadcast_to(value, x.shape[:-1] + value.shape)
        monomials = jnp.ones((*x.shape[:-1], 1), step.dtype)
        for n, coefficients in enumerate(rest, start=1):
            ((head, tail),) = packing.shuffles(self.center.size, 1, n - 1, anchored=True)
            monomials = step[..., head] * monomials[..., tail]
            value = value + jnp.tensordot(monomials, coefficients, (-1, -1), precision="highest")
        return value

    def differentiate(self, variable: int) -> "TaylorModel":
        """Return the model of `df/dx_variable`, of one order less."""
        if not 0 <= variable < self.center.size:
            raise ValueError(f"there is no variable {variable} among {self.center.size} inputs")
        if self.order == 0:
            raise ValueError("a model of order 0 keeps no derivative to differentiate")
        direction = jnp.zeros_like(self.center).at[variable].set(1)
        lowered = [self._contract(n, t, direction) for n, t in enumerate(self.derivatives) if n]
        return dataclasses.replace(self, derivatives=tuple(lowered))

    def shift(self, center: Float[Array, " d"]) -> "TaylorModel":
        """Return the same polynomial, expanded about another point."""
        self._require_inputs(center)
        step = center - self.center
        shifted = list(self.derivatives)
        for n, tensor in enumerate(self.derivatives):
            for m in range(n - 1, -1, -1):
                tensor = self._contract(m + 1, tensor, step) / (n - m)
                shifted[m] = shifted[m] + tensor
        return TaylorModel(center=center, derivatives=tuple(shifted))

    def truncate(self, order: int) -> "TaylorModel":
        """Drop the terms above `order`."""
        if not 0 <= order <= self.order:
            raise ValueError(f"cannot truncate a model of order {self.order} at order {order}")
        return dataclasses.replace(self, derivatives=self.derivatives[: order + 1])

    def remainder(self, mlp: MLP, params: Params, x: Float[Array, "*batch d"]) -> Array:
        """Estimate the error at `x` by the first term left out, `D^(m+1) f(c)[h^(m+1)] / (m+1)!`.

        An estimate, not a bound, `(..., [o])`; as cheap as a few evaluations of the network.
        """
        self._require_inputs(x)
        terms = taylor.directional(mlp, params, self.center, x - self.center, self.order + 1)
        return terms[-1] / math.factorial(self.order + 1)

    def radius(
        self, mlp: MLP, params: Params, direction: Float[Array, "*batch d"], tolerance: float
    ) -> Float[Array, "*batch"]:
        """Estimate how far along `direction` the error stays below `tolerance`, in all outputs.

        The smaller distance at which one of the first two terms left out reaches the (absolute)
        tolerance; two, because one of them vanishes for even and odd functions.
        """
        self._require_inputs(direction)
        if not tolerance > 0:
            raise ValueError(f"the tolerance must be positive, got {tolerance}")
        unit = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
        terms = taylor.directional(mlp, params, self.center, unit, self.order + 2)
        distances = []
        for n in (self.order + 1, self.order + 2):
            size = jnp.abs(terms[n]) / math.factorial(n)
            if mlp.out_features is not None:
                size = size.max(-1)
            distances.append((tolerance / size) ** (1 / n))
        return jnp.minimum(*distances)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path`, as its suffix says: `.npz` or `.json`."""
        path = pathlib.Path(path)
        arrays = {"center": np.asarray(self.center)}
        arrays |= {f"derivatives_{n}": np.asarray(t) for n, t in enumerate(self.derivatives)}
        if path.suffix == ".npz":
            np.savez(path, allow_pickle=False, **arrays)
        elif path.suffix == ".json":
            document = {"dtype": str(arrays["center"].dtype)}
            document |= {name: array.tolist() for name, array in arrays.items()}
            path.write_text(json.dumps(document))
        else:
            raise ValueError(_SUFFIX.format(path=path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TaylorModel":
        """Read what `save` wrote."""
        path = pathlib.Path(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        elif path.suffix == ".json":
            document = json.loads(path.read_text())
            dtype = np.dtype(document.pop("dtype"))
            arrays = {name: np.array(entries, dtype) for name, entries in document.items()}
        else:
            raise ValueError(_SUFFIX.format(path=path))
        derivatives = [arrays[f"derivatives_{n}"] for n in range(len(arrays) - 1)]
        return cls(
            center=jnp.asarray(arrays["center"]),
            derivatives=tuple(jnp.asarray(t) for t in derivatives),
        )

    def to_sympy(self, variables: list[sympy.Symbol] | None = None) -> sympy.Expr | sympy.Matrix:
        """Return the polynomial in `variables` (x0, x1, ... by default), a column for o outputs."""
        symbols = list(sympy.symbols(f"x:{self.center.size}")) if variables is None else variables
        steps = [s - float(c) for s, c in zip(symbols, self.center, strict=True)]
        outputs = self.derivatives[0].size
        polynomials = [sympy.Integer(0)] * outputs
        for n, tensor in enumerate(self.coefficients):
            columns = np.asarray(tensor).reshape(outputs, -1)
            for index, column in zip(
                taylor.multi_indices(self.center.size, n), columns.T, strict=True
            ):
                monomial = sympy.prod([steps[j] for j in index])
                polynomials = [
                    p + float(c) * monomial for p, c in zip(polynomials, column, strict=True)
                ]
        return sympy.Matrix(polynomials) if self.derivatives[0].ndim else polynomials[0]

    def _contract(self, order: int, tensor: Array, vector: Array) -> Array:
        """Contract one index of a packed tensor of `order` >= 1 with a vector."""
        d = self.center.size
        lower = np.repeat(taylor.multi_indices(d, order - 1)[:, None], d, axis=1)
        index = np.concatenate(
            [lower, np.broadcast_to(np.arange(d), lower.shape[:2])[..., None]], 2
        )
        where = taylor.positions(np.sort(index, axis=2), d)
        contracted = jnp.matmul(tensor[..., where], vector, precision="highest")
        return contracted[..., 0] if order == 1 else contracted

    def _require_inputs(self, x: Array) -> None:
        if x.shape[-1:] != self.center.shape:
            raise ValueError(
                f"the model has {self.center.size} inputs, got an array of shape {x.shape}"
            )


_SUFFIX = "a Taylor model is stored as .npz or .json, got {path}"


def expand(mlp: MLP, params: Params, center: Float[Array, " d"], order: int) -> TaylorModel:
    """Return the Taylor model of a network at `center`; errors as `taylor.derivatives`."""
    return TaylorModel(center=center, derivatives=taylor.derivatives(mlp, params, center, order))
