"""The synthetic corpus: examples of all five tasks, and their split."""

import dataclasses
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rdkit import Chem

from molt5_multitask.corpus.captions import caption
from molt5_multitask.corpus.fragments import ALKYLS, ARYLS, SCAFFOLDS, SUBSTITUENTS
from molt5_multitask.corpus.molecules import assemble
from molt5_multitask.corpus.procedures import procedure
from molt5_multitask.corpus.reactions import REACTIONS, draw
from molt5_multitask.corpus.vocabulary import train_vocabulary
from molt5_multitask.tasks import TASKS, Example
from molt5_multitask.tokenizer import Tokenizer

Examples = dict[str, list[Example]]


class Corpus(NamedTuple):
    """Examples by task, split."""

    train: Examples
    """Training examples."""
    held_out: Examples
    """Examples whose molecule, product or paragraph occurs in no training example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticCorpus:
    """What the corpus is made of. The same config gives the same corpus on every machine."""

    seed: int = 0
    """Seed of all choices."""
    molecules: int = 4000
    """Captioned molecules: examples of text_to_molecule and molecule_to_text, held out included."""
    reactions: int = 4000
    """Reactions: examples of forward and of retrosynthesis, held out included."""
    procedures: int = 4000
    """Paragraphs: examples of paragraph_to_actions, held out included."""
    held_out: float = 0.1
    """Share of molecules, products and paragraphs that is held out."""
    ring_systems: int = 6
    """Kinds of ring systems of the captioned molecules, at most 10."""
    substituents: int = 12
    """Kinds of substituents on them, at most 27."""
    groups: int = 18
    """Kinds of aromatic and of aliphatic groups of the building blocks, at most 24."""
    reaction_classes: int = 16
    """Reaction classes, at most 16."""
    vocabulary: int = 1024
    """Pieces of the vocabulary."""

    def __post_init__(self) -> None:
        most = {
            "ring_systems": len(SCAFFOLDS),
            "substituents": len(SUBSTITUENTS),
            "groups": min(len(ARYLS), len(ALKYLS)),
            "reaction_classes": len(REACTIONS),
        }
        for name, limit in most.items():
            if not 1 <= (value := getattr(self, name)) <= limit:
                raise ValueError(f"corpus.{name} = {value} must lie between 1 and {limit}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"corpus.held_out = {self.held_out} is a share between 0 and 1")

    def make(self) -> Corpus:
        """Make all examples.

        Raises:
          ValueError: if the pieces do not give as many different examples as are asked for.
        """
        corpus = Corpus({name: [] for name in TASKS}, {name: [] for name in TASKS})

        def add(key: str, *examples: Example) -> None:
            # Held out by content, so that a molecule is on one side in all tasks.
            held_out = zlib.crc32(f"{self.seed} {key}".encode()) < self.held_out * 2**32
            for example in examples:
                corpus[held_out][example.task].append(example)

        for smiles, text in self._take("molecules", self._molecules()).items():
            add(
                smiles,
                Example("molecule_to_text", smiles, text),
                Example("text_to_molecule", text, smiles),
            )
        for product, precursors in self._take("reactions", self._reactions()).items():
            add(
                product,
                Example("forward", precursors, product),
                Example("retrosynthesis", product, precursors),
            )
        for paragraph, actions in self._take("procedures", self._procedures()).items():
            add(paragraph, Example("paragraph_to_actions", paragraph, actions))
        return corpus

    def tokenizer(self, corpus: Corpus) -> Tokenizer:
        """Train the vocabulary on the training examples and the prompts."""
        texts = (
            text
            for name, examples in corpus.train.items()
            for example in examples
            for text in (TASKS[name].prompt + example.input, example.target)
        )
        return train_vocabulary(texts, size=self.vocabulary)

    def _take(self, what: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Collect as many pairs with different first members as the config asks for."""
        wanted = getattr(self, what)
        found: dict[str, str] = {}
        for first, second in pairs:
            found.setdefault(first, second)
            if len(found) == wanted:
                return found
        raise ValueError(
            f"{what}: only {len(found)} different ones of {wanted} were found; ask for fewer, or"
            " allow more ring systems, substituents, groups or reaction classes"
        )

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def _molecules(self) -> Iterator[tuple[str, str]]:
        rng = self._rng("molecules")
        seen = set()
        for _ in range(20 * self.molecules):
            mol = assemble(
                rng, ring_systems=self.ring_systems, substituents=self.substituents, most=3
            )
            if (smiles := Chem.MolToSmiles(mol)) not in seen:
                seen.add(smiles)
                yield smiles, caption(mol)

    def _reactions(self) -> Iterator[tuple[str, str]]:
        for pair in draw(self._rng("reactions"), groups=self.groups, classes=self.reaction_classes):
            yield pair.product, pair.precursors

    def _procedures(self) -> Iterator[tuple[str, str]]:
        rng = self._rng("procedures")
        for _ in range(20 * self.procedures):
            yield procedure(rng)


def copy_baseline(examples: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """Return the exact match of copying the input, by task."""
    return {
        name: sum(e.input == e.target for e in rows) / len(rows) for name, rows in examples.items()
    }
