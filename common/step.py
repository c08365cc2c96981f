"""The training step: gradient of a sum, accumulated by weight, then one optimizer update."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from common import metrics
from common.choices import check_choice
from common.metrics import Mean, Metrics
from common.optim import Schedule
from common.rng import Rngs
from common.state import Fault, TrainState
from common.task import Batch, Params, Task
from common.tree import join, split

Remat = Literal["none", "dots", "full"]
Nonfinite = Literal["skip", "stop", "roll_back"]
ComputeDtype = Literal["float32", "bfloat16", "float64"]
STEP_METRICS = ("learning_rate", "param_norm", "grad_norm", "update_norm", "skipped")
"""Metrics that are logged for every run, of the trained parameters; a task cannot take the names.
Parameters are those before the update; norms are means over the steps that were not skipped."""


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
    """What a step does to the run whose loss or gradient is not finite. It never changes
    parameters, their average and optimizer (but the schedule goes on), and is written to
    `nonfinite.jsonl` with its batch. Besides, the run stops, or rolls back: to the newest
    checkpoint before, from which it goes on with the batches after."""
    ema_decay: float | None = None
    """Decay per step of the averaged parameters, kept in float32; None keeps no average."""

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
        where = f"{type(task).__name__}.loss"
        metrics.check(out, where, reserved=STEP_METRICS)
        if not isinstance(out.get("loss"), Mean):
            raise TypeError(
                f"{where} must return a dict of metrics whose entry 'loss' is a common.Mean; "
                f"got {out!r}"
            )
        return metrics.widen(dict(out))

    if config.remat == "none":
        return loss
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if config.remat == "full" else policies.dots_saveable
    return jax.checkpoint(loss, policy=policy)


def make_gradient(
    loss: Callable[[Params, Batch, Rngs], Metrics], *, of: Literal["mean", "sum"]
) -> Callable[[Params, Params, Batch, Rngs], tuple[Params, Metrics]]:
    """Return the gradient of the loss's mean or sum, and the metrics, as a function.

    It takes the trained and the frozen parameters, batch and random streams; the gradient is that
    of the trained ones, so that the frozen ones have no backward pass.
    """

    def gradient(
        trained: Params, frozen: Params, batch: Batch, rngs: Rngs
    ) -> tuple[Params, Metrics]:
        def total(trained: Params) -> tuple[Float[Array, ""], Metrics]:
            out = loss(join(trained, frozen), batch, rngs)
            return out["loss"].total, out

        value, pull_back, out = jax.vjp(total, trained, has_aux=True)
        # To scale the one number that is pulled back saves a pass over all gradients.
        scale = _inverse(jnp.asarray(out["loss"].weight)) if of == "mean" else jnp.ones(())
        return pull_back(scale.astype(value.dtype))[0], out

    return gradient


def _inverse(weight: Float[Array, ""]) -> Float[Array, ""]:
    """Return 1 / weight; 0 for a batch of weight zero (all padding), whose gradient is zero."""
    return jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)


def abstract_metrics(
    task: Task, config: StepConfig, params: Params, batch: Batch, trainable: Any
) -> Metrics:
    """Return the shapes of the training step's metrics for one batch, without compute."""

    def one(params: Params, batch: Batch) -> Metrics:
        rngs = Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))
        sums = make_loss(task, config)(params, batch, rngs)
        trained, _ = split(params, trainable)
        found = _step_metrics(task, sums, trained, trained, trained, norm(trained))
        return {**found, "learning_rate": _once(jnp.zeros(())), "skipped": _once(jnp.zeros(()))}

    return jax.eval_shape(one, params, batch)


def norm(tree: Any) -> Float[Array, ""]:
    """Return the Euclidean norm over all leaves, summed in float32 at least; float32."""
    return optax.tree.norm(metrics.widen(tree)).astype(jnp.float32)


def _step_metrics(
    task: Task,
    sums: Metrics,
    trained: Params,
    grads: Params,
    updates: Params,
    grad_norm: Float[Array, ""],
) -> Metrics:
    """Add the norms, and the task's own metrics of the step, to the metrics of the loss."""
    found = task.step_metrics(trained, grads, updates)
    where = f"{type(task).__name__}.step_metrics"
    metrics.check(found, where, reserved=(*STEP_METRICS, *sums))
    norms = {"grad_norm": grad_norm, "param_norm": norm(trained), "update_norm": norm(updates)}
    return {
        **sums,
        **metrics.widen(dict(found)),
        **{name: _once(value) for name, value in norms.items()},
    }


