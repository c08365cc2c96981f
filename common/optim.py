"""Optimizers as optax chains: schedules, parameter groups, freezing, decay to the start, Muon.

Every optimizer is the same chain. With `u` the direction of the named rule for the (clipped)
gradient, a parameter theta of a group with learning-rate scale s moves by

    theta <- theta - s * lr(t) * (u + weight_decay * (theta - anchor)),

where the anchor is 0, or the initial parameters with `decay_to_init`. So weight decay is decoupled
(Loshchilov & Hutter, arXiv:1711.05101) for every rule, and multiplied by the learning rate. Frozen
parameters are not in the tree that the optimizer sees (`trainable`, `common.tree.split`).

All statistics live in the optimizer state as arrays with the dtype and sharding of their parameter.
An ensemble whose members must not share a clipping norm maps the optimizer over its members:
`jax.vmap(optimizer.init)(params)`, and `update` likewise.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from common.choices import check_choice
from common.transforms import decay_to_init, orthogonalize
from common.tree import match_rules, split

OptimizerName = Literal["adamw", "adam", "sgd", "adafactor", "muon"]
Rule = OptimizerName | Callable[[], optax.GradientTransformation]
ScheduleName = Literal["constant", "linear", "cosine", "rsqrt", "warmup_stable_decay"]
Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Settings of the parameters whose whole name matches a pattern."""

    pattern: str
    """Regular expression for the whole slash-joined name; the first group that matches wins."""
    learning_rate_scale: float = 1.0
    """Factor on the learning rate."""
    weight_decay: float | None = None
    """Weight decay of the group; None takes that of the optimizer."""
    optimizer: Rule | None = None
    """Rule of the group, as `optim.name`; None takes that of the optimizer."""
    freeze: bool = False
    """Leave the parameters as they are: no gradient, optimizer state or average is computed."""

    def __post_init__(self) -> None:
        where = f"optim.groups[{self.pattern!r}]"
        _check(self.learning_rate_scale > 0, where, self, "learning_rate_scale", "positive")
        if self.weight_decay is not None:
            _check(self.weight_decay >= 0, where, self, "weight_decay", "at least 0")
        if self.optimizer is not None:
            _check_name(f"{where}.optimizer", self.optimizer, get_args(OptimizerName))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, learning-rate schedule and parameter groups."""

    name: Rule = "adamw"
    """Update rule, a name or a function. `adam` is `adamw` without weight decay. `adafactor` is
    that of optax (factored second moments, update clipping at 1, steps relative to the parameter's
    scale, no momentum).
    `muon` orthogonalises the momentum of every parameter of rank >= 2 over its last two axes,
    leading axes being batches of matrices (layers, experts, members), and gives the others to
    AdamW; embeddings, heads and stacked biases want a group with `optimizer="adamw"`. A function in
    a config file takes no arguments and returns an optax transformation of the gradient into the
    direction, such as `optax.scale_by_lion`; decay and learning rate follow as for the names."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    schedule: ScheduleName | Schedule = "cosine"
    """What follows the warm-up: `constant` is the peak; `linear` and `cosine` (half a period) fall
    to `final_fraction` of it; `rsqrt` is the peak times `sqrt(warmup_steps / step)`;
    `warmup_stable_decay` is the peak, and falls linearly over the last `decay_fraction` of the run.
    A function in a config file takes the step (0, 1, ...; traced) and returns the factor on the
    peak, its warm-up included."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0; the peak is reached at this step."""
    final_fraction: float = 0.0
    """Learning rate of the run's last update as a fraction of the peak (linear, cosine,
    warmup_stable_decay). With 0 the last update changes nothing."""
    decay_fraction: float = 0.2
    """Share of the run's steps over which warmup_stable_decay falls."""
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
        _check_name("optim.name", self.name, get_args(OptimizerName))
        _check_name("optim.schedule", self.schedule, get_args(ScheduleName))
        _check(0 < self.learning_rate < math.inf, "optim", self, "learning_rate", "positive")
        _check(self.warmup_steps >= 0, "optim", self, "warmup_steps", "at least 0")
        _check(0 <= self.final_fraction <= 1, "optim", self, "final_fraction", "between 0 and 1")
        _check(0 < self.decay_fraction <= 1, "optim", self, "decay_fraction", "in (0, 1]")
        if callable(self.schedule) and self.warmup_steps > 0:
            raise ValueError(
                f"optim.warmup_steps = {self.warmup_steps} must be 0 where optim.schedule is a "
                "function: it has its own warm-up"
            )
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
    """Make the learning rate as a function of the step.

    Args:
      config: the schedule and its peak.
      steps: updates of the whole run; the last one, `steps - 1`, has the final fraction.

    Returns:
      A traceable function of a scalar step 0, 1, ...; the first update has `schedule(0)`. In a run
      without a step to decay over (the warm-up ends at its last update), that update has the peak.

    Raises:
      ValueError: if the warm-up does not end before the run does.
    """
    peak, warmup, final = config.learning_rate, config.warmup_steps, config.final_fraction
    if warmup >= steps:
        raise ValueError(
            f"optim.warmup_steps = {warmup} must be less than the {steps} steps of the run"
        )
    given = config.schedule
    if not isinstance(given, str):
        return lambda step: peak * given(step)
    room = max(steps - 1 - warmup, 1)
    parts = [optax.linear_schedule(0.0, peak, warmup)] if warmup else []
    match given:
        case "constant":
            parts += [optax.constant_schedule(peak)]
        case "linear":
            parts += [optax.linear_schedule(peak, final * peak, room)]
        case "cosine":
            parts += [optax.cosine_decay_schedule(peak, room, alpha=final)]
        case "warmup_stable_decay":
            falling = min(max(round(config.decay_fraction * steps), 1), room)
            parts += [optax.linear_schedule(peak, final * peak, falling, room - falling)]
        case "rsqrt":
            # No formula of optax.
            start = max(warmup, 1)
            parts += [lambda step: peak * (start / jnp.maximum(step + warmup, start)) ** 0.5]
    return optax.join_schedules(parts, [warmup]) if warmup else parts[0]


