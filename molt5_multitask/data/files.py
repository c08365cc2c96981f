"""Examples from files, split into training and held-out rows by the files themselves."""

import dataclasses
import logging

from molt5_multitask.corpus.corpus import Corpus
from molt5_multitask.data.readers import Reader, read

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileCorpus:
    """Training and held-out examples of files, or of data sets of the hub."""

    train: tuple[Reader, ...]
    """Where the training examples come from."""
    held_out: tuple[Reader, ...]
    """Where the held-out examples come from; of other molecules, reactions and paragraphs."""
    max_bad_rows: float = 0.01
    """Share of a file's rows that may be unusable. They are left out, counted and reported."""

    def make(self) -> Corpus:
        """Read all examples, and report the rows that were left out.

        Raises:
          ValueError: for a file that cannot be read or has too many bad rows, with their places.
        """
        sides = []
        for readers in (self.train, self.held_out):
            examples, report = read(readers, max_bad_rows=self.max_bad_rows)
            if report.bad:
                logger.warning("rows left out:\n%s", report)
            sides.append(examples)
        return Corpus(*sides)
