"""The protocol of Levels: odd-one-out choices on three levels of abstraction.

The judgments are read from a table (comma-separated, with a header), one answer a line:

    level,image1,image2,image3,odd,participant,response_time
    coarse,n01440764_190.JPEG,n02084071_15.JPEG,n03000134_7.JPEG,3,p017,2.41

`level` is any name, such as coarse, fine and class_border; the images are named as in the features
file; `odd` is the position, 1 to 3, of the image chosen as the odd one; `participant` is any name.
`response_time`, in seconds, may be left out or empty. Other columns are ignored.
"""

import csv
import dataclasses
import math
import pathlib

import numpy as np
from jaxtyping import Float

from alignment.evaluation.answers import Answers
from alignment.evaluation.odd_one_out import odd_one_out
from alignment.evaluation.uncertainty import against_answers, response_time_spearman
from alignment.judgments import Triplets
from common.files import PathLike

IMAGES = ("image1", "image2", "image3")
COLUMNS = ("level", *IMAGES, "odd", "participant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """The answers on one level."""

    triplets: Triplets
    """One answer a row, the odd one last."""
    participants: int
    """People who answered."""
    seconds: Float[np.ndarray, "n"]
    """Response times; NaN where there is none."""
    answers: Answers
    """The answers by triplet."""


def read_levels(path: PathLike, names: np.ndarray) -> dict[str, Level]:
    """Read the judgments, level by level.

    Args:
      path: the table.
      names: str (n,), the images in the order of the features.

    Raises:
      FileNotFoundError, ValueError: naming the file, and line and column at fault.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    known = {name: row for row, name in enumerate(names.tolist())}
    found: dict[str, list[tuple[list[int], str, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [c for c in COLUMNS if c not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{path}, line 1: no column {missing[0]!r}; see alignment.evaluation.levels"
            )
        for row in reader:
            try:
                found.setdefault(row["level"], []).append(_answer(row, known))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    if not found:
        raise ValueError(f"{path}: no answers")
    levels = {}
    for level, rows in found.items():
        triplets = np.array([r[0] for r in rows], np.int32)
        levels[level] = Level(
            triplets=triplets,
            participants=len({r[1] for r in rows}),
            seconds=np.array([r[2] for r in rows]),
            answers=Answers.of(triplets),
        )
    return levels


def _answer(row: dict[str, str], known: dict[str, int]) -> tuple[list[int], str, float]:
    images = [row[column] for column in IMAGES]
    for column, image in zip(IMAGES, images, strict=True):
        if image not in known:
            raise ValueError(f"{column}: {image!r} is not among the features")
    if len(set(images)) < 3:
        raise ValueError("an image occurs twice in the triplet")
    if row["odd"] not in ("1", "2", "3"):
        raise ValueError(f"odd: must be 1, 2 or 3, got {row['odd']!r}")
    odd = int(row["odd"]) - 1
    time = row.get("response_time")
    try:
        seconds = float(time) if time else math.nan
    except ValueError:
        raise ValueError(f"response_time: {time!r} is no number") from None
    rows = [known[image] for image in images]
    return [*(r for i, r in enumerate(rows) if i != odd), rows[odd]], row["participant"], seconds


def level_scores(features: Float[np.ndarray, "n p"], level: Level) -> dict[str, float]:
    """Score features on one level: accuracies, NLL, and agreement with people's uncertainty."""
    scores = odd_one_out(features, level.triplets)
    scores |= against_answers(features, level.answers)
    timed = np.isfinite(level.seconds)
    if timed.any():
        scores["response_time_spearman"] = response_time_spearman(
            features, level.triplets[timed], level.seconds[timed]
        )
    return scores
