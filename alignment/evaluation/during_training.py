"""Human alignment as an evaluator during training."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from common.evaluate import HeldOutData, check, map_rows

Scores = Callable[[np.ndarray], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """Embeds a set of images with the model in training, and scores the features.

    The scores are any of the measures in this package, as a function of the features:
    `lambda features: odd_one_out(features, triplets)`.
    """

    name: str
    """Prefix of the reported numbers."""
    every: int
    """Cadence in steps."""
    images: HeldOutData
    """The images, in the order that the scores refer to."""
    embed: Callable[[Any, Mapping[str, Array]], Float[Array, "batch p"]]
    """Features of a batch of images, from parameters and batch."""
    scores: Scores
    """Named numbers from float32 (n, p), the features of all images."""

    @functools.cached_property
    def _embed(self) -> Callable[..., Array]:
        return jax.jit(self.embed)

    def check(self, params: Any, mesh: Mesh) -> None:
        """Trace the features; nothing is read."""
        check(self._embed, params, self.images, mesh)

    def __call__(self, params: Any, mesh: Mesh) -> Mapping[str, float]:
        """Embed and score."""
        features = map_rows(self._embed, params, self.images, mesh)
        return self.scores(features.astype(np.float32))
