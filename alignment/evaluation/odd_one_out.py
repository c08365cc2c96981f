"""Odd-one-out accuracy: does the most similar pair of features leave out the image people do?"""

import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax
from jaxtyping import Bool, Float, Int

from alignment.judgments import Triplets, correct, pair_logits, unit_rows


def odd_one_out(
    features: Float[np.ndarray, "n p"], triplets: Triplets, *, prefix: str = ""
) -> dict[str, float]:
    """Score features on human triplets.

    Args:
      features: one row for each object.
      triplets: int (m, 3), the odd one last.
      prefix: what the names begin with.

    Returns:
      `accuracy_cosine` and `accuracy_dot`, by cosines and dot products of the pairs, where a tie
      for the maximum is wrong; `ties_cosine` and `ties_dot`, the share of such ties; and `nll`, the
      mean negative log-probability of the human choice in nats (dot products, temperature 1).
      Chance is 1/3 and log 3.
    """
    scores = {}
    dots = pair_logits(features, triplets)
    for kind, logits in (
        ("cosine", pair_logits(unit_rows(jnp.asarray(features)), triplets)),
        ("dot", dots),
    ):
        scores[f"accuracy_{kind}"] = float(jnp.mean(correct(logits)))
        scores[f"ties_{kind}"] = float(ties(np.asarray(logits)).mean())
    scores["nll"] = float(-jnp.mean(log_softmax(dots)[:, 0]))
    return {prefix + name: value for name, value in scores.items()}


def ties(logits: Float[np.ndarray, "m 3"]) -> Bool[np.ndarray, "m"]:
    """Return where two pairs or three share the maximum exactly."""
    return (logits == logits.max(1, keepdims=True)).sum(1) > 1


def odd_image(logits: Float[np.ndarray, "m 3"]) -> Int[np.ndarray, "m"]:
    """Return the column of the image that the most similar pair leaves out; -1 where pairs tie."""
    return np.where(ties(logits), -1, 2 - np.argmax(logits, 1))
