"""The files that an evaluation takes: features of models, human judgments, pictures."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from alignment.evaluation.figures import Pictures
from alignment.evaluation.results import Section
from alignment.features import Features
from alignment.images.sources import open_images
from alignment.judgments import check_names
from alignment.transformed import read_transformed


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Features files of one model, by set of images."""

    things: pathlib.Path | None = None
    """Objects that the human triplets are about."""
    rdms: pathlib.Path | None = None
    """Images of the human dissimilarities, in their order."""
    pairs: pathlib.Path | None = None
    """Images of the validation pairs."""
    levels: pathlib.Path | None = None
    """Images of the Levels judgments."""
    train: pathlib.Path | None = None
    """Images with classes, that probes are fitted to."""
    test: pathlib.Path | None = None
    """Images with classes, that probes are tested on, and whose hierarchy is looked at."""
    transform: pathlib.Path | None = None
    """Transform of all these features, for a teacher."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanFiles:
    """Files of human judgments."""

    triplets: pathlib.Path | None = None
    """Odd-one-out choices between the `things`, the odd one last."""
    answers: pathlib.Path | None = None
    """Repeated answers to the same triplets of `things`, one a row, `.npz`."""
    answers_array: str = "answers"
    """Name of the array there."""
    answers_at_least: int = 100
    """Answers that a triplet must have to be used."""
    embedding: pathlib.Path | None = None
    """VICE embedding of the `things` (array `mean`), the target of the temperature search."""
    rdms: pathlib.Path | None = None
    """`human_rdms` (people, n, n), or `human_similarities`, whose sign is turned, and `category`
    (n,) for the order of the figure, `.npz`. One matrix (n, n) will do; a ceiling needs people."""
    pairs: pathlib.Path | None = None
    """`filename`, `pairs` and `alignet_favoured` of the validation experiment, `.npz`."""
    levels: pathlib.Path | None = None
    """Judgments of Levels, a table (see `alignment.evaluation.levels`)."""
    hierarchy: pathlib.Path | None = None
    """`parent child` lines. The names of the classes of `test` must be nodes; without it, fine and
    coarse classes of the features file are the hierarchy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFiles:
    """Where the pictures for figures are; names are shown instead where they are not given."""

    things: str | None = None
    """Images of the `things`, named as in the features file."""
    test: str | None = None
    """Images of `test`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is compared, and how."""

    before: ModelFiles = ModelFiles()
    """The model before alignment."""
    after: ModelFiles = ModelFiles()
    """The model after alignment."""
    control: ModelFiles = ModelFiles()
    """The model after the same training on the untransformed teacher's labels."""
    teacher: ModelFiles = ModelFiles()
    """The teacher."""
    human: HumanFiles = HumanFiles()
    """Human judgments."""
    pictures: PictureFiles = PictureFiles()
    """Pictures for the figures."""
    basic_depth: int = 5
    """Depth of the basic classes in the hierarchy; the root has depth 0."""
    superordinate_depth: int = 3
    """Depth of the superordinate classes."""
    shots: tuple[int, ...] = (1, 5)
    """Examples of each class in the few-shot probes."""
    repetitions: int = 5
    """Random draws of these examples."""
    seed: int = 0
    """Seed of all draws."""
    figures: bool = True
    """Draw the figures."""

    @property
    def models(self) -> dict[str, ModelFiles]:
        """The models by their part."""
        return {k: getattr(self, k) for k in ("before", "after", "control", "teacher")}


class SkipError(Exception):
    """An evaluation cannot be made: the message says which files it lacks."""


Figures = Mapping[str, Figure]
Made = tuple[Section, Figures]


def load(inputs: Inputs, images: str) -> dict[str, Features]:
    """Read the features of a set of images by all models that have them.

    Raises:
      SkipError: if no model has.
      ValueError: where models have other images, or a file is at fault.
    """
    found: dict[str, Features] = {}
    for name, files in inputs.models.items():
        path = getattr(files, images)
        if path is None:
            continue
        features = read_transformed(path, files.transform)
        if found:
            check_names(features.names, next(iter(found.values())).names, source=str(path))
        found[name] = features
    if not found:
        raise SkipError(f"no features: give --before.{images}, --after.{images} or others")
    return found


def before_and_after(models: Mapping[str, Features]) -> dict[str, np.ndarray]:
    """Return the features of the model before and after, where both are given; of all otherwise."""
    pair = ("before", "after")
    names = pair if models.keys() >= set(pair) else tuple(models)
    return {name: models[name].features for name in names}


def given(path: pathlib.Path | None, option: str) -> pathlib.Path:
    """Return the path of a file of human judgments, or raise SkipError where none is given."""
    if path is None:
        raise SkipError(f"no human judgments: give --human.{option}")
    return path


def pictures_of(source: str | None, names: np.ndarray) -> Pictures | None:
    """Open the pictures of the images `names`; None where there is no source.

    Raises:
      ValueError: if the source lacks one of them.
    """
    if source is None:
        return None
    images = open_images(source)
    row_of = {name: row for row, name in enumerate(images.names.tolist())}
    if missing := [name for name in names.tolist() if name not in row_of]:
        raise ValueError(
            f"{source} lacks {len(missing)} of the {len(names)} images of the features, such as "
            f"{missing[0]!r}"
        )
    return lambda rows: images.read([row_of[name] for name in names[rows].tolist()])
