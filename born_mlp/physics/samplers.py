"""Distributions of step potentials, and which directions of potential space they excite.

Every sampler is a pure function of its settings and the seed: row i does not depend on how many
rows are drawn.
"""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Float

from born_mlp.physics.scattering import check_finite


class Sampler(Protocol):
    """A distribution of step potentials."""

    @property
    def cells(self) -> int:
        """Number d of cells."""

    def sample(self, seed: int, n: int) -> Float[np.ndarray, "n d"]:
        """Draw n potentials."""


def _uniform(seed: int, n: int, columns: int, low: float, high: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (n, columns))


def _midpoints(cells: int) -> np.ndarray:
    return (np.arange(cells) + 0.5) / cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignedRays:
    """`U = amplitude * s * xi` with `s ~ U(0, 1)` and `xi_i ~ U(-2, 2)`.

    The expansion point `U = 0` lies inside the sampled region.
    """

    cells: int = 16
    """Number d of cells."""
    amplitude: float = 0.5
    """Strength; no cell exceeds twice the amplitude."""

    def sample(self, seed: int, n: int) -> Float[np.ndarray, "n d"]:
        """Draw n potentials."""
        draws = _uniform(seed, n, self.cells + 1, 0, 1)
        return self.amplitude * draws[:, :1] * (4 * draws[:, 1:] - 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttractiveRays:
    """`U = amplitude * s * xi` with `s ~ U(0, 1)` and `xi_i ~ U(0, 2)`.

    The expansion point `U = 0` is a corner of the sampled region, approached along every ray.
    """

    cells: int = 16
    """Number d of cells."""
    amplitude: float = 0.5
    """Strength; no cell exceeds twice the amplitude."""

    def sample(self, seed: int, n: int) -> Float[np.ndarray, "n d"]:
        """Draw n potentials."""
        draws = _uniform(seed, n, self.cells + 1, 0, 1)
        return self.amplitude * draws[:, :1] * (2 * draws[:, 1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes:
    """`U_i ~ U(low, high)`, independent cells of one scale.

    In many cells the scattering length varies little (law of large numbers), and weak potentials
    are hardly ever drawn.
    """

    cells: int = 16
    """Number d of cells."""
    low: float = 0.0
    """Lower end of the box."""
    high: float = 1.0
    """Upper end of the box."""

    def sample(self, seed: int, n: int) -> Float[np.ndarray, "n d"]:
        """Draw n potentials."""
        return _uniform(seed, n, self.cells, self.low, self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSeries:
    """`U(x) = amplitude * s * sum_k c_k cos(pi k x) / (1 + k)`, at the midpoints of the cells.

    `k = 0 .. modes - 1`, `s ~ U(0, 1)`, `c_k ~ U(-2, 2)`. The samples span `modes` directions.
    """

    cells: int = 16
    """Number d of cells."""
    amplitude: float = 0.5
    """Strength of the mean potential."""
    modes: int = 6
    """Number of cosines."""

    def sample(self, seed: int, n: int) -> Float[np.ndarray, "n d"]:
        """Draw n potentials."""
        draws = _uniform(seed, n, self.modes + 1, 0, 1)
        k = np.arange(self.modes)
        basis = np.cos(np.pi * k[:, None] * _midpoints(self.cells)) / (1 + k[:, None])
        return self.amplitude * draws[:, :1] * ((4 * draws[:, 1:] - 2) @ basis)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussians:
    """`U(x) = amplitude * s * exp(-(x - c)^2 / 2 b^2)`, at the midpoints of the cells.

    `s ~ U(0, 2)`, centre `c ~ U(0, 1)`, width b log-uniform between `narrowest` and `widest`.
    """

    cells: int = 16
    """Number d of cells."""
    amplitude: float = 0.5
    """Strength; no cell exceeds twice the amplitude."""
    narrowest: float = 0.1
    """Smallest width, in units of the range."""
    widest: float = 1.0
    """Largest width, in units of the range."""

    def sample(self, seed: int, n: int) -> Float[np.ndarray, "n d"]:
        """Draw n potentials."""
        s, centre, spread = _uniform(seed, n, 3, 0, 1).T[..., None]
        width = self.narrowest * (self.widest / self.narrowest) ** spread
        shape = np.exp(-0.5 * ((_midpoints(self.cells) - centre) / width) ** 2)
        return self.amplitude * 2 * s * shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excitation:
    """Singular values of the directions of a set of potentials, largest first.

    Taken of the potentials scaled to unit length, divided by sqrt(n): what a fit of relative errors
    sees. A polynomial of the degree is determined by the samples only along the directions whose
    singular values stand out of the noise of the fit; the others are null directions.
    """

    singular_values: Float[np.ndarray, "directions"]
    """One for each direction."""
    directions: Float[np.ndarray, "directions directions"]
    """Unit vectors in rows; in packed symmetric space (off-diagonal times sqrt 2) at degree 2."""

    def rank(self, threshold: float = 1e-3) -> int:
        """Number of singular values above `threshold` times the largest."""
        return int(np.sum(self.singular_values > threshold * self.singular_values[0]))

    @property
    def condition_number(self) -> float:
        """Largest over smallest singular value; infinite if a direction is never excited."""
        smallest = self.singular_values[-1]
        return float(self.singular_values[0] / smallest) if smallest > 0 else np.inf


def excitation(potentials: Float[np.ndarray, "n d"], *, degree: int = 1) -> Excitation:
    """Measure which directions, or which quadratic products of cells, a sample excites.

    Args:
      potentials: n potentials in d cells, n at least as large as the dimension looked at.
      degree: 1 for the d cells, 2 for their `d (d + 1) / 2` products, of which the second Born
        term is a linear function.

    Raises:
      ValueError: for fewer samples than directions, values that are not finite, or another degree.
    """
    if degree not in (1, 2):
        raise ValueError(f"degree must be 1 (cells) or 2 (products of cells), got {degree}")
    check_finite(potentials)
    norms = np.linalg.norm(potentials, axis=1, keepdims=True)
    features = potentials[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if degree == 2:
        i, j = np.triu_indices(potentials.shape[1])
        features = features[:, i] * features[:, j] * np.where(i == j, 1.0, np.sqrt(2.0))
    n, dimension = features.shape
    if n < dimension:
        raise ValueError(
            f"{n} nonzero potentials cannot excite {dimension} directions: draw at least as many"
        )
    _, values, directions = np.linalg.svd(features / np.sqrt(n), full_matrices=False)
    return Excitation(singular_values=values, directions=directions)
