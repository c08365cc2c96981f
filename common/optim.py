"""Optimizers as optax chains: schedules, parameter groups, freezing, decay to the start, Muon.

Every optimizer is the same chain. With `u` the direction of the named rule for the (clipped)
gradient, a parameter theta of a group with learning-rate scale s moves by

    theta <- theta - s * lr(t) * (u + weight_decay * (theta - anchor)),

where the anchor is 0, or the initial parameters with `decay_to_init`. So weight decay is decoupled
(Loshchilov & Hutter, arXiv:1711.05101) for every rule, and multiplied by the learning rate.

All statistics live in the optimizer state as arrays with the dtype and sharding of their parameter.
An ensemble whose members must not share a clipping norm maps the optimizer over its members:
`jax.vmap(optimizer.init)(params)`, and `update` likewise.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from common.choices import check_choice
from common.transforms import decay_to_init, orthogonalize
from common.tree import match_rules

OptimizerName = Literal["adamw", "adam", "sgd", "adafactor", "muon"]
ScheduleName = Literal["constant", "cosine", "rsqrt"]
Schedule = Callable[[ArrayLike], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Settings of the parameters whose whole name matches a pattern."""

    pattern: str
    """Regular expression for the whole slash-joined name; the first group that matches wins."""
    learning_rate_scale: float = 1.0
    """Factor on the learning rate."""
    weight_decay: float | None = None
    """Weight decay of the group; None takes that of the optimizer."""
    optimizer: OptimizerName | None = None
    """Rule of the group; None takes that of the optimizer."""
    freeze: bool = False
    """Leave the parameters as they are: zero updates, no optimizer memory, not in the clip norm."""

    def __post_init__(self) -> None:
        where = f"optim.groups[{self.pattern!r}]"
        _check(self.learning_rate_scale > 0, where, self, "learning_rate_scale", "positive")
        if self.weight_decay is not None:
            _check(self.weight_decay >= 0, where, self, "weight_decay", "at least 0")
        if self.optimizer is not None:
            check_choice(f"{where}.optimizer", self.optimizer, get_args(OptimizerName))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, learning-rate schedule and parameter groups."""

    name: OptimizerName = "adamw"
    """Update rule. `adam` is `adamw` without weight decay. `adafactor` is that of optax (factored
    second moments, update clipping at 1, steps relative to the parameter's scale, no momentum).
    `muon` orthogonalises the momentum of every parameter of rank >= 2 over its last two axes,
    leading axes being batches of matrices (layers, experts, members), and gives the others to
    AdamW; embeddings, heads and stacked biases want a group with `optimizer="adamw"`."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    schedule: ScheduleName = "cosine"
    """What follows the warm-up: the peak, half a cosine down to `final_fraction` of it at the last
    step, or the peak times `sqrt(warmup_steps / step)`."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0; the peak is reached at this step."""
    final_fraction: float = 0.0
    """Learning rate at the last step as a fraction of the peak (cosine only)."""
    b1: float = 0.9
    """Decay rate of Adam's first moment."""
    b2: float = 0.999
    """Decay rate of Adam's second moment."""
    eps: float = 1e-8
    """Added to the denominator: Adam's root of the second moment, Muon's norm of the momentum."""
    momentum: float = 0.9
    """Decay rate of the momentum of SGD and Muon (whose author takes 0.95)."""
    nesterov: bool = False
    """Nesterov's look-ahead in SGD and Muon (whose author takes it)."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate. It acts on ALL parameters, as in
    optax and PyTorch: a rule by rank would take the biases of stacked layers or of an ensemble for
    matrices. Exempt some with a group, `ParamGroup(pattern=".*bias|.*scale", weight_decay=0.0)`."""
    decay_to_init: bool = False
    """Decay towards the parameters given to `init`, which the state keeps, instead of 0."""
    clip_norm: float | None = None
    """Largest global norm of the gradient of the parameters that train; None does not clip."""
    groups: tuple[ParamGroup, ...] = ()
    """Groups by name, first match wins; empty is one group of all. Every parameter must be covered
    and every pattern must match some parameter."""

    def __post_init__(self) -> None:
        check_choice("optim.name", self.name, get_args(OptimizerName))
        check_choice("optim.schedule", self.schedule, get_args(ScheduleName))
        _check(0 < self.learning_rate < math.inf, "optim", self, "learning_rate", "positive")
        _check(self.warmup_steps >= 0, "optim", self, "warmup_steps", "at least 0")
        _check(0 <= self.final_fraction <= 1, "optim", self, "final_fraction", "between 0 and 1")
        for field in ("b1", "b2", "momentum"):
            in_range = 0 <= getattr(self, field) < 1
            _check(in_range, "optim", self, field, "at least 0 and less than 1")
        _check(self.eps > 0, "optim", self, "eps", "positive")
        _check(self.weight_decay >= 0, "optim", self, "weight_decay", "at least 0")
        if self.clip_norm is not None:
            _check(self.clip_norm > 0, "optim", self, "clip_norm", "positive, or None")
        for group in self.groups or (ParamGroup(pattern=".*"),):
            rule, decay = group.optimizer or self.name, _decay_rate(self, group)
            if rule == "adam" and decay > 0 and not group.freeze:
                raise ValueError(
                    f"adam has no weight decay, but {decay} is asked for {group.pattern!r}; "
                    'use "adamw", or set weight_decay to 0'
                )


def make_schedule(config: OptimConfig, *, steps: int) -> Schedule:
    """Make the learning rate as a function of the number of updates already made.

    Args:
      config: the schedule and its peak.
      steps: updates of the whole run, where the cosine ends.

    Returns:
      A traceable function of a scalar step 0, 1, ...; the first update has `schedule(0)`.

    Raises:
      ValueError: if the warm-up does not end before the run does.
    """
    peak, warmup, final = config.learning_rate, config.warmup_steps, config.final_fraction
    if warmup >= steps:
        raise ValueError(
            f"optim.warmup_steps = {warmup} must be less than the {steps} steps of the run"
        )

    def schedule(step: ArrayLike) -> Array:
        step = jnp.asarray(step)
        if config.schedule == "constant":
            decay = jnp.ones(())
        elif config.schedule == "cosine":
            progress = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
            decay = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        else:
            start = max(warmup, 1)
            decay = jnp.sqrt(start / jnp.maximum(step, start))
        return peak * decay * jnp.minimum(step / warmup if warmup else 1.0, 1.0)

    return schedule


def make_optimizer(
    config: OptimConfig, params: PyTree, *, steps: int
) -> optax.GradientTransformation:
    """Build the optimizer of `config` for the parameters named in `params`.

    Args:
      config: rule, schedule and groups.
      params: parameters, or a tree of `jax.ShapeDtypeStruct`; only the names are used.
      steps: updates of the whole run.

    Returns:
      An optax transformation whose `update` needs the parameters as its third argument.

    Raises:
      ValueError: if the groups do not cover the parameters, match none, or freeze them all.
    """
    schedule = make_schedule(config, steps=steps)
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    if not config.groups:
        return optax.chain(clip, _group_chain(config, ParamGroup(pattern=".*"), schedule))

    rules = [(group.pattern, str(i)) for i, group in enumerate(config.groups)]
    labels = match_rules(rules, params, what="parameter group")
    frozen = jax.tree.map(lambda label: config.groups[int(label)].freeze, labels)
    if all(jax.tree.leaves(frozen)):
        raise ValueError("optim.groups freeze every parameter; leave some group free to train")
    chains = {
        str(i): _group_chain(config, group, schedule) for i, group in enumerate(config.groups)
    }
    return optax.chain(
        optax.masked(optax.set_to_zero(), frozen), clip, optax.partition(chains, labels)
    )


def _group_chain(
    config: OptimConfig, group: ParamGroup, schedule: Schedule
) -> optax.GradientTransformation:
    """Direction, then decay, then learning rate: the formula at the head of this module."""
    if group.freeze:
        return optax.set_to_zero()
    rate = _decay_rate(config, group)
    decay = decay_to_init(rate) if config.decay_to_init else optax.add_decayed_weights(rate)
    return optax.chain(
        _direction(config, group.optimizer or config.name),
        decay if rate > 0 else optax.identity(),
        optax.scale_by_learning_rate(lambda step: group.learning_rate_scale * schedule(step)),
    )


def _direction(config: OptimConfig, rule: OptimizerName) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    momentum = (
        optax.trace(config.momentum, nesterov=config.nesterov)
        if config.momentum > 0
        else optax.identity()
    )
    match rule:
        case "adamw" | "adam":
            return adam
        case "sgd":
            return momentum
        case "adafactor":
            return optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
        case "muon":
            # The rank is read when arrays are at hand, so that it is a member's under vmap.
            return optax.partition(
                {"matrix": optax.chain(momentum, orthogonalize(eps=config.eps)), "other": adam},
                lambda tree: jax.tree.map(lambda x: "matrix" if x.ndim >= 2 else "other", tree),
            )


def _decay_rate(config: OptimConfig, group: ParamGroup) -> float:
    return config.weight_decay if group.weight_decay is None else group.weight_decay


def _check(holds: bool, where: str, config: object, field: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{where}.{field} = {getattr(config, field)} must be {expected}")
