"""Conventions of similarity judgments, held in one place and checked where files are read.

- A triplet is three different objects, 0-based; the first two are the pair judged most similar, in
  either order, and the last is the odd one out.
- Whatever belongs to the pairs of a triplet comes in the order (0, 1), (0, 2), (1, 2). So the pair
  that was chosen comes first.
- Similarities are dot products, and choice probabilities their softmax at temperature 1; accuracy
  and representational similarity take cosines where that is said.
- Features are standardised by ONE mean and ONE standard deviation over the whole matrix, which go
  with the transform and are reused as they are on other images.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from alignment.features import check_matrix
from alignment.files import read_array, read_arrays, write_arrays
from common.files import PathLike

PAIRS = ((0, 1), (0, 2), (1, 2))
"""Columns of the three pairs of a triplet."""
BLOCK = 256
"""Triplets whose rows are looked up together."""
RAW_COLUMNS = ("image1", "image2", "image3", "choice")
"""Header of a raw release: 1-based objects, and the position (1, 2, 3) of the odd one."""

Triplets = Int[np.ndarray, "_ 3"]
"""As many as there are: several of a function's need not be equally many."""
AnyArray = Array | np.ndarray
"""What functions take that are traced, and called on the host as well."""


# --- Triplets ---------------------------------------------------------------------------------


def read_triplets(path: PathLike, objects: int) -> Triplets:
    """Read triplets from `.npz` (array `triplets`), `.npy`, or text of three columns.

    Text with the header `image1 image2 image3 choice ...` is taken for a raw release.

    Args:
      path: the file.
      objects: number of objects that the triplets refer to.

    Returns:
      int32 (n, 3), 0-based, the odd one last.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the file, and the row where one is at fault.
    """
    path = pathlib.Path(path)
    if path.suffix == ".npz":
        found = read_arrays(path, required=("triplets",))["triplets"]
    elif path.suffix == ".npy":
        found = read_array(path)
    elif not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    else:
        found = _read_text(path)
    return check_triplets(found, objects, source=str(path))


