"""The pairs of images that an aligned model and its control judged most differently."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import mannwhitneyu

from alignment.features import Features
from alignment.files import read_arrays
from common.files import PathLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationPairs:
    """Pairs of images; half of them the AligNet model finds more similar, half its control."""

    pairs: Int[np.ndarray, "n 2"]
    """Rows of the features."""
    alignet_favoured: Bool[np.ndarray, "n"]
    """Where the AligNet model finds the pair more similar than its control does."""

    @classmethod
    def read(cls, path: PathLike, features: Features) -> "ValidationPairs":
        """Read `filename`, `pairs` (rows of it) and `alignet_favoured`; images go by their names.

        Raises:
          FileNotFoundError, ValueError: naming the file, and what is at fault.
        """
        arrays = read_arrays(path, required=("filename", "pairs", "alignet_favoured"))
        rows = {name: row for row, name in enumerate(features.names.tolist())}
        if missing := [n for n in arrays["filename"].tolist() if n not in rows]:
            raise ValueError(
                f"{path}: {len(missing)} of its images are not among the features, such as "
                f"{missing[0]!r}"
            )
        order = np.array([rows[name] for name in arrays["filename"].tolist()])
        return cls(pairs=order[arrays["pairs"]], alignet_favoured=arrays["alignet_favoured"])


def pair_scores(features: Float[np.ndarray, "n p"], pairs: ValidationPairs) -> dict[str, float]:
    """Compare the cosine similarities of the two halves, z-scored over all pairs.

    People rate the pairs that AligNet favours as more similar (3.93 against 3.14 of 5).

    Returns:
      `z_alignet_favoured` and `z_control_favoured`, the halves' means, and `auc`, how often a pair
      of the first half is more similar than one of the second: above 0.5 agrees with people.
    """
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = (x[pairs.pairs[:, 0]] * x[pairs.pairs[:, 1]]).sum(1)
    z = (similarity - similarity.mean()) / similarity.std()
    favoured, others = z[pairs.alignet_favoured], z[~pairs.alignet_favoured]
    wins = mannwhitneyu(favoured, others).statistic
    return {
        "z_alignet_favoured": float(favoured.mean()),
        "z_control_favoured": float(others.mean()),
        "auc": float(wins / (len(favoured) * len(others))),
    }
