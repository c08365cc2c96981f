"""Taylor terms read off an ensemble, and their comparison with exact ones."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from born_mlp import taylor
from born_mlp.diagrams.values import tensors
from born_mlp.mlp import MLP, Params
from born_mlp.samples import exact_tensor
from common.distributed import to_host

Term = Float[np.ndarray, "members ..."]
"""One Taylor term for each member: `(members, d, ..., d)`, float64, symmetric."""

_WATCHED_ENTRIES = 2**20  # of a dense tensor that is read only to watch the training


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Return `|found - exact| / |exact|` in the L2 norm over all entries."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@functools.partial(jax.jit, static_argnames=("mlp", "order"))
def _dense_derivatives(mlp: MLP, order: int, params: Params) -> list[Array]:
    origin = jnp.zeros((1, mlp.in_features), jnp.float64)
    return [t[0] for t in taylor.derivatives(mlp, params, origin, order, packed=False)]


def taylor_terms(
    mlp: MLP, params: Params, order: int, *, x_scale: float, y_scale: Float[np.ndarray, "members"]
) -> tuple[Term, ...]:
    """Return `D^m f(0) / m!`, m = 0..order, of `f(x) = y_scale * MLP(x / x_scale)`, by members.

    Args:
      mlp: the architecture.
      params: float64 parameters with a leading axis of members.
      order: highest order.
      x_scale: input scale; order m carries `x_scale ** -m`.
      y_scale: output scale of each member.

    Returns:
      Dense symmetric terms `(members, d, ..., d)`, float64.
    """
    by_member = [
        _dense_derivatives(mlp, order, jax.tree.map(lambda leaf, i=i: leaf[i], params))
        for i in range(len(y_scale))
    ]
    return tuple(
        np.stack(
            [
                np.asarray(terms[m]) * (scale / x_scale**m / math.factorial(m))
                for terms, scale in zip(by_member, y_scale, strict=True)
            ]
        )
        for m in range(order + 1)
    )


@dataclasses.dataclass(frozen=True)
class CoefficientErrors:
    """Evaluator: relative errors of the Taylor terms against exact Born tensors, by member.

    For orders up to the iteration's own, of the lower terms as this network corrects them; for the
    next order, where its tensor is small, of what the network itself says.
    """

    terms: Callable[[Params, int], tuple[Term, ...]]
    """Reads the terms up to an order off the parameters, `ResidualFit.terms`."""
    cells: int
    """Number of cells d."""
    lower: tuple[Term, ...]
    """Lower terms that the iteration has eliminated."""
    every: int
    """Cadence in steps."""
    name: str = "coefficients"
    """Prefix of the numbers `order_m/member`."""

    def __call__(self, params: Params, mesh: Mesh) -> Mapping[str, float]:  # noqa: ARG002
        """Read the terms off the members and compare."""
        order = len(self.lower) + 1
        highest = order + 1 if self.cells ** (order + 1) <= _WATCHED_ENTRIES else order
        terms = self.terms(params, highest)
        errors: dict[str, float] = {}
        for m in range(1, highest + 1):
            known = terms[m] + self.lower[m - 1] if m < order else terms[m]
            exact = exact_tensor(self.cells, m)
            errors |= {f"order_{m}/{i}": relative_error(t, exact) for i, t in enumerate(known)}
        return errors


@dataclasses.dataclass(frozen=True)
class DiagramShares:
    """Evaluator: how much each diagram of the first member has of the derivative at the origin.

    The share of a diagram is the L2 norm of its tensor over the sum of these norms.
    """

    mlp: MLP
    """Architecture of a member."""
    every: int
    """Cadence in steps."""
    order: int
    """Order of the derivative."""
    name: str = "diagrams"
    """Prefix of the numbers `order_m/diagram`."""

    def __call__(self, params: Params, mesh: Mesh) -> Mapping[str, float]:  # noqa: ARG002
        """Evaluate all diagrams of the order."""
        first = jax.tree.map(lambda p: jnp.asarray(p[0], jnp.float64), to_host(params))
        origin = jnp.zeros(self.mlp.in_features, jnp.float64)
        values = tensors(self.mlp, first, origin, order=self.order)
        norms = np.linalg.norm(np.asarray(values).reshape(len(values), -1), axis=1)
        return {f"order_{self.order}/{i}": float(n / norms.sum()) for i, n in enumerate(norms)}
