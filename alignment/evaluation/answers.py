"""Repeated answers to the same triplets: choice distributions and noise ceilings."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from alignment.files import read_arrays
from alignment.judgments import check_triplets
from common.files import PathLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """How often each pair of a triplet was judged the most similar one."""

    triplets: Int[np.ndarray, "n 3"]
    """int32: different triplets, each in ascending order."""
    counts: Int[np.ndarray, "n 3"]
    """Answers for the pairs (0, 1), (0, 2), (1, 2)."""

    @classmethod
    def of(cls, triplets: Int[np.ndarray, "m 3"], *, at_least: int = 1) -> "Answers":
        """Count the answers `triplets`, one a row with the odd one last.

        Args:
          triplets: the answers.
          at_least: triplets with fewer answers are left out.

        Raises:
          ValueError: where no triplet has so many answers.
        """
        ordered = np.sort(triplets, axis=1)
        odd = np.argmax(ordered == triplets[:, 2:], axis=1)
        distinct, which = np.unique(ordered, axis=0, return_inverse=True)
        counts = np.zeros((len(distinct), 3), np.int64)
        np.add.at(counts, (which.ravel(), 2 - odd), 1)  # the pair that leaves out image k is 2 - k
        kept = counts.sum(1) >= at_least
        if not kept.any():
            raise ValueError(
                f"no triplet has {at_least} answers; the most that one has is {counts.sum(1).max()}"
            )
        return cls(triplets=distinct[kept].astype(np.int32), counts=counts[kept])

    @classmethod
    def read(cls, path: PathLike, array: str, objects: int, *, at_least: int) -> "Answers":
        """Read answers from an array (m, 3 or more) of a `.npz` file; further columns are ignored.

        Raises:
          FileNotFoundError, ValueError: naming the file, and the row where one is at fault.
        """
        rows = read_arrays(path, required=(array,))[array]
        triplets = check_triplets(rows[..., :3], objects, source=f"{path}, {array}")
        try:
            return cls.of(triplets, at_least=at_least)
        except ValueError as error:
            raise ValueError(f"{path}, {array}: {error}") from error

    @property
    def probabilities(self) -> Float[np.ndarray, "n 3"]:
        """Share of the answers that each pair got."""
        return self.counts / self.counts.sum(1, keepdims=True)

    def ceilings(self) -> dict[str, float]:
        """Return three noise ceilings of odd-one-out accuracy, which differ by ten points and more.

        `modal_share` is the mean share of the most frequent answer: what the best fixed answer to
        each triplet reaches. `leave_one_out` is how often the majority of all others foretells the
        answer of one; tied answers share the hit. `pairwise_agreement` is how often two people
        agree, `sum_c n_c (n_c - 1) / (n (n - 1))`. The last two are over triplets with two answers
        or more, and NaN where there is none.
        """
        several = self.counts[self.counts.sum(1) > 1]
        n = several.sum(1)
        others = several[:, None, :] - np.eye(3, dtype=int)  # after taking one answer c away
        majority = others == others.max(-1, keepdims=True)
        hit = np.diagonal(majority, axis1=1, axis2=2) / majority.sum(-1)
        found = {"modal_share": float(self.probabilities.max(1).mean())}
        if not len(several):
            return found | {"leave_one_out": np.nan, "pairwise_agreement": np.nan}
        agreement = (several * (several - 1)).sum(1) / (n * (n - 1))
        return found | {
            "leave_one_out": float(((several * hit).sum(1) / n).mean()),
            "pairwise_agreement": float(agreement.mean()),
        }
