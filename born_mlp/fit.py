"""One iteration of the perturbation theory as a training task: an ensemble fitted to a residual.

Iteration n trains networks on what the Taylor terms below order n leave of the function,
`y_n(x) = y(x) - sum_{m<n} T_m[x^m]`, because networks adapt their derivatives mainly to the leading
order of their target. The members of the ensemble are trained at once by `vmap`; each has its own
initial parameters and its own lower-order terms.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from born_mlp import activations
from born_mlp.coefficients import CoefficientErrors, DiagramShares, Term, taylor_terms
from born_mlp.mlp import MLP, Params
from born_mlp.samples import Samples, SampleSource, ScatteringSamples, contract
from common import Data, Evaluator, Mean, OptimConfig, ParamGroup, Task
from common.choices import check_choice
from common.data import EpochOrder
from common.data.arrays import WHOLE, Part
from common.distributed import to_host
from common.metrics import Metrics
from common.rng import Rngs

LossName = Literal["mse", "relative", "mape"]
Dtype = Literal["float32", "float64"]

MUON = OptimConfig(
    name="muon",
    learning_rate=0.01,
    momentum=0.95,
    nesterov=True,
    warmup_steps=500,
    # The biases of an ensemble are stacked to a matrix, which is not to be orthogonalised.
    groups=(ParamGroup(pattern=".*bias", optimizer="adamw"), ParamGroup(pattern=".*")),
)
"""Optimizer of the experiments. The regime `adam` of configs/born_mlp/studies.py has Adam instead:
after as many steps its coefficients are several times worse."""


@dataclasses.dataclass(frozen=True)
class Residual:
    """The scaled training set of one iteration."""

    x: Float[np.ndarray, "n d"]
    """Points in units of `x_scale`."""
    y: Float[np.ndarray, "n members"]
    """Residual of each member in units of its `y_scale`."""
    weight: Float[np.ndarray, "n members"]
    """Factor on the error of each point."""
    x_scale: float
    """Root mean square of the points' components."""
    y_scale: Float[np.ndarray, "members"]
    """Weighted root mean square of each member's residual."""


def make_residual(
    samples: Samples,
    lower: Sequence[Float[np.ndarray, "members ..."]],
    *,
    order: int,
    members: int,
    loss: LossName,
    floor: float,
) -> Residual:
    """Subtract the terms below `order` and bring points and values to order one.

    The weights make the iteration see its own order across all strengths: y_n shrinks as |x|^n
    towards the expansion point, so the relative loss divides the error by `(|x|^2 + floor^2)^(n/2)`
    (|x| in units of its rms) and the percentage loss by `|y| + floor^n rms(y)`.

    Args:
      samples: the data.
      lower: dense Taylor terms T_1 .. T_{order-1}, each with a leading axis of members.
      order: leading order n of the residual.
      members: size of the ensemble.
      loss: how errors are weighted.
      floor: strength, relative to the rms, below which weights stop growing.
    """
    x_scale = float(np.sqrt(np.mean(samples.x**2)))
    x = samples.x / x_scale
    y = np.empty((len(x), members))
    for member in range(members):
        y[:, member] = samples.y - sum(contract(t[member], samples.x) for t in lower)
    if loss == "mse":
        weight = np.ones_like(y)
    elif loss == "relative":
        norm2 = np.mean(x**2, axis=1, keepdims=True)
        weight = np.broadcast_to((norm2 + floor**2) ** (-order / 2), y.shape)
    else:
        weight = 1 / (np.abs(y) + floor**order * np.sqrt(np.mean(y**2, axis=0)))
    y_scale = np.sqrt(np.mean((weight * y) ** 2, axis=0) / np.mean(weight**2, axis=0))
    y = y / y_scale
    # The weighted target has a mean square of one, whatever the weights: so has the loss at start.
    weight = weight / np.sqrt(np.mean((weight * y) ** 2, axis=0))
    return Residual(x=x, y=y, weight=weight, x_scale=x_scale, y_scale=y_scale)


