"""Make the synthetic world: its images, and what its observers say of them.

    python -m alignment.world --out world

writes `train.npz` and `test.npz` (images with classes), `objects.npz` and `objects.txt` (the images
that observers judge, as THINGS has one for each concept, and their names), `triplets.npz` (their
odd-one-out choices), `levels.csv` (answers on `test` at three levels of abstraction, see
`alignment.evaluation.levels`) and `hierarchy.txt` (`parent child` lines).
"""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.files import write_arrays
from alignment.judgments import Triplets
from alignment.world.observers import Observers
from alignment.world.world import Level, World
from common import cli

LEVEL_NAMES: Mapping[Level, str] = {
    "superordinate": "coarse",
    "basic": "fine",
    "subordinate": "class_border",
}
"""The levels as those of the Levels judgments: the class that the similar pair shares at least."""
ROOT = "thing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make the synthetic world: its images, and what its observers say of them."""

    out: pathlib.Path
    """Folder to write to."""
    world: World = World()
    """What there is to see."""
    observers: Observers = Observers()
    """Who judges."""
    train: int = 100
    """Training images of each subordinate class."""
    test: int = 20
    """Test images of each."""
    objects: int = 6
    """Images of each that observers judge."""
    judgments: int = 60_000
    """Odd-one-out choices between objects."""
    level_triplets: int = 500
    """Triplets of test images on each level."""
    level_answers: int = 4
    """Answers to each of them."""


def run(arguments: Arguments) -> pathlib.Path:
    """Write the files, and return their folder."""
    world, out = arguments.world, arguments.out
    sets = {
        split: world.images(split, getattr(arguments, split))
        for split in ("train", "test", "objects")
    }
    for split, arrays in sets.items():
        write_arrays(out / f"{split}.npz", arrays)
    (out / "objects.txt").write_text("\n".join(sets["objects"]["names"]) + "\n", "utf-8")
    judged = arguments.observers.judge(world, sets["objects"]["labels"], arguments.judgments)
    write_arrays(out / "triplets.npz", {"triplets": judged})
    levels = answer_levels(arguments, sets["test"]["labels"])
    write_levels(out / "levels.csv", levels, sets["test"]["names"], arguments.observers.count)
    write_hierarchy(out / "hierarchy.txt", world)
    counts = ", ".join(f"{len(arrays['names']):,} {split}" for split, arrays in sets.items())
    print(f"images: {counts}; {len(judged):,} judgments of objects; written: {out}")
    return out


def answer_levels(arguments: Arguments, labels: np.ndarray) -> dict[str, Triplets]:
    """Return the answers on each level; those to one triplet follow each other."""
    answers = {}
    for level, name in LEVEL_NAMES.items():
        shown = arguments.world.level_triplets(
            labels, level, arguments.level_triplets, seed=arguments.observers.seed
        )
        repeated = np.repeat(shown, arguments.level_answers, axis=0)
        answers[name] = arguments.observers.choose(arguments.world, labels, repeated)
    return answers


def write_levels(
    path: pathlib.Path, levels: Mapping[str, Triplets], names: np.ndarray, observers: int
) -> None:
    """Write the answers as a table; observers answer in turn."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("level", "image1", "image2", "image3", "odd", "participant"))
        for level, triplets in levels.items():
            for number, images in enumerate(names[triplets].tolist()):
                writer.writerow((level, *images, 3, f"observer {number % observers}"))


def write_hierarchy(path: pathlib.Path, world: World) -> None:
    """Write the classes as `parent child` lines below one root."""
    kinds = dict.fromkeys(kind for kind, _ in world.basic_names)
    edges = [(ROOT, kind) for kind in kinds]
    edges += world.basic_names
    edges += [(name.rpartition("-")[0], name) for name in world.label_names]
    path.write_text("".join(f"{parent} {child}\n" for parent, child in edges), "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
