"""Tiny models whose outputs differ by input and end at different lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.molt5_multitask.t5_toy import VOCAB, params_of, tiny

EOS = 1


@functools.lru_cache
def lively(version):
    """Return config and parameters: blocks outweigh the embedding, and eos is likely."""
    config = tiny(version)
    params = jax.tree.map(np.copy, params_of(config, 1))
    blocks = params["decoder"]["blocks"]
    for linear in (
        blocks["self_attention"]["out"],
        blocks["cross_attention"]["out"],
        blocks["feed_forward"]["wo"],
    ):
        linear["kernel"] *= 8
    table = params["embedding" if config.tied else "lm_head"]["table"]
    table *= 1.5 if config.tied else 0.5
    table[EOS] *= 2
    return config, jax.tree.map(jnp.asarray, params)


def draw_sources(number, *, seed=0, longest=29):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, number)
    return [[*rng.integers(2, VOCAB, n).tolist(), EOS] for n in lengths]
