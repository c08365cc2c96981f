"""The posterior of an embedding, and the choices that it expects."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Self

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control, norm

from alignment.features import check_matrix
from alignment.files import read_array, read_arrays, write_arrays
from alignment.judgments import Triplets, check_names, pair_logits
from common.files import PathLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """Independent Gaussians for the coordinates of each object; negative values count as zero."""

    mean: Float[np.ndarray, "n d"]
    """float32."""
    scale: Float[np.ndarray, "n d"]
    """Standard deviations, float32."""
    names: np.ndarray
    """str (n,): the objects."""

    def __post_init__(self) -> None:
        check_matrix(self.mean, what="mean")
        check_matrix(self.scale, what="scale")
        if self.scale.shape != self.mean.shape or self.names.shape != self.mean.shape[:1]:
            raise ValueError(
                f"mean {self.mean.shape}, scale {self.scale.shape} and names {self.names.shape} "
                "do not fit each other"
            )
        if (self.scale < 0).any():
            raise ValueError("scale holds negative values")

    @classmethod
    def read(cls, path: PathLike) -> Self:
        """Read an embedding file.

        Raises:
          FileNotFoundError, ValueError: naming the file, if it is missing or not as it should be.
        """
        arrays = read_arrays(path, required=("mean", "scale", "names"))
        try:
            return cls(**{name: arrays[name] for name in ("mean", "scale", "names")})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: PathLike) -> None:
        """Write an embedding file."""
        write_arrays(path, {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def pruned(self, *, alpha: float = 0.05, objects: int = 5) -> Self:
        """Return the dimensions that matter, those with the largest sum over objects first.

        A coordinate is taken to be positive where the posterior probability of the contrary,
        `Phi(-mean / scale)`, passes Benjamini and Hochberg's control of the false discovery rate
        at `alpha` within its dimension. A dimension stays with at least `objects` such coordinates.
        """
        keep = np.flatnonzero(dimensions_kept(self.mean, self.scale, alpha=alpha, objects=objects))
        if not keep.size:
            raise ValueError(
                "no dimension is left after pruning: fit for more steps or to more triplets, or "
                "give the prior a narrower spike"
            )
        order = keep[np.argsort(-np.maximum(self.mean[:, keep], 0).sum(0))]
        return dataclasses.replace(self, mean=self.mean[:, order], scale=self.scale[:, order])

    @property
    def values(self) -> Float[np.ndarray, "n d"]:
        """The embedding as a table of numbers: `max(mean, 0)`."""
        return np.maximum(self.mean, 0)


def read_values(path: PathLike, names: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Read the numbers of an embedding of given objects: an embedding file, or a bare `.npy`.

    Raises:
      FileNotFoundError, ValueError: naming the file, if it is missing or not of these objects.
    """
    if pathlib.Path(path).suffix == ".npz":
        embedding = Embedding.read(path)
        check_names(embedding.names, names, source=str(path))
        return embedding.values
    values = read_array(path)
    check_matrix(values, what=str(path))
    if len(values) != len(names):
        raise ValueError(f"{path} has {len(values)} rows, there are {len(names)} objects")
    return values


def dimensions_kept(
    mean: Float[np.ndarray, "n d"],
    scale: Float[np.ndarray, "n d"],
    *,
    alpha: float = 0.05,
    objects: int = 5,
) -> np.ndarray:
    """Return bool (d,): which dimensions `Embedding.pruned` keeps."""
    contrary = norm.sf(np.asarray(mean, np.float64) / np.maximum(scale, 1e-30))
    return (false_discovery_control(contrary, axis=0) <= alpha).sum(0) >= objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftChoices:
    """How likely each pair of a triplet is to be chosen, and how sure that is."""

    triplets: Triplets
    """int32 (n, 3)."""
    probabilities: Float[np.ndarray, "n 3"]
    """Mean over the posterior, pairs in the order (0, 1), (0, 2), (1, 2)."""
    deviation: Float[np.ndarray, "n 3"]
    """Standard deviation over the posterior."""

    def write(self, path: PathLike) -> None:
        """Write a file of soft choices."""
        write_arrays(path, {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def soft_choices(
    embeddings: Sequence[Embedding],
    triplets: Int[np.ndarray, "n 3"],
    *,
    samples: int = 50,
    seed: int = 0,
) -> SoftChoices:
    """Average the choice probabilities over posterior samples of one or more embeddings.

        q = 1/M sum_m softmax(y_i.y_j, y_i.y_k, y_j.y_k),   y = relu(mean + scale * eps_m)

    Args:
      embeddings: posteriors, of different seeds say; each gets `samples` samples.
      triplets: the triplets.
      samples: number of samples.
      seed: seed of the samples.
    """
    total, squares = np.zeros((2, len(triplets), 3))
    keys = jax.random.split(jax.random.key(seed), (len(embeddings), samples))
    for embedding, row in zip(embeddings, keys, strict=True):
        for key in row:
            sampled = _sampled_choices(embedding.mean, embedding.scale, triplets, key)
            total += sampled
            squares += np.square(sampled, dtype=np.float64)
    count = len(embeddings) * samples
    mean = total / count
    return SoftChoices(
        triplets=np.asarray(triplets, np.int32),
        probabilities=mean.astype(np.float32),
        deviation=np.sqrt(np.maximum(squares / count - mean**2, 0)).astype(np.float32),
    )


@jax.jit
def _sampled_choices(
    mean: Float[Array, "n d"], scale: Float[Array, "n d"], triplets: Int[Array, "m 3"], key: Array
) -> Float[Array, "m 3"]:
    y = jax.nn.relu(mean + scale * jax.random.normal(key, mean.shape))
    return jax.nn.softmax(pair_logits(y, triplets), -1)