def _once(value: Float[Array, ""] | Bool[Array, ""] | float) -> Mean:
    """Return a mean over steps, of which this is one."""
    return Mean(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))


def _split(batch: Batch, parts: int) -> Batch:
    """Split `(B, ...)` into `(parts, B / parts, ...)`, each part spread over all devices."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: StepConfig,
    trainable: Any,
    *,
    log_every: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the function that takes `config.per_call` optimizer steps.

    Args:
      task: the task.
      optimizer: the optimizer of the trained parameters, see `common.optim.make_optimizer`.
      schedule: its learning rate as a function of the step, to be logged.
      config: how a step is computed.
      trainable: which parameters train, see `common.optim.trainable`.
      log_every: cadence in steps at which the sums of the metrics start anew.

    Returns:
      A pure function of the state and a batch pytree of shape `(per_call, batch_size, ...)`. It
      returns the new state and the metrics of the current logging window. Jit it, and donate the
      state.
    """
    loss = make_loss(task, config)
    grad = make_gradient(loss, of="mean" if config.accumulate == 1 else "sum")

    def gradient(
        trained: Params, frozen: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Any, Metrics]:
        """Gradient of the mean loss, and the sums of the metrics, over all microbatches."""
        if config.accumulate == 1:
            with jax.named_scope("gradient"):
                return grad(trained, frozen, batch, Rngs(key, step))

        def add(carry: Any, item: Any) -> tuple[Any, None]:
            index, part = item
            with jax.named_scope("gradient"):
                found: Any = grad(trained, frozen, part, Rngs(key, step, index))
            with jax.named_scope("accumulate"):
                return metrics.merge(carry, found), None

        parts = _split(batch, config.accumulate)
        indices = jnp.arange(config.accumulate, dtype=jnp.int32)
        first = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(
                lambda *args: metrics.widen(grad(*args)), trained, frozen, first, Rngs(key, step)
            ),
        )
        grads, out = jax.lax.scan(add, zero, (indices, parts))[0]
        scale = _inverse(out["loss"].weight)
        return jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), grads, trained), out

    def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, None]:
        key = jax.random.wrap_key_data(state.rng)
        trained, frozen = split(state.params, trainable)
        grads, new = gradient(trained, frozen, batch, key, state.step)
        grad_norm = norm(grads)
        loss_finite = jnp.isfinite(new["loss"].total)
        finite = jnp.isfinite(grad_norm) & loss_finite

        def update() -> tuple[Params, Any, Metrics]:
            with jax.named_scope("optimizer"):
                updates, opt_state = optimizer.update(grads, state.opt_state, trained)
                params = optax.apply_updates(trained, updates)
            with jax.named_scope("metrics"):
                found = _step_metrics(task, new, trained, grads, updates, grad_norm)
            return params, opt_state, found

        def skip() -> tuple[Params, Any, Metrics]:
            # The schedule counts this step too, so that it ends with the run. The metrics do not:
            # one NaN would hide the rest of the window.
            _, opt_state = optimizer.update(grads, state.opt_state, trained)
            opt_state = (*state.opt_state[:-1], opt_state[-1])
            found = jax.tree.map(jnp.zeros_like, dict(state.window))
            del found["learning_rate"], found["skipped"]
            return trained, opt_state, found

        # A choice between the branches, not between their results: that reads and writes all of
        # the state twice, half of the time of the optimizer on a CPU.
        params, opt_state, found = jax.lax.cond(finite, update, skip)
        ema = state.ema
        if (decay := config.ema_decay) is not None:
            with jax.named_scope("ema"):
                wide = optax.tree.cast_like(params, state.ema)
                ema = jax.lax.cond(
                    finite,
                    lambda: optax.incremental_update(wide, state.ema, 1 - decay),
                    lambda: state.ema,
                )
        with jax.named_scope("metrics"):
            found["learning_rate"] = _once(schedule(state.step))
            found["skipped"] = _once(~finite)
            window, fault = jax.tree.map(
                lambda old, start: jnp.where(state.step % log_every == 0, start, old),
                (state.window, state.fault),
                (jax.tree.map(jnp.zeros_like, state.window), Fault.none(trained)),
            )
            window = metrics.merge(window, found)
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
            params=join(params, frozen),
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