class ResidualData(Data):
    """Batches of a residual, made when the first one is asked for.

    With `paired`, sample i + n/2 is the mirror image of sample i, and both enter the same batch, so
    that even and odd orders separate exactly within it.
    """

    def __init__(self, task: "ResidualFit", *, batch_size: int, seed: int) -> None:
        self._task, self._batch_size, self._seed = task, batch_size, seed

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        residual = self._task.residual
        dtype = self._task.dtype
        return {
            name: np.ascontiguousarray(getattr(residual, name), dtype)
            for name in ("x", "y", "weight")
        }

    @functools.cached_property
    def _order(self) -> EpochOrder:
        rows = len(self._arrays["x"])
        return EpochOrder(rows // 2 if self._task.source.paired else rows, seed=self._seed)

    def batch(self, step: int, part: Part = WHOLE) -> Mapping[str, np.ndarray]:
        """Return rows: x `(b, d)`, y and weight `(b, members)`."""
        if self._task.source.paired:
            half = self._batch_size // 2
            rows = self._order.rows(step * half, half)
            rows = np.concatenate([rows, rows + len(self._arrays["x"]) // 2])
        else:
            rows = self._order.rows(step * self._batch_size, self._batch_size)
        return {name: array.take(rows[part], axis=0) for name, array in self._arrays.items()}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch without labelling a sample."""
        b, task = self._batch_size, self._task
        dtype = np.dtype(task.dtype)
        shapes = {
            "x": (b, task.source.features),
            "y": (b, task.members),
            "weight": (b, task.members),
        }
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualFit(Task):
    """Fits an ensemble of MLPs to the residual of one iteration."""

    source: SampleSource
    """The samples."""
    order: int = 1
    """Iteration n, whose residual starts at order n."""
    members: int = 8
    """Networks in the ensemble."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    activation: str = "gelu"
    """Activation, a name in `born_mlp.activations.ACTIVATIONS`."""
    loss_name: LossName = "relative"
    """How errors are weighted, see `make_residual`."""
    floor: float = 0.1
    """Strength, relative to the rms, below which the weights stop growing."""
    gain: float = 1.0
    """Factor on the standard deviation of the initial kernels."""
    dtype: Dtype = "float32"
    """Precision of the training."""
    eval_every: int = 5000
    """Cadence of the evaluators."""
    lower: tuple[Any, ...] | None = None
    """Taylor terms T_1 .. T_{order-1} to eliminate, `(members, d, ..., d)` each; filled in by
    `born_mlp.nnpt.perturb`, None in a config."""

    def __post_init__(self) -> None:
        check_choice("task.loss_name", self.loss_name, get_args(LossName))
        check_choice("task.dtype", self.dtype, get_args(Dtype))
        if self.order < 1 or self.members < 1:
            raise ValueError(f"order and members must be positive: {self.order}, {self.members}")
        if self.floor <= 0 or self.gain <= 0:
            raise ValueError(f"floor and gain must be positive: {self.floor}, {self.gain}")
        activations.resolve(self.activation).require_smooth(self.order)

    @property
    def mlp(self) -> MLP:
        """The architecture of a member."""
        return MLP(in_features=self.source.features, hidden=self.hidden, activation=self.activation)

    @functools.cached_property
    def residual(self) -> Residual:
        """The scaled training set; drawn and labelled at first use."""
        lower = () if self.lower is None else self.lower
        if len(lower) != self.order - 1:
            raise ValueError(
                f"iteration {self.order} needs the terms of orders 1 to {self.order - 1}, got "
                f"{len(lower)}: run the iterations before it"
            )
        return make_residual(
            self.source.draw(),
            lower,
            order=self.order,
            members=self.members,
            loss=self.loss_name,
            floor=self.floor,
        )

    def init(self, key: Array) -> Params:
        """Draw the members' parameters; every array has a leading axis of members."""
        # Keys of their own, so that a member does not depend on the size of the ensemble.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(self.members))
        init = functools.partial(self.mlp.init, gain=self.gain, dtype=jnp.dtype(self.dtype))
        return jax.vmap(init)(keys)

    def predict(self, params: Params, x: Array) -> Float[Array, "members b"]:
        """Evaluate all members at the same scaled points."""
        return jax.vmap(self.mlp.apply, in_axes=(0, None))(params, x)

    def terms(self, params: Params, order: int) -> tuple[Term, ...]:
        """Read the members' Taylor terms of the orders 0 to `order` in the function's units."""
        return taylor_terms(
            self.mlp,
            jax.tree.map(lambda p: np.asarray(p, np.float64), to_host(params)),
            order,
            x_scale=self.residual.x_scale,
            y_scale=self.residual.y_scale,
        )

    def loss(self, params: Params, batch: Any, rngs: Rngs) -> Metrics:  # noqa: ARG002
        """Weighted squared (or, for "mape", absolute) error, summed over the members.

        A sum and not a mean, so that a member's gradient does not depend on how many there are.
        """
        error = (self.predict(params, batch["x"]).T - batch["y"]) * batch["weight"]
        error = jnp.abs(error) if self.loss_name == "mape" else error**2
        rows = jnp.asarray(len(error), jnp.float32)
        return {
            "loss": Mean(error.sum(), rows),
            "member": Mean(error.sum(0), rows),
        }

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Return the batches of the residual."""
        if self.source.paired and batch_size % 2:
            raise ValueError(f"mirrored samples come in pairs: batch_size {batch_size} is odd")
        return ResidualData(self, batch_size=batch_size, seed=seed)

    def evaluators(self) -> Sequence[Evaluator]:
        """Return comparisons with exact Born terms, where the samples are scattering lengths."""
        if not isinstance(self.source, ScatteringSamples):
            return ()
        cells, every = self.source.features, self.eval_every
        return (
            CoefficientErrors(terms=self.terms, cells=cells, lower=self.lower or (), every=every),
            DiagramShares(mlp=self.mlp, order=max(2, self.order), every=every),
        )

    def sharding_rules(self) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
        """Spread the members over the axis `tensor`."""
        return ((".*", ("tensor",)),)
