"""Gradient transformations that `common.optim` needs and optax lacks in this form."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, PyTree


class DecayToInitState(NamedTuple):
    """State of `decay_to_init`."""

    initial: PyTree
    """The parameters at the start of training."""


def decay_to_init(rate: float) -> optax.GradientTransformation:
    """Add `rate * (params - params given to init)` to the updates.

    The initial parameters are part of the state, so that a resumed run keeps its anchor.
    """

    def init(params: PyTree) -> DecayToInitState:
        # A copy: parameters and state are donated, and a buffer can be donated only once.
        return DecayToInitState(initial=jax.tree.map(jnp.copy, params))

    def update(
        updates: PyTree, state: DecayToInitState, params: PyTree = None
    ) -> tuple[PyTree, DecayToInitState]:
        pulled = jax.tree.map(lambda u, p, p0: u + rate * (p - p0), updates, params, state.initial)
        return pulled, state

    return optax.GradientTransformation(init, update)


def orthogonalize(*, eps: float) -> optax.GradientTransformation:
    """Apply `orthogonalized` to every update; all must have rank 2 or more."""
    return optax.stateless_with_tree_map(lambda update, _: orthogonalized(update, eps=eps))


def orthogonalized(
    matrix: Float[Array, "*batch rows columns"], *, eps: float
) -> Float[Array, "*batch rows columns"]:
    """Bring all singular values of each matrix near `0.2 sqrt(max(rows, columns))`, as Muon does.

    Five Newton-Schulz steps with the quintic of Jordan et al. (Muon, 2024), which trade accuracy
    for slope at zero: singular values above 0.3 % of the Frobenius norm end between 0.68 and 1.21.
    The factor then gives the update the root mean square of a typical AdamW update, so that
    learning rate and weight decay carry over (Liu et al., arXiv:2502.16982). `eps` is added to the
    norm by which the matrix is divided.
    """
    rows, columns = matrix.shape[-2:]
    x = matrix.mT if rows > columns else matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return 0.2 * math.sqrt(max(rows, columns)) * (x.mT if rows > columns else x)
