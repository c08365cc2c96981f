"""The classes of the synthetic world, its image sets, and triplets whose odd one is known.

The hierarchy is superordinate (animal) > basic (dog) > subordinate (a dog in one coat). Every coat
is worn by one class in each superordinate at most, so that likeness of coats, which the pixels show
first, joins what is of one basic class, but says nothing of the superordinate.
"""

import dataclasses
import zlib
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from alignment.judgments import Triplets
from alignment.world.drawing import FAMILIES, PATTERNS, THINGS, draw
from common.choices import check_choice

Level = Literal["superordinate", "basic", "subordinate"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What there is to see, as a function of its seed."""

    size: int = 32
    """Side of an image, pixels."""
    superordinates: int = 4
    """Superordinate classes, of three basic classes each."""
    subordinates: int = 4
    """Subordinate classes, that is coats, of each basic class."""
    noise: float = 0.04
    """Standard deviation of the noise of a pixel, of a range of 1."""
    seed: int = 0
    """Seed of all images."""

    def __post_init__(self) -> None:
        for field, most in (
            ("superordinates", len(THINGS)),
            ("subordinates", len(PATTERNS)),
        ):
            if not 1 <= getattr(self, field) <= most:
                raise ValueError(f"{field} = {getattr(self, field)} must be from 1 to {most}")
        if self.size < 8:
            raise ValueError(f"size = {self.size} pixels shows nothing; take 8 or more")

    @property
    def basic_names(self) -> list[tuple[str, str]]:
        """Superordinate and name of each basic class."""
        kinds = list(THINGS)[: self.superordinates]
        return [(kind, name) for kind in kinds for name in THINGS[kind]]

    @property
    def classes(self) -> int:
        """Number of subordinate classes."""
        return len(self.basic_names) * self.subordinates

    @property
    def label_names(self) -> list[str]:
        """Name of each subordinate class."""
        return [f"{name}-{i}" for _, name in self.basic_names for i in range(self.subordinates)]

    def level_of(self, labels: Int[np.ndarray, "n"], level: Level) -> Int[np.ndarray, "n"]:
        """Return the class at a level of images with these subordinate labels."""
        check_choice("level", level, LEVELS)
        basic = np.asarray(labels) // self.subordinates
        return {"subordinate": np.asarray(labels), "basic": basic, "superordinate": basic // 3}[
            level
        ]

    def coat(self, label: int) -> int:
        """Return the coat of a subordinate class."""
        basic, subordinate = divmod(label, self.subordinates)
        return (basic % FAMILIES) * len(PATTERNS) + subordinate

    def images(self, split: str, per_class: int) -> dict[str, Any]:
        """Draw a set of images, another one for each `split`, classes in turn.

        Returns:
          The arrays of an image file: `images` uint8 (n, s, s, 3), `names`, `labels` (subordinate
          class), `label_names`, `coarse` (superordinate class), `coarse_names`.
        """
        stream = zlib.crc32(split.encode())
        labels = np.tile(np.arange(self.classes), per_class)
        images = []
        for row, label in enumerate(labels.tolist()):
            kind, name = self.basic_names[label // self.subordinates]
            rng = np.random.default_rng((self.seed, stream, row))
            images.append(
                draw(
                    THINGS[kind][name],
                    coat=self.coat(label),
                    size=self.size,
                    noise=self.noise,
                    rng=rng,
                )
            )
        return {
            "images": np.stack(images),
            "names": np.array([f"{split}/{row:06d}" for row in range(len(labels))]),
            "labels": labels.astype(np.int32),
            "label_names": np.array(self.label_names),
            "coarse": self.level_of(labels, "superordinate").astype(np.int32),
            "coarse_names": np.array(list(THINGS)[: self.superordinates]),
        }

    def level_triplets(
        self, labels: Int[np.ndarray, "n"], level: Level, count: int, *, seed: int
    ) -> Triplets:
        """Draw triplets of images whose odd one is known, at one level of the hierarchy.

        The similar pair is of one class at that level and differs below it; the odd one is of
        another class at that level, and of the same above it:

            superordinate  dog, fish | car                 coarse
            basic          dog 0, dog 3 | fish             fine
            subordinate    two images of dog 0 | dog 3     class border

        Raises:
          ValueError: if the images hold no such triplet.
        """
        own = [self.level_of(labels, l) for l in LEVELS]
        depth = LEVELS.index(level)
        rng = np.random.default_rng((seed, depth))
        found, tries = np.empty((0, 3), np.int64), 0
        while len(found) < count:
            rows = rng.integers(0, len(labels), (200_000, 3))
            fits = rows[:, 0] != rows[:, 1]
            for l, classes in enumerate(own):
                a, b, odd = classes[rows].T
                fits &= (a == b) if l <= depth else (a != b)
                if l <= depth:
                    fits &= (odd == a) if l < depth else (odd != a)
            found = np.concatenate([found, rows[fits]])
            tries += 1
            if tries == 50 and not len(found):
                raise ValueError(f"these {len(labels)} images hold no triplet of level {level}")
        return found[:count].astype(np.int32)
