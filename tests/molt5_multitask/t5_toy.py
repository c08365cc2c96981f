"""Tiny models and batches for the tests of the model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from molt5_multitask.losses import LossConfig, sequence_loss
from molt5_multitask.model import T5Config, bind, init, preset

# These tests compile much more than they compute.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

VERSIONS = ("t5-tiny", "t5-v1_1-tiny")
VOCAB = 50


def tiny(version: str, **changes: Any) -> T5Config:
    """Return a config of two or three layers with a vocabulary of 50."""
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_ff": 48, "encoder_layers": 3, **changes}
    return preset(version, **sizes)


@functools.lru_cache
def params_of(config: T5Config, seed: int = 0) -> Any:
    """Draw parameters by numpy, which compiles nothing, such that all of them matter."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        scale = 1.0 if "table" in name else 0.15
        return jnp.asarray(rng.normal(size=leaf.shape, scale=scale), jnp.float32)

    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.lru_cache
def _forward(config: T5Config) -> Any:
    @jit
    def run(params: Any, batch: Any) -> Any:
        model = bind(config, params)
        return model.logits(model(batch))

    return run


def logits(config: T5Config, params: Any, batch: Any) -> np.ndarray:
    """Run the whole model."""
    return np.asarray(_forward(config)(params, batch))


@functools.lru_cache
def _loss_and_gradient(config: T5Config, options: LossConfig) -> Any:
    def total(params: Any, batch: Any) -> Any:
        return sequence_loss(bind(config, params), batch, options).total

    return jit(jax.value_and_grad(total))


def loss_and_gradient(
    config: T5Config, params: Any, batch: Any, options: LossConfig | None = None
) -> Any:
    """Run the summed loss and its gradient."""
    return _loss_and_gradient(config, options or LossConfig())(params, batch)


def assert_near(found: Any, expected: Any, *, rtol: float = 1e-5) -> None:
    """Compare trees of arrays, each relative to its largest entry."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def row(inputs: list[list[int]], targets: list[list[int]], *, length: int) -> dict[str, Any]:
    """Pack examples into one row (1, length) on each side."""
    found = {}
    for side, pieces in (("input", inputs), ("target", targets)):
        ids, segments = np.zeros((2, 1, length), np.int32)
        start = 0
        for number, piece in enumerate(pieces, 1):
            ids[0, start : start + len(piece)] = piece
            segments[0, start : start + len(piece)] = number
            start += len(piece)
        found |= {f"{side}s": ids, f"{side}_segments": segments}
    return found


def batch(seed: int = 0, *, rows: int = 3, inputs: int = 9, targets: int = 7) -> dict[str, Any]:
    """Draw rows of one example each, of several lengths."""
    rng = np.random.default_rng(seed)
    found = {}
    for side, length in (("input", inputs), ("target", targets)):
        used = np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1))
        ids = np.where(used, rng.integers(2, VOCAB, (rows, length)), 0)
        for name, array in ((f"{side}s", ids), (f"{side}_segments", used)):
            found[name] = jnp.asarray(array, jnp.int32)
    return found
