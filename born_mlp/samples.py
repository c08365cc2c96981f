"""Training samples of a scalar function: points around the origin, and values there."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from born_mlp import packing
from born_mlp.physics.born import born_tensor, born_terms
from born_mlp.physics.samplers import (
    AttractiveRays,
    Boxes,
    CosineSeries,
    Gaussians,
    SignedRays,
)
from born_mlp.physics.scattering import labels
from born_mlp.physics.shallowness import require_shallow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Values of a scalar function at points around the expansion point, which is the origin."""

    x: Float[np.ndarray, "n d"]
    """Points, float64."""
    y: Float[np.ndarray, "n"]
    """Values, float64."""

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"samples are x of shape (n, d) and y of shape (n,); got {self.x.shape} and "
                f"{self.y.shape}"
            )
        for name, array in (("x", self.x), ("y", self.y)):
            if array.dtype != np.float64:
                raise ValueError(f"samples need float64 (see `Samples`); {name} is {array.dtype}")
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
            if bad.size:
                raise ValueError(
                    f"{name} is not finite in {bad.size} row(s), first in row {bad[0]}"
                )


@dataclasses.dataclass(frozen=True)
class GivenSamples:
    """Samples that a user already has."""

    samples: Samples
    """The samples."""

    @property
    def features(self) -> int:
        """Dimension d of the points."""
        return self.samples.x.shape[1]

    @functools.cached_property
    def paired(self) -> bool:
        """Whether the second half of the points mirrors the first."""
        half, odd = divmod(len(self.samples.x), 2)
        return not odd and bool(np.array_equal(self.samples.x[:half], -self.samples.x[half:]))

    def draw(self) -> Samples:
        """Return the samples."""
        return self.samples


def contract(tensor: Float[np.ndarray, "..."], x: Float[np.ndarray, "n d"]) -> np.ndarray:
    """Evaluate the homogeneous polynomial `T[x^m]` of a dense symmetric tensor at many points.

    Args:
      tensor: shape `(d,) * m`; a scalar for m = 0.
      x: points, shape `(n, d)`.

    Returns:
      Values of shape `(n,)`.
    """
    if tensor.ndim == 0:
        return np.full(len(x), tensor)
    d = x.shape[1]
    value = x @ tensor.reshape(d, -1)
    for _ in range(tensor.ndim - 1):
        value = np.einsum("ni,nij->nj", x, value.reshape(len(x), d, -1))
    return value[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScatteringSamples:
    """S-wave scattering lengths of shallow step potentials."""

    sampler: SignedRays | AttractiveRays | Boxes | CosineSeries | Gaussians = SignedRays()
    """Distribution of the potentials."""
    count: int = 65_536
    """Training potentials, mirror images included."""
    seed: int = 0
    """Seed of the potentials."""
    mirrored: bool = True
    """Add the mirror image -U of each potential, so that even and odd orders separate. It needs
    a sampler of both signs."""
    shallowness_limit: float = 1.0
    """Largest lambda that the data set promises; 1 is the first pole, where the series diverges."""

    def __post_init__(self) -> None:
        if self.mirrored and not isinstance(self.sampler, SignedRays | CosineSeries):
            raise ValueError(
                f"{type(self.sampler).__name__} draws attractive potentials, whose mirror images "
                "are repulsive: set mirrored to False"
            )
        if self.count < 2 or (self.mirrored and self.count % 2):
            raise ValueError(f"count must be at least 2, and even if mirrored; got {self.count}")

    @property
    def features(self) -> int:
        """Number of cells d."""
        return self.sampler.cells

    @property
    def paired(self) -> bool:
        """Whether the second half of the points mirrors the first."""
        return self.mirrored

    def draw(self) -> Samples:
        """Draw and label the training potentials.

        Raises:
          ValueError: for a potential beyond `shallowness_limit`.
        """
        return self._label(self.seed, self.count, mirrored=self.mirrored)

    def draw_test(self, count: int) -> Samples:
        """Draw and label potentials of the same distribution that are not for training."""
        return self._label(self.seed + 1_000_003, count, mirrored=False)

    def _label(self, seed: int, count: int, *, mirrored: bool) -> Samples:
        x = self.sampler.sample(seed, count // 2 if mirrored else count)
        if mirrored:
            x = np.concatenate([x, -x])
        require_shallow(x, limit=self.shallowness_limit)
        return Samples(x=x, y=labels(x))


SampleSource = ScatteringSamples | GivenSamples


@functools.lru_cache(maxsize=8)
def exact_tensor(cells: int, order: int) -> Float[np.ndarray, "..."]:
    """Return the dense exact Born tensor `T_order`: for judging results, never for training."""
    return born_tensor(cells, order)[packing.dense_positions(cells, order)]


def exact_approximation(x: Float[np.ndarray, "n d"], order: int) -> Float[np.ndarray, "n"]:
    """Return the exact Born approximation through `order` of the scattering lengths."""
    return np.asarray(born_terms(jnp.asarray(x), order)).sum(-1)
