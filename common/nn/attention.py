"""Multi-head attention: the core, and its projections.

Heads stand before positions, `(B, H, L, D)`, so that the two products are batched matrix products
without a transposition, and a cache can be used as it lies.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from common.nn.layers import Keep, Linear, dropout

MASKED = -1e9
"""Score of a masked pair: finite, so that a query without any key gives no NaN."""


def dot_product_attention(
    query: Float[Array, "B H Q D"],
    key: Float[Array, "B H K D"],
    value: Float[Array, "B H K D"],
    *,
    mask: Bool[Array, "#B 1 #Q K"] | None = None,
    bias: Float[Array, "#B #H #Q K"] | None = None,
    keep: Keep = None,
    dropout_rate: float = 0.0,
) -> Float[Array, "B H Q D"]:
    """Return `softmax(query . key + bias) . value` over the keys that the mask allows.

    Scores and softmax are in float32. There is no division by sqrt(D): scale the query, or let its
    initialisation hold the factor, as T5 does.

    Args:
      query: queries.
      key: keys.
      value: values.
      mask: True where a query may look at a key.
      bias: added to the scores.
      keep: attention weights that survive dropout, broadcast to `(B, H, Q, K)`.
      dropout_rate: rate with which `keep` was drawn.
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, keep, dropout_rate)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)


class MultiHeadAttention(nnx.Module):
    """Projections to `heads` of size `d_head`, and from them back to `features`."""

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        d_head: int,
        query_stddev: float,
        stddev: float,
        out_stddev: float,
        bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the kernels; the standard deviations are of the query, of key and value, and out."""
        split, merged = (heads, d_head), (features,)
        self.query = Linear(merged, split, stddev=query_stddev, bias=bias, rngs=rngs)
        self.key = Linear(merged, split, stddev=stddev, bias=bias, rngs=rngs)
        self.value = Linear(merged, split, stddev=stddev, bias=bias, rngs=rngs)
        self.out = Linear(split, merged, stddev=out_stddev, bias=bias, rngs=rngs)

    def queries(self, x: Float[Array, "B L d"]) -> Float[Array, "B H L D"]:
        """Project what asks."""
        return self.query(x).swapaxes(1, 2)

    def keys_values(
        self, x: Float[Array, "B L d"]
    ) -> tuple[Float[Array, "B H L D"], Float[Array, "B H L D"]]:
        """Project what is asked."""
        return self.key(x).swapaxes(1, 2), self.value(x).swapaxes(1, 2)

    def merge(self, heads: Float[Array, "B H L D"]) -> Float[Array, "B L d"]:
        """Project the heads' results back."""
        return self.out(heads.swapaxes(1, 2))
