"""Cross-entropy over the vocabulary, summed over tokens, without all logits in memory at once."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from common.mesh import BATCH_AXES, constrain, example_shards
from common.metrics import Mean
from common.rng import Rngs
from molt5_multitask.model import T5


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss."""

    label_smoothing: float = 0.0
    """Share e of the target that is spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Factor on the square of the log-partition function, which keeps it small (t5x: 1e-4)."""
    on_padding: bool = False
    """Train on padding too, as the published trainer of Text+Chem T5 does by an oversight: its
    loss is the mean over all positions. For fidelity only; rows must not be packed."""
    chunk: int | None = 32
    """Target positions of all rows whose logits are in memory at a time; None takes all."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1 or self.z_loss < 0:
            raise ValueError(
                f"label_smoothing must lie in [0, 1) and z_loss be at least 0; got "
                f"{self.label_smoothing} and {self.z_loss}"
            )
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"loss.chunk = {self.chunk} must be positive, or None")


def sequence_loss(
    model: T5,
    batch: Mapping[str, Int[Array, "B ..."]],
    config: LossConfig,
    rngs: Rngs | None = None,
) -> Mean:
    """Return the loss of a training batch (see `T5.__call__`), summed over its target tokens."""
    if config.on_padding:
        batch = {**batch, "target_segments": jnp.ones_like(batch["target_segments"])}
    return cross_entropy(
        model(batch, rngs),
        model.output_table,
        batch["targets"],
        batch["target_segments"] > 0,
        config=config,
        vocab_size=model.config.vocab_size,
    )


def cross_entropy(
    hidden: Float[Array, "B T d"],
    table: Float[Array, "V d"],
    targets: Int[Array, "B T"],
    weights: Array,
    *,
    config: LossConfig,
    vocab_size: int | None = None,
) -> Mean:
    """Sum `weight * ((1 - e) nll(target) + e mean(nll) + z_loss log(Z)^2)` over positions.

    Logits are in float32. The gradient is formed in the same pass, chunk by chunk of positions, and
    kept instead of logits: nothing is computed twice.

    Args:
      hidden: decoder states.
      table: projection to the vocabulary.
      targets: ids.
      weights: weight of each position (B, T), or whether it counts.
      config: smoothing, z-loss, chunk.
      vocab_size: ids in use, where the table has spare rows.
    """
    weights = weights.astype(jnp.float32)
    length = hidden.shape[1]
    chunk = min(config.chunk or length, length)
    pad = -length % chunk
    parts = [
        # (chunks, B, chunk, ...): rows stay along one axis, over which devices divide them.
        jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)))
        .reshape(len(x), -1, chunk, *x.shape[2:])
        .swapaxes(0, 1)
        for x in (hidden, targets, weights)
    ]
    # Its width, which `fsdp` splits, is gathered once and not for every chunk.
    table = constrain(table, PartitionSpec.UNCONSTRAINED, None, like=hidden)
    spare = len(table) - (len(table) if vocab_size is None else vocab_size)
    total = _total(config.label_smoothing, config.z_loss, spare, parts[0], table, *parts[1:])
    return Mean(total, jnp.sum(weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _total(
    smoothing: float,
    z_loss: float,
    spare: int,
    hidden: Float[Array, "C B c d"],
    table: Float[Array, "V d"],
    targets: Int[Array, "C B c"],
    weights: Float[Array, "C B c"],
) -> Float[Array, ""]:
    def add(total: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
        return total + _chunk(smoothing, z_loss, spare, table, *part)[0], None

    return jax.lax.scan(add, jnp.zeros(()), (hidden, targets, weights))[0]


def _chunk(
    smoothing: float, z_loss: float, spare: int, table: Array, *part: Array
) -> tuple[Array, Array]:
    """Return the summed loss of a chunk, and its gradient by the logits."""
    hidden, targets, weights = part
    logits = jnp.einsum("bcd,vd->bcv", hidden, table, preferred_element_type=jnp.float32)
    used = logits.shape[-1] - spare
    ids = np.arange(logits.shape[-1])
    if spare:
        logits = jnp.where(ids < used, logits, -jnp.inf)
    top = jnp.max(logits, axis=-1, keepdims=True)
    exp = jnp.exp(logits - top)
    partition = jnp.sum(exp, axis=-1, keepdims=True)
    log_z = jnp.squeeze(jnp.log(partition) + top, -1)
    at_target = jnp.squeeze(jnp.take_along_axis(logits, targets[..., None], axis=-1), -1)
    loss = log_z - (1 - smoothing) * at_target + z_loss * log_z**2
    grad = exp * ((1 + 2 * z_loss * log_z)[..., None] / partition)
    grad -= jnp.where(ids == targets[..., None], 1 - smoothing, 0)
    if smoothing:
        loss -= smoothing * jnp.sum(logits[..., :used], axis=-1) / used
        grad -= np.where(ids < used, smoothing / used, 0)
    return jnp.sum(loss * weights), grad * weights[..., None]


def _total_forward(
    smoothing: float, z_loss: float, spare: int, hidden: Array, table: Array, *rest: Array
) -> tuple[Array, tuple[Array, Array, tuple[Array, ...]]]:
    def add(carry: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[Any, Array]:
        total, by_table = carry
        loss, by_logits = _chunk(smoothing, z_loss, spare, table, *part)
        by_logits = by_logits.astype(table.dtype)
        by_table += jnp.einsum(
            "sbcv,sbcd->svd",
            *(x.reshape(shards, -1, *x.shape[1:]) for x in (by_logits, part[0])),
            preferred_element_type=jnp.float32,
        )
        return (total + loss, by_table), jnp.einsum("bcv,vd->bcd", by_logits, table)

    # Each device has a sum of its own, so that they are added up once and not for every chunk.
    shards = example_shards(hidden)
    zero = constrain(jnp.zeros((shards, *table.shape), jnp.float32), BATCH_AXES, like=hidden)
    (total, by_table), by_hidden = jax.lax.scan(add, (jnp.zeros(()), zero), (hidden, *rest))
    by_table = jnp.sum(by_table, axis=0).astype(table.dtype)
    return total, (by_hidden.astype(hidden.dtype), by_table, rest)


def _total_backward(
    smoothing: float,  # noqa: ARG001
    z_loss: float,  # noqa: ARG001
    spare: int,  # noqa: ARG001
    saved: tuple[Array, Array, tuple[Array, ...]],
    scale: Array,
) -> tuple[Any, ...]:
    by_hidden, by_table, (targets, weights) = saved
    return (
        (scale * by_hidden).astype(by_hidden.dtype),
        (scale * by_table).astype(by_table.dtype),
        np.zeros(targets.shape, jax.dtypes.float0),
        jnp.zeros_like(weights),
    )


_total.defvjp(_total_forward, _total_backward)