def trainable(config: OptimConfig, params: PyTree) -> PyTree:
    """Return a tree like `params` that says which parameters train, by the groups.

    Args:
      config: the groups.
      params: parameters, or a tree of `jax.ShapeDtypeStruct`; only the names are used.

    Raises:
      ValueError: if the groups do not cover the parameters, match none, or freeze them all.
    """
    mask = jax.tree.map(lambda group: not group.freeze, _groups(config, params))
    if not any(jax.tree.leaves(mask)):
        raise ValueError("optim.groups freeze every parameter; leave some group free to train")
    return mask


def _groups(config: OptimConfig, params: PyTree) -> PyTree:
    groups = config.groups or (ParamGroup(pattern=".*"),)
    return match_rules([(g.pattern, g) for g in groups], params, what="parameter group")


def make_optimizer(
    config: OptimConfig, params: PyTree, *, steps: int
) -> optax.GradientTransformation:
    """Build the optimizer of `config` for the parameters named in `params`.

    Args:
      config: rule, schedule and groups.
      params: all parameters, or a tree of `jax.ShapeDtypeStruct`; only the names are used.
      steps: updates of the whole run.

    Returns:
      An optax chain for the parameters that train (`split(params, trainable(config, params))[0]`),
      whose `update` needs them as its third argument. The last entry of its state is that of the
      schedule, which counts the steps.

    Raises:
      ValueError: as `trainable` and `make_schedule` do.
    """
    schedule = make_schedule(config, steps=steps)
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    groups, _ = split(_groups(config, params), trainable(config, params))
    labels = jax.tree.map(lambda group: group.pattern, groups)
    chains = {g.pattern: _group_chain(config, g) for g in jax.tree.leaves(groups)}
    one = next(iter(chains.values()))
    by_group = optax.partition(chains, labels) if len(chains) > 1 else one
    return optax.chain(clip, by_group, optax.scale_by_schedule(schedule))


def _group_chain(config: OptimConfig, group: ParamGroup) -> optax.GradientTransformation:
    """Direction, then decay: the formula at the head of this module without the learning rate."""
    rate = _decay_rate(config, group)
    decay = decay_to_init(rate) if config.decay_to_init else optax.add_decayed_weights(rate)
    return optax.chain(
        _direction(config, group.optimizer or config.name),
        decay if rate > 0 else optax.identity(),
        optax.scale(-group.learning_rate_scale),
    )


def _direction(config: OptimConfig, rule: Rule) -> optax.GradientTransformation:
    if not isinstance(rule, str):
        made = rule()
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(
                f"the function {rule!r} in optim must return an optax GradientTransformation; it "
                f"returned {made!r}"
            )
        return made
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


def _check_name(where: str, value: object, known: tuple[str, ...]) -> None:
    if not callable(value):
        check_choice(where, value, known)  # type: ignore[arg-type]


def _check(holds: bool, where: str, config: object, field: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{where}.{field} = {getattr(config, field)} must be {expected}")
