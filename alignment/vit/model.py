"""The vision transformer as one NNX module, used through pure functions of its parameters.

    config = preset("siglip-b16")
    params = init(config, jax.random.key(0))          # a nested dict of arrays

    @jax.jit
    def features(params, images):                     # (B, H, W, 3), already normalised
        return bind(config, params)(images)           # (B, d)

Blocks are stacked: their arrays have a leading axis of layers.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from alignment.vit.config import PRESETS, ViTConfig, preset
from common.nn.attention import MultiHeadAttention, dot_product_attention
from common.nn.layers import AnyArray, LayerNorm, Linear
from common.nn.mlp import MLP
from common.nn.stack import make_stack, run_stack
from common.task import Params

__all__ = ["PRESETS", "ViT", "ViTConfig", "bind", "init", "preset"]


class Block(nnx.Module):
    """Self-attention and MLP, each normalised before, and scaled and added to the stream."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = _norm(config)
        self.attention = _attention(config, rngs=rngs)
        self.mlp_norm = _norm(config)
        self.mlp = _mlp(config, rngs=rngs)
        self.attention_scale, self.mlp_scale = _scale(config), _scale(config)

    def __call__(self, x: Float[Array, "B L d"]) -> Float[Array, "B L d"]:
        """Transform the stream."""
        y = self.attention_norm(x)
        y = _attend(self.attention, y, y)
        x = x + (y if self.attention_scale is None else y * self.attention_scale[...])
        y = self.mlp(self.mlp_norm(x))
        return x + (y if self.mlp_scale is None else y * self.mlp_scale[...])


class AttentionPool(nnx.Module):
    """A learned probe attends to all tokens, then passes an MLP of its own (MAP)."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs) -> None:
        self.probe = _token(config, rngs=rngs)
        self.attention = _attention(config, rngs=rngs)
        self.norm = _norm(config)
        self.mlp = _mlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "B L d"]) -> Float[Array, "B d"]:
        """Pool the tokens."""
        probe = jnp.broadcast_to(self.probe[...], (len(x), 1, x.shape[-1]))
        y = _attend(self.attention, probe, x)
        return (y + self.mlp(self.norm(y)))[:, 0]


class ViT(nnx.Module):
    """The vision transformer. It computes in the type of its parameters: see `common.nn.layers`."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        p, d = config.patch, config.width
        self.patch = Linear(
            (p, p, 3), (d,), stddev=(3 * p * p) ** -0.5, bias=config.patch_bias, rngs=rngs
        )
        self.class_token = _token(config, rngs=rngs) if config.class_token else None
        self.positions = _token(config, config.class_token + config.grid**2, rngs=rngs)
        self.registers = _token(config, config.registers, rngs=rngs) if config.registers else None
        self.pre_norm = _norm(config) if config.pre_norm else None
        self.blocks = make_stack(lambda rngs: Block(config, rngs=rngs), config.layers, rngs=rngs)
        self.final_norm = _norm(config)
        self.map_pool = AttentionPool(config, rngs=rngs) if config.pool == "map" else None
        self.projection = (
            None
            if config.projection is None
            else Linear((d,), (config.projection,), stddev=d**-0.5, rngs=rngs)
        )

    def encode(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B L d"]:
        """Return the normalised tokens after the last block: class, registers, patches by row.

        Raises:
          ValueError: if the images are not of the config's size.
        """
        config = self.config
        if images.shape[1:] != (config.image_size, config.image_size, 3):
            raise ValueError(
                f"images of shape {images.shape[1:]} do not fit model.image_size = "
                f"{config.image_size}; resize them, or resample the positions"
            )
        x = self.patch(_patches(jnp.asarray(images), config).astype(self.patch.kernel.dtype))
        batch, d = len(x), config.width
        if self.class_token is not None:
            x = jnp.concatenate([jnp.broadcast_to(self.class_token[...], (batch, 1, d)), x], axis=1)
        x = x + self.positions[...]
        if self.registers is not None:
            registers = jnp.broadcast_to(self.registers[...], (batch, config.registers, d))
            first = int(config.class_token)
            x = jnp.concatenate([x[:, :first], registers, x[:, first:]], axis=1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = run_stack(
            self.blocks,
            lambda block, x, _: block(x),
            x,
            layers=config.layers,
            scan=config.scan,
            remat=config.remat,
        )
        return self.final_norm(x)

    def tokens(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B N d"]:
        """Return the normalised tokens of the patches, by row."""
        return self.encode(images)[:, self.config.prefix :]

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B f"]:
        """Return the features of images that are normalised as the model expects them."""
        x = self.encode(images)
        if self.map_pool is not None:
            x = self.map_pool(x)
        elif self.config.pool == "class":
            x = x[:, 0]
        else:
            x = x[:, self.config.prefix :].mean(axis=1)
        return x if self.projection is None else self.projection(x)


def _patches(images: Float[Array, "B H W 3"], config: ViTConfig) -> Float[Array, "B N p p 3"]:
    """Cut images into patches, by row; pixels beyond the last whole patch are left out."""
    grid, patch = config.grid, config.patch
    seen = images[:, : grid * patch, : grid * patch]
    cut = seen.reshape(len(images), grid, patch, grid, patch, 3).swapaxes(2, 3)
    return cut.reshape(len(images), grid * grid, patch, patch, 3)


def _attend(
    attention: MultiHeadAttention, x: Float[Array, "B Q d"], memory: Float[Array, "B K d"]
) -> Float[Array, "B Q d"]:
    keys, values = attention.keys_values(memory)
    queries = attention.queries(x)
    return attention.merge(dot_product_attention(queries * queries.shape[-1] ** -0.5, keys, values))


def _norm(config: ViTConfig) -> LayerNorm:
    return LayerNorm(config.width, eps=config.norm_eps)


def _scale(config: ViTConfig) -> nnx.Param | None:
    if config.layer_scale is None:
        return None
    return nnx.Param(jnp.full((config.width,), config.layer_scale, jnp.float32))


def _token(config: ViTConfig, *count: int, rngs: nnx.Rngs) -> nnx.Param:
    """Draw embeddings from N(0, 1 / width)."""
    shape = (*count, config.width)
    return nnx.Param(config.width**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32))


def _attention(config: ViTConfig, *, rngs: nnx.Rngs) -> MultiHeadAttention:
    stddev = config.width**-0.5
    return MultiHeadAttention(
        config.width,
        heads=config.heads,
        d_head=config.width // config.heads,
        query_stddev=stddev,
        stddev=stddev,
        out_stddev=stddev,
        bias=True,
        rngs=rngs,
    )


def _mlp(config: ViTConfig, *, rngs: nnx.Rngs) -> MLP:
    stddev = (2 / (config.width + config.mlp)) ** 0.5  # Glorot's, as big_vision draws them
    return MLP(
        config.width,
        config.mlp,
        activation=config.activation,
        bias=True,
        stddev=stddev,
        out_stddev=stddev,
        rngs=rngs,
    )


def init(config: ViTConfig, key: Array) -> Params:
    """Draw the parameters: a nested dict of float32 arrays."""
    _, state = nnx.split(ViT(config, rngs=nnx.Rngs(params=key)))
    return nnx.to_pure_dict(state)


@functools.lru_cache
def _graph(config: ViTConfig) -> nnx.GraphDef[ViT]:
    return nnx.graphdef(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))))


def bind(config: ViTConfig, params: Params) -> ViT:
    """Return the model with these parameters; call it inside the function that is traced."""
    return nnx.merge(_graph(config), params)
