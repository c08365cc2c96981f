"""Losses of a student on triplets with soft labels.

With d the dot products of the student's outputs z and s the teacher's similarities, both in the
order of pairs (0, 1), (0, 2), (1, 2), and image 2 the odd one,

    p = softmax(s),   q = softmax(d / tau),   m = (p + q) / 2
    jsd = KL(p || m) / 2 + KL(q || m) / 2,   kl = KL(p || q),   contrastive = -log q_01,

in nats. All go through log-softmax: the logarithm of a softmax overflows once q underflows.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from alignment.judgments import pair_logits, unit_rows
from common.choices import check_choice

LossName = Literal["jsd", "kl", "contrastive"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and how the student's outputs become probabilities."""

    name: LossName = "jsd"
    """Jensen-Shannon divergence (as published), Kullback-Leibler divergence from the labels, or
    cross-entropy with the most similar pair as a hard label."""
    tau: float = 100.0
    """Temperature of the student; 100 belongs to 1024 outputs that are not normalised."""
    normalize: bool = False
    """Bring the outputs to length one first, so that d are cosines; take tau <= 1 then."""

    def __post_init__(self) -> None:
        check_choice("loss_config.name", self.name, get_args(LossName))
        if not self.tau > 0:
            raise ValueError(f"loss_config.tau = {self.tau} must be positive")


def student_logits(
    outputs: Float[Array, "n d"], triplets: Int[Array, "m 3"], config: LossConfig
) -> Float[Array, "m 3"]:
    """Return the logits of a student's choice distributions, in pair order and float32.

    Args:
      outputs: one row for each distinct image.
      triplets: rows of `outputs`.
      config: normalisation and temperature.
    """
    outputs = outputs.astype(jnp.float32)
    if config.normalize:
        outputs = unit_rows(outputs)
    return pair_logits(outputs, triplets) / config.tau


def triplet_loss(
    logits: Float[Array, "*batch 3"], similarities: Float[Array, "*batch 3"], config: LossConfig
) -> Float[Array, "*batch"]:
    """Return the loss of each triplet; see the head of this module.

    Args:
      logits: what `student_logits` returns.
      similarities: the teacher's, [s01, s02, s12].
      config: which loss.
    """
    log_p, log_q = jax.nn.log_softmax(similarities), jax.nn.log_softmax(logits)
    match config.name:
        case "jsd":
            log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
            return (_divergence(log_p, log_m) + _divergence(log_q, log_m)) / 2
        case "kl":
            return _divergence(log_p, log_q)
        case "contrastive":
            return -log_q[..., 0]


def _divergence(
    log_p: Float[Array, "*batch 3"], log_q: Float[Array, "*batch 3"]
) -> Float[Array, "*batch"]:
    """Return KL(p || q); a probability that underflows to 0 counts 0."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
