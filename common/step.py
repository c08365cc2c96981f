"""The training step: gradient of a sum, accumulated by weight, then one optimizer update."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array

from common import metrics
from common.choices import check_choice
from common.metrics import Mean, Metrics
from common.rng import Rngs
from common.state import Fault, TrainState
from common.task import Batch, Params, Task

Remat = Literal["none", "dots", "full"]
Nonfinite = Literal["skip", "stop", "roll_back"]
ComputeDtype = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How one optimizer step is computed."""

    accumulate: int = 1
    """Microbatches that the batch is split into; their sums are added before the update."""
    per_call: int = 1
    """Optimizer steps in each compiled call; more of them hide the dispatch of tiny models."""
    compute_dtype: ComputeDtype | None = None
    """Type that floating-point parameters are cast to for the loss (updates stay in the parameters'
    own type); None leaves them. Casting the inputs is the model's matter."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, all but matrix products, or everything."""
    nonfinite: Nonfinite = "skip"
    """What a step does to the run whose loss or gradient is not finite. It never changes parameters
    and optimizer, and is written to `nonfinite.jsonl` with its batch. Besides, the run stops, or
    rolls back: to the newest checkpoint before, from which it goes on with the batches after."""
    ema_decay: float | None = None
    """Decay per step of the averaged parameters; None keeps no average."""

    def __post_init__(self) -> None:
        for name in ("accumulate", "per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"step.{name} must be at least 1, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"step.ema_decay must lie in [0, 1), got {self.ema_decay}")
        check_choice("step.nonfinite", self.nonfinite, get_args(Nonfinite))
        check_choice("step.remat", self.remat, get_args(Remat))
        if self.compute_dtype is not None:
            check_choice("step.compute_dtype", self.compute_dtype, get_args(ComputeDtype))


def make_loss(task: Task, config: StepConfig) -> Callable[[Params, Batch, Rngs], Metrics]:
    """Apply the precision policy and rematerialisation to the task's loss, and check its form."""

    def cast(leaf: Array) -> Array:
        if config.compute_dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(config.compute_dtype)

    def loss(params: Params, batch: Batch, rngs: Rngs) -> Metrics:
        out = task.loss(jax.tree.map(cast, params), batch, rngs)
        if not isinstance(out, dict) or not isinstance(out.get("loss"), Mean):
            raise TypeError(
                f"{type(task).__name__}.loss must return a dict of metrics whose entry 'loss' is "
                f"a common.Mean; got {out!r}"
            )
        return out

    if config.remat == "none":
        return loss
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if config.remat == "full" else policies.dots_saveable
    return jax.checkpoint(loss, policy=policy)


def abstract_metrics(task: Task, config: StepConfig, params: Params, batch: Batch) -> Metrics:
    """Return the shapes of the training step's metrics for one batch, without compute."""

    def one(params: Params, batch: Batch) -> Metrics:
        rngs = Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))
        return _with_step_metrics(
            make_loss(task, config)(params, batch, rngs), jnp.zeros(()), jnp.zeros((), bool)
        )

    return jax.eval_shape(one, params, batch)


def _with_step_metrics(sums: Metrics, grad_norm: Array, skipped: Array) -> Metrics:
    one = jnp.ones((), jnp.float32)
    return {
        **sums,
        "grad_norm": Mean(grad_norm.astype(jnp.float32), one),
        "skipped": Mean(skipped.astype(jnp.float32), one),
    }


def _split(batch: Batch, parts: int) -> Batch:
    """Split `(B, ...)` into `(parts, B / parts, ...)`, each part spread over all devices."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    *,
    log_every: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the function that takes `config.per_call` optimizer steps.

    Args:
      task: the task.
      optimizer: the optimizer.
      config: how a step is computed.
      log_every: cadence in steps at which the sums of the metrics start anew.

    Returns:
      A pure function of the state and a batch pytree of shape `(per_call, batch_size, ...)`. It
      returns the new state and the metrics of the current logging window. Jit it, and donate the
      state.
    """
    loss = make_loss(task, config)

    def total_loss(params: Params, batch: Batch, rngs: Rngs) -> tuple[Array, Metrics]:
        out = loss(params, batch, rngs)
        return out["loss"].total, out

    def sums(params: Params, batch: Batch, key: Array, step: Array) -> tuple[Any, Metrics]:
        """Gradient of the summed loss, and the metrics, over all microbatches."""
        grad = jax.grad(total_loss, has_aux=True)
        if config.accumulate == 1:
            return grad(params, batch, Rngs(key, step))

        def add(carry: Any, item: Any) -> tuple[Any, None]:
            index, part = item
            return metrics.merge(carry, grad(params, part, Rngs(key, step, index))), None

        parts = _split(batch, config.accumulate)
        indices = jnp.arange(config.accumulate, dtype=jnp.int32)
        first = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(grad, params, first, Rngs(key, step)),
        )
        return jax.lax.scan(add, zero, (indices, parts))[0]

    def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, None]:
        key = jax.random.wrap_key_data(state.rng)
        grads, new = sums(state.params, batch, key, state.step)
        weight = new["loss"].weight
        # A batch of weight zero (all padding) has a zero gradient, not an undefined one.
        scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
        grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if config.ema_decay is not None:
            decay = config.ema_decay
            ema = jax.tree.map(
                lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype), ema, params
            )
        loss_finite = jnp.isfinite(new["loss"].total)
        finite = jnp.isfinite(grad_norm) & loss_finite
        params, opt_state, ema = jax.tree.map(
            lambda new_leaf, old: jnp.where(finite, new_leaf, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        # A skipped step counts as skipped only: one NaN would hide the rest of the window.
        grad_norm = jnp.where(finite, grad_norm, 0)
        new = jax.tree.map(lambda m: jnp.where(finite, m, jnp.zeros_like(m)), new)
        window, fault = jax.tree.map(
            lambda old, start: jnp.where(state.step % log_every == 0, start, old),
            (state.window, state.fault),
            (jax.tree.map(jnp.zeros_like, state.window), Fault.none(params)),
        )
        window = metrics.merge(window, _with_step_metrics(new, grad_norm, ~finite))
        # Under a condition, so that no gradient is searched as long as all is well.
        fault = jax.lax.cond(
            ~finite & (fault.step < 0),
            lambda: Fault(
                step=state.step,
                batch=state.step + state.passed_over,
                loss=~loss_finite,
                gradient=jnp.stack([~jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]),
            ),
            lambda: fault,
        )
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            rng=state.rng,
            window=window,
            fault=fault,
            passed_over=state.passed_over,
        ), None

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        state, _ = jax.lax.scan(one_step, state, batches)
        return state, state.window

    return train_step