def _read_text(path: pathlib.Path) -> np.ndarray:
    with path.open() as file:
        header = file.readline().replace(",", " ").replace(";", " ").split()
        file.seek(0)
        raw = bool(header) and not header[0].lstrip("-").isdigit()
        if raw:
            file.readline()
            if missing := [name for name in RAW_COLUMNS if name not in header]:
                raise ValueError(f"{path}, line 1: no column {missing[0]!r}; columns are {header}")
        lines = (line.replace(",", " ").replace(";", " ") for line in file)
        columns = [header.index(name) for name in RAW_COLUMNS] if raw else None
        try:
            found = np.loadtxt(lines, dtype=np.int64, usecols=columns, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{path} is no table of integers: {error}") from error
    if not raw:
        return found
    objects, odd = found[:, :3] - 1, found[:, 3] - 1
    if bad := np.flatnonzero((odd < 0) | (odd > 2)).tolist():
        raise ValueError(f"{path}, line {bad[0] + 2}: `choice` must be 1, 2 or 3")
    return np.take_along_axis(objects, (odd[:, None] + np.array([1, 2, 3])) % 3, axis=1)


def check_triplets(triplets: np.ndarray, objects: int, *, source: str = "triplets") -> Triplets:
    """Return triplets as int32 (n, 3), or raise ValueError with the first row at fault."""
    if triplets.ndim != 2 or triplets.shape[1] != 3 or triplets.dtype.kind not in "iu":
        raise ValueError(
            f"{source}: triplets must be integers of shape (n, 3), got {triplets.dtype} of shape "
            f"{triplets.shape}"
        )
    if not len(triplets):
        raise ValueError(f"{source}: no triplets")
    outside = np.flatnonzero(((triplets < 0) | (triplets >= objects)).any(1))
    if outside.size:
        hint = ""
        if triplets.min() == 1 and triplets.max() == objects:
            hint = "; the smallest index is 1: the file counts from 1, subtract 1"
        raise ValueError(
            f"{source}: {outside.size} rows refer to objects beyond 0 to {objects - 1}, the first "
            f"is row {outside[0]} (0-based): {triplets[outside[0]].tolist()}{hint}"
        )
    a, b, c = triplets.T
    repeated = np.flatnonzero((a == b) | (a == c) | (b == c))
    if repeated.size:
        raise ValueError(
            f"{source}: {repeated.size} rows repeat an object, the first is row {repeated[0]} "
            f"(0-based): {triplets[repeated[0]].tolist()}"
        )
    return triplets.astype(np.int32)


def unordered(triplets: Triplets) -> Int[np.ndarray, "n"]:
    """Return one int64 for each triplet that is the same whatever the order of its objects."""
    ordered = np.sort(triplets, axis=1).astype(np.int64)
    return (ordered[:, 0] << 42) | (ordered[:, 1] << 21) | ordered[:, 2]


def leave_out(triplets: Triplets, others: Triplets) -> Triplets:
    """Return the triplets whose three objects do not occur together in `others`."""
    return triplets[~np.isin(unordered(triplets), unordered(others))]


# --- Objects ----------------------------------------------------------------------------------


def read_names(path: PathLike) -> np.ndarray:
    """Read the names of objects, one a line: str (n,)."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    return np.array(pathlib.Path(path).read_text().splitlines())


def check_names(
    found: Sequence[str] | np.ndarray, expected: Sequence[str] | np.ndarray, *, source: str
) -> None:
    """Raise ValueError unless both hold the same objects in the same order.

    Files of one set of objects circulate in several orders; all load, and the damage is silent.
    """
    if len(found) != len(expected):
        raise ValueError(f"{source} has {len(found)} objects, expected are {len(expected)}")
    wrong = np.flatnonzero(np.asarray(found) != np.asarray(expected))
    if wrong.size:
        row = wrong[0]
        same = "the same objects in another order" if {*found} == {*expected} else "others"
        raise ValueError(
            f"{source} holds {same}: {wrong.size} rows differ, the first is row {row} (0-based), "
            f"{str(found[row])!r} for {str(expected[row])!r}"
        )


def object_folds(objects: int, folds: int = 3, *, seed: int = 42) -> Bool[np.ndarray, "folds n"]:
    """Split objects at random into `folds` parts, nearly equal; True where one is held out."""
    if not 2 <= folds <= objects:
        raise ValueError(f"{objects} objects cannot be split into {folds} folds")
    order = np.random.default_rng(seed).permutation(objects)
    held_out = np.zeros((folds, objects), bool)
    for mask, part in zip(held_out, np.array_split(order, folds), strict=True):
        mask[part] = True
    return held_out


def split_by_object(
    triplets: Triplets, held_out: Bool[np.ndarray, "n"]
) -> tuple[Triplets, Triplets]:
    """Return the triplets of no held-out object, and those of held-out objects alone.

    Mixed ones are in neither: a triplet that shares an object with training is no test of it.
    """
    count = held_out[triplets].sum(1)
    return triplets[count == 0], triplets[count == 3]


# --- Choices ----------------------------------------------------------------------------------


def pair_products(
    first: Float[AnyArray, "*batch p"],
    second: Float[AnyArray, "*batch p"],
    third: Float[AnyArray, "*batch p"],
) -> Float[Array, "*batch 3"]:
    """Return the dot products of the pairs of three objects: [s01, s02, s12]."""
    x = (first, second, third)
    return jnp.stack([jnp.sum(x[a] * x[b], -1) for a, b in PAIRS], -1)


@jax.jit
def pair_logits(
    features: Float[AnyArray, "n *members p"], triplets: Int[AnyArray, "m 3"]
) -> Float[Array, "m *members 3"]:
    """Return the dot products of each triplet's pairs: [s01, s02, s12].

    Their softmax is the probability of each pair to be chosen, at temperature 1:
    `p({a,b} | {i,j,k}) = exp(S_ab) / (exp(S_ij) + exp(S_ik) + exp(S_jk))`.

    Features of several members lie side by side in the rows of an object, so that one look-up
    serves all: a `vmap` over members would be several times slower.
    """
    return _pair_logits(jnp.asarray(features), jnp.asarray(triplets))


# A few hundred triplets at a time, whose rows stay in the cache, and which the backward pass looks
# up anew: storing the rows of all triplets takes several times longer, and gigabytes. The backward
# pass is a loop of its own because the derived one fills a table of zeros for each block.
@jax.custom_vjp
def _pair_logits(features: Array, triplets: Array) -> Array:
    def logits(block: Array) -> Array:
        return pair_products(*(features[column] for column in block.T))

    whole = len(triplets) // BLOCK * BLOCK
    blocks = jax.lax.map(logits, triplets[:whole].reshape(-1, BLOCK, 3))
    parts = [blocks.reshape(whole, *blocks.shape[2:]), logits(triplets[whole:])]
    return jnp.concatenate(parts)


def _pair_logits_backward(
    residuals: tuple[Array, Array], gradient: Float[Array, "m *members 3"]
) -> tuple[Array, None]:
    features, triplets = residuals

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        columns, gradient = block[0].T, block[1]
        rows = [features[column] for column in columns]
        parts = jax.vjp(pair_products, *rows)[1](gradient)
        for column, part in zip(columns, parts, strict=True):
            total = total.at[column].add(part)
        return total, None

    whole = len(triplets) // BLOCK * BLOCK
    blocks = (
        triplets[:whole].reshape(-1, BLOCK, 3),
        gradient[:whole].reshape(-1, BLOCK, *gradient.shape[1:]),
    )
    total, _ = jax.lax.scan(add, jnp.zeros_like(features), blocks)
    return add(total, (triplets[whole:], gradient[whole:]))[0], None


_pair_logits.defvjp(lambda f, t: (_pair_logits(f, t), (f, t)), _pair_logits_backward)


def unit_rows(features: Float[AnyArray, "n p"]) -> Float[Array, "n p"]:
    """Bring rows to length one, so that dot products are cosines; rows of zeros stay so."""
    squares = jnp.sum(features**2, -1, keepdims=True)
    # The root of a number that is never zero: the gradient of a row of zeros is finite.
    return jnp.divide(features, jnp.sqrt(jnp.where(squares > 0, squares, 1)))


def correct(logits: Float[AnyArray, "*batch 3"]) -> Bool[Array, "*batch"]:
    """Return where the chosen pair is the most similar one. A tie for the maximum is wrong."""
    return jnp.greater(logits[..., 0], jnp.max(logits[..., 1:], -1))


# --- Transforms of features -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardisation:
    """`x -> (x - mean) / std` with one mean and one standard deviation for all features."""

    mean: float
    """Mean over the whole matrix."""
    std: float
    """Standard deviation over the whole matrix, of the population (ddof 0)."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"mean {self.mean} and std {self.std} must be finite, and std positive"
            )

    @classmethod
    def of(cls, features: Float[np.ndarray, "n p"]) -> Self:
        """Return the standardisation by the statistics of `features`."""
        features = np.asarray(features, np.float64)
        return cls(mean=float(features.mean()), std=float(features.std()))

    def __call__(self, features: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n p"]:
        """Standardise."""
        return (features - self.mean) / self.std


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """The affine map of a teacher, `x -> ((x - mean) / std) @ weights + bias`.

    The file, `.npz`, is that of the released gLocal transforms.
    """

    weights: Float[np.ndarray, "p q"]
    """float32."""
    bias: Float[np.ndarray, "q"]
    """float32."""
    standardisation: Standardisation
    """Of the features that the map was fitted to; reused unchanged on all others."""

    def __post_init__(self) -> None:
        check_matrix(self.weights, what="weights")
        q = self.weights.shape[1]
        if self.bias.shape != (q,):
            raise ValueError(f"weights have {q} columns, but bias has shape {self.bias.shape}")
        if not np.isfinite(self.bias).all():
            raise ValueError("bias holds NaN or infinity")

    def __call__(self, features: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n q"]:
        """Transform features.

        Raises:
          ValueError: for features of another dimension.
        """
        p = self.weights.shape[0]
        if features.shape[-1] != p:
            raise ValueError(
                f"the transform takes features of dimension {p}, these have {features.shape[-1]}: "
                "it belongs to another model"
            )
        return self.standardisation(features) @ self.weights + self.bias

    @classmethod
    def read(cls, path: PathLike) -> Self:
        """Read a transform; without `bias` it is 0.

        Raises:
          FileNotFoundError, ValueError: naming the file, if it is missing or not as it should be.
        """
        arrays = read_arrays(path, required=("weights", "mean", "std"))
        try:
            weights = arrays["weights"].astype(np.float32)
            return cls(
                weights=weights,
                bias=arrays.get("bias", np.zeros(weights.shape[-1])).astype(np.float32),
                standardisation=Standardisation(
                    mean=float(arrays["mean"]), std=float(arrays["std"])
                ),
            )
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: PathLike) -> None:
        """Write a transform."""
        scalars = dataclasses.asdict(self.standardisation)
        write_arrays(path, {"weights": self.weights, "bias": self.bias, **scalars})
