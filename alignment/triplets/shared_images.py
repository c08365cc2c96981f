"""Triplets that share images, so that a training step embeds each of them once.

Triplets drawn from a large set of images hardly ever share one: 512 of them show 1,536 images. Here
they come in groups: a pool of images is drawn first, a few of each of several clusters, then many
triplets within it. The sampling of each triplet is unchanged; but those of a group depend on each
other, so that the gradient of a step is noisier than its number of triplets says.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from alignment.triplets.sampling import Sampler, SamplingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """How many images the triplets of a group share."""

    triplets: int = 512
    """Triplets of a group."""
    groups: int = 32
    """Clusters or classes that the images of a group come from."""
    images_each: int = 4
    """Images of each of them."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} = {getattr(self, field.name)} must be positive")

    @property
    def images(self) -> int:
        """Images of a group."""
        return self.groups * self.images_each


class PooledSampler:
    """Draws triplets in groups that share a pool of images; used as `sampling.Sampler` is.

    A block is a function of the seed and its index.
    """

    def __init__(self, groups: Int[np.ndarray, "n"], config: SamplingConfig, pool: Pool) -> None:
        """Look at the groups' sizes.

        Args:
          groups: cluster or class of each image; negative is none, and such images are not drawn.
          config: the rule, the seed; clusters are drawn uniformly or by size.
          pool: the size of the pools.

        Raises:
          ValueError: where fewer groups than a pool needs have enough images.
        """
        self._config, self._pool = config, pool
        order = np.argsort(groups, kind="stable")[np.count_nonzero(groups < 0) :]
        names, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
        enough = sizes >= pool.images_each
        if enough.sum() < pool.groups:
            raise ValueError(
                f"a pool takes {pool.images_each} images of each of {pool.groups} groups, but only "
                f"{enough.sum()} of {len(names)} groups are large enough"
            )
        self.skipped_groups = int((~enough).sum())
        self._order, self._starts, self._sizes = order, starts[enough], sizes[enough]

    def block(self, index: int, count: int) -> Int[np.ndarray, "count 3"]:
        """Draw block `index` of `count` triplets, a multiple of the pool's: int32."""
        pool = self._pool
        if count % pool.triplets:
            raise ValueError(f"{count} triplets are no multiple of a pool's {pool.triplets}")
        return np.concatenate([self._group(index, i) for i in range(count // pool.triplets)])

    def _group(self, *index: int) -> Int[np.ndarray, "t 3"]:
        pool, seed = self._pool, self._config.seed
        rng = np.random.default_rng((seed, *index))
        weights = self._sizes / self._sizes.sum() if self._config.weighting == "size" else None
        chosen = rng.choice(len(self._sizes), pool.groups, replace=False, p=weights)
        places = [rng.choice(self._sizes[g], pool.images_each, replace=False) for g in chosen]
        images = self._order[self._starts[chosen][:, None] + np.stack(places)].ravel()
        within = np.repeat(np.arange(pool.groups), pool.images_each)
        drawn = Sampler(within, self._config.sampling, seed=int(rng.integers(2**31)))
        return images[drawn.block(0, pool.triplets)].astype(np.int32)
