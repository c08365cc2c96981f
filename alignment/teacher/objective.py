"""What a teacher's map `x -> x @ weights + bias` minimises.

    L + lambda * R,   R = || W - m I ||_F^2,   m = mean(diag W)

L is the mean over triplets of the cross-entropy between target and choice probabilities: targets
from a posterior over embeddings (uncertainty distillation), or one for the pair that was chosen
(hard labels). gLocal (Muttenthaler et al., NeurIPS 2023) mixes in a term that keeps the
neighbourhoods of other images, (1 - alpha) L + alpha L_local.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignment.judgments import AnyArray, unit_rows


def cross_entropy(
    logits: Float[AnyArray, "*batch 3"], targets: Float[AnyArray, "*batch 3"]
) -> Float[Array, "*batch"]:
    """Return `-sum_c q_c log p_c`, p the softmax of the logits.

    It is KL(q || p) plus the entropy of q, which the map has no part in.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits), -1)


def distance_to_scaled_identity(weights: Float[AnyArray, "p p"]) -> Float[Array, ""]:
    """Return `|| W - m I ||_F^2`, a sum of squares; m = mean(diag W) takes part in the gradient."""
    # As || W ||^2 - p m^2 it needs no identity matrix; the terms are of the same sign and size.
    return jnp.sum(weights**2) - len(weights) * jnp.mean(jnp.diagonal(weights)) ** 2


def local_loss(
    before: Float[AnyArray, "n p"], after: Float[AnyArray, "n q"], temperature: float
) -> Float[Array, ""]:
    """Cross-entropy between each image's neighbourhoods before and after the map, averaged.

    P_i is the softmax over j != i of `cos(x_i, x_j) / temperature`, Q_i that of the images after.
    """
    p, q = (_neighbourhoods(x, temperature) for x in (before, after))
    return -jnp.mean(jnp.sum(jnp.exp(p) * jnp.where(p > -jnp.inf, q, 0), -1))


def _neighbourhoods(x: Float[AnyArray, "n p"], temperature: float) -> Float[Array, "n n"]:
    """Return the logarithm of the softmax; -inf on the diagonal."""
    x = unit_rows(x)
    cosines = x @ x.T / temperature
    return jax.nn.log_softmax(jnp.where(jnp.eye(len(x), dtype=bool), -jnp.inf, cosines))
