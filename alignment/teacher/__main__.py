"""Fit a teacher: an affine map of features to human judgments of similarity.

    python -m alignment.teacher features.npz --triplets human.npz --embeddings vice/embedding.npz \
        --out teacher.npz

Chooses lambda by cross-validation over objects, fits again on all of them, and writes the
transform and, beside it, `teacher.json` with all scores.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tyro

from alignment import judgments
from alignment.features import Features
from alignment.files import read_arrays
from alignment.judgments import Standardisation, Transform, Triplets
from alignment.teacher.choices import Choices, ExpectedChoices, GivenChoices
from alignment.teacher.cross_validation import (
    MEASURES,
    CrossValidation,
    averaged,
    cross_validate,
    score,
)
from alignment.teacher.fit import FitConfig, Group, fit
from alignment.teacher.objective import distance_to_scaled_identity
from alignment.vice.embedding import read_values
from common import cli
from common.report import provenance, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Fit an affine map of features to human judgments of similarity.

    The targets are those that `embeddings` expect, or the probabilities in `choices`, or, without
    either, the human choices themselves (hard labels).
    """

    features: tyro.conf.Positional[pathlib.Path]
    """Features of the objects, as `alignment.embed` writes them."""
    triplets: pathlib.Path
    """Human choices: .npz, .npy or text, three columns, the odd one last, counted from 0."""
    out: pathlib.Path
    """Transform to write, .npz."""
    names: pathlib.Path | None = None
    """Names of the objects that the triplets refer to, one a line; by default the rows of the
    features."""
    embeddings: tuple[pathlib.Path, ...] = ()
    """Embeddings whose expected choices are the targets, averaged: files of `alignment.vice`, or
    .npy of one row for each object."""
    choices: pathlib.Path | None = None
    """File of soft choices of `alignment.vice`: targets of given triplets."""
    leave_out: tuple[pathlib.Path, ...] = ()
    """Files of triplets whose sets of objects must stay unseen."""
    lambdas: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
    """Strengths of the regulariser to choose from."""
    folds: int = 3
    """Parts of the objects; each is held out once."""
    fold_seed: int = 42
    """Seed of the parts."""
    maps: int = 1
    """Fits from different batches whose similarities are averaged into one map."""
    fit: FitConfig = FitConfig()
    """How a map is fitted."""
    images: pathlib.Path | None = None
    """Features of other images by the same model, whose neighbourhoods `fit.local` keeps."""


def load_choices(
    arguments: Arguments, names: Sequence[str], human: Triplets, left_out: Sequence[Triplets]
) -> Choices:
    """Return the targets that were asked for."""
    if arguments.embeddings and arguments.choices is not None:
        raise ValueError("give either --embeddings or --choices")
    if arguments.embeddings:
        return ExpectedChoices.of(*(read_values(path, names) for path in arguments.embeddings))
    if arguments.choices is None:
        return GivenChoices.hard(human, len(names))
    path = arguments.choices
    arrays = read_arrays(path, required=("triplets", "probabilities"))
    triplets = judgments.check_triplets(arrays["triplets"], len(names), source=str(path))
    targets = arrays["probabilities"].astype(np.float32)
    sums = targets.sum(-1)
    if targets.shape != triplets.shape or targets.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        raise ValueError(f"{path}: `probabilities` must be (n, 3), at least 0, and sum to 1")
    keep = np.ones(len(triplets), bool)
    for others in left_out:
        keep &= ~np.isin(judgments.unordered(triplets), judgments.unordered(others))
    return GivenChoices(triplets=triplets[keep], targets=targets[keep], objects=len(names))


def report(found: CrossValidation) -> str:
    """Return the scores by lambda, averaged over folds, as a Markdown table."""
    rows = [
        [f"{strength:g}", *(f"{value:.4f}" for value in values)]
        for strength, values in zip(found.lambdas, found.scores.mean(0), strict=True)
    ]
    rows[found.best][0] += " (chosen)"
    return table(["lambda", *MEASURES], rows)


def run(arguments: Arguments) -> Transform:
    """Cross-validate, fit on all objects, write, and return the transform."""
    given = Features.read(arguments.features)
    names = given.names.tolist()
    if arguments.names is not None:
        names = judgments.read_names(arguments.names).tolist()
        given = given.ordered(names)
    count = len(names)
    left_out = [judgments.read_triplets(path, count) for path in arguments.leave_out]
    human = judgments.read_triplets(arguments.triplets, count)
    for others in left_out:
        human = judgments.leave_out(human, others)
    choices = load_choices(arguments, names, human, left_out)
    scale = Standardisation.of(given.features)
    features = scale(given.features).astype(np.float32)
    images = None
    if arguments.images is not None:
        images = scale(Features.read(arguments.images).features).astype(np.float32)
    held_out = judgments.object_folds(count, arguments.folds, seed=arguments.fold_seed)
    found = cross_validate(
        features,
        choices,
        human,
        held_out,
        arguments.lambdas,
        arguments.fit,
        maps=arguments.maps,
        images=images,
        description=f"{arguments.folds} folds x {len(arguments.lambdas)} lambdas",
    )
    print(report(found))
    group = Group(choices, np.arange(count))
    final = fit(
        features,
        [group] * arguments.maps,
        [found.lambdas[found.best]],
        arguments.fit,
        images=images,
        description="all objects",
    )
    weights, bias = averaged(final.weights, final.bias, arguments.maps)
    transform = Transform(weights=weights[0, 0], bias=bias[0, 0], standardisation=scale)
    transform.write(arguments.out)
    document = {
        **provenance(),
        "human triplets": len(human),
        "before": score(features, human),
        "cross-validation": found.summary(),
        "plausibility": plausibility(transform),
    }
    path = arguments.out.with_suffix(".json")
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {arguments.out}, {path}")
    return transform


def plausibility(transform: Transform) -> dict[str, float]:
    """Return what tells a sound map: released ones have .06-.12, .35-.60 and 1.3-3.4 here."""
    weights = transform.weights
    return {
        "mean of the diagonal": float(np.diagonal(weights).mean()),
        "distance to the scaled identity": float(np.sqrt(distance_to_scaled_identity(weights))),
        "norm": float(np.linalg.norm(weights)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
