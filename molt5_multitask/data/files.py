"""Examples from files, split into training and held-out rows by the files themselves."""

import dataclasses
import logging

from molt5_multitask.corpus.corpus import Corpus
from molt5_multitask.data.readers import Reader, read
from molt5_multitask.tasks import TASKS, Example

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

        Training examples with the input, or the output molecules, of a held-out example of the same
        task are dropped and counted, or the held-out scores would partly be of rows seen before.

        Raises:
          ValueError: for a file that cannot be read or has too many bad rows, with their places.
        """
        sides = []
        for readers in (self.train, self.held_out):
            examples, report = read(readers, max_bad_rows=self.max_bad_rows)
            if report.bad:
                logger.warning("rows left out:\n%s", report)
            sides.append(examples)
        train, held_out = sides
        return Corpus(
            {name: _unseen(rows, held_out.get(name, [])) for name, rows in train.items()}, held_out
        )


def _unseen(train: list[Example], held_out: list[Example]) -> list[Example]:
    """Return the training examples of a task that a held-out one does not give away."""

    def marks(example: Example) -> set[str]:
        molecules = TASKS[example.task].output_kind in ("smiles", "reaction")
        return {f"in {example.input}", *([f"out {example.target}"] if molecules else [])}

    seen = set().union(*map(marks, held_out))
    kept = [example for example in train if seen.isdisjoint(marks(example))]
    if dropped := len(train) - len(kept):
        logger.warning(
            "%s: %s training examples are among the held-out ones, and dropped",
            train[0].task,
            f"{dropped:,}",
        )
    return kept
