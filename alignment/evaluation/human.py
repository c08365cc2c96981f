"""Evaluations against human judgments, each of all models that have the features for it."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from alignment.evaluation import figures
from alignment.evaluation.answers import Answers
from alignment.evaluation.hierarchy import sample_images
from alignment.evaluation.inputs import Inputs, Made, before_and_after, given, load, pictures_of
from alignment.evaluation.levels import level_scores, read_levels
from alignment.evaluation.odd_one_out import odd_image, odd_one_out
from alignment.evaluation.pairs import ValidationPairs, pair_scores
from alignment.evaluation.results import Section
from alignment.evaluation.rsa import check_rdms, correlate, noise_ceiling, rdm, rsa
from alignment.evaluation.uncertainty import (
    against_answers,
    best_temperature,
    triplet_calibration,
)
from alignment.features import Features
from alignment.files import read_arrays
from alignment.judgments import check_names, pair_logits, read_triplets, unit_rows

CHANCE = 1 / 3
SHOWN = 8
"""Queries in a figure of neighbours, and triplets in the grid."""


def evaluate_triplets(inputs: Inputs) -> Made:
    """Odd-one-out accuracy on human triplets, and who differs where."""
    path = given(inputs.human.triplets, "triplets")
    models = load(inputs, "things")
    names = next(iter(models.values())).names
    triplets = read_triplets(path, len(names))
    section = Section(
        title=f"Odd one out: {len(triplets):,} choices between {len(names):,} objects",
        scores={name: odd_one_out(f.features, triplets) for name, f in models.items()},
        references={"chance of accuracy": CHANCE, "chance of nll": float(np.log(3))},
        notes=["a tie for the most similar pair counts as wrong"],
    )
    drawn: dict[str, Figure] = {}
    if inputs.figures:
        pictures = pictures_of(inputs.pictures.things, names)
        chosen = sample_images(len(names), SHOWN, inputs.seed)
        drawn["neighbours_things"] = figures.neighbours(
            before_and_after(models), chosen, names.tolist(), pictures
        )
        if {"teacher", "after"} <= models.keys():
            rows, choices = _differing(triplets, models["teacher"], models["after"])
            if len(rows):
                drawn["differing_triplets"] = figures.triplet_grid(
                    rows, choices, names.tolist(), pictures
                )
    return section, drawn


def _differing(
    triplets: np.ndarray, teacher: Features, student: Features
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return triplets where human, teacher and student choose differently, the surest first."""
    cosines = [
        np.asarray(pair_logits(unit_rows(jnp.asarray(f.features)), triplets))
        for f in (teacher, student)
    ]
    choices = {
        "human": np.full(len(triplets), 2),
        "teacher": odd_image(cosines[0]),
        "student": odd_image(cosines[1]),
    }
    a, b, c = choices.values()
    differ = np.flatnonzero((a != b) & (a != c) & (b != c) & (b >= 0) & (c >= 0))
    # How far the best pair is above the second, for the less sure of both.
    ordered = np.sort(np.stack(cosines)[:, differ])
    margin = (ordered[..., 2] - ordered[..., 1]).min(0)
    rows = differ[np.argsort(-margin, kind="stable")[:SHOWN]]
    return triplets[rows], {who: choice[rows] for who, choice in choices.items()}


def evaluate_uncertainty(inputs: Inputs) -> Made:
    """Are models unsure where people are?"""
    human = inputs.human
    path = given(human.answers, "answers")
    models = load(inputs, "things")
    names = next(iter(models.values())).names
    answers = Answers.read(path, human.answers_array, len(names), at_least=human.answers_at_least)
    scores = {name: against_answers(f.features, answers) for name, f in models.items()}
    if human.triplets is not None:
        triplets = read_triplets(human.triplets, len(names))
        for name, f in models.items():
            scores[name]["ece"] = triplet_calibration(f.features, triplets)
            scores[name]["ece_mass"] = triplet_calibration(f.features, triplets, binning="mass")
    if human.embedding is not None:
        arrays = read_arrays(human.embedding, required=("mean", "names"))
        check_names(arrays["names"], names, source=str(human.embedding))
        logits = np.asarray(pair_logits(arrays["mean"], answers.triplets), np.float64)
        target = np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
        for name, f in models.items():
            found = best_temperature(np.asarray(pair_logits(f.features, answers.triplets)), target)
            scores[name] |= dict(zip(("temperature", "kl_at_temperature"), found, strict=True))
    section = Section(
        title=f"Uncertainty: {len(answers.counts):,} triplets, {answers.counts.sum():,} answers",
        scores=scores,
        references={f"accuracy ceiling, {k}": v for k, v in answers.ceilings().items()},
        notes=["probabilities: dot products at temperature 1"],
    )
    return section, {}


def evaluate_rdms(inputs: Inputs) -> Made:
    """RSA against the dissimilarities of people."""
    path = given(inputs.human.rdms, "rdms")
    models = load(inputs, "rdms")
    arrays = read_arrays(path)
    if "human_similarities" in arrays:
        human = -check_rdms(arrays["human_similarities"], source=str(path))
    elif "human_rdms" in arrays:
        human = check_rdms(arrays["human_rdms"], source=str(path))
    else:
        raise ValueError(f"{path} has neither `human_rdms` nor `human_similarities`")
    n = len(next(iter(models.values())).names)
    if human.shape[1] != n:
        raise ValueError(f"{path} is about {human.shape[1]} images, the features about {n}")
    references = {}
    if len(human) > 1:
        lower, upper = noise_ceiling(human)
        references = {
            "ceiling (Spearman), one person against the mean of the others": lower,
            "ceiling (Spearman), one person against the mean of all": upper,
        }
    matrices = {name: rdm(f.features) for name, f in models.items()}
    scores = {name: rsa(f.features, human) for name, f in models.items()}
    for name, matrix in matrices.items():
        if name != "before" and "before" in matrices:
            scores[name]["spearman_with_before"] = correlate(matrix, matrices["before"])
    section = Section(
        title=f"RSA: {n} images, {len(human)} people",
        scores=scores,
        references=references,
        notes=["models are compared with the mean over people"],
    )
    drawn: dict[str, Figure] = {}
    if inputs.figures:
        drawn["rsa_scatter"] = figures.rsa_scatter(human.mean(0), matrices)
        drawn["rdms"] = figures.rdm_panels(
            {**matrices, "human": human.mean(0)}, arrays.get("category")
        )
    return section, drawn


def evaluate_levels(inputs: Inputs) -> Made:
    """Odd-one-out accuracy and uncertainty on each level of abstraction."""
    path = given(inputs.human.levels, "levels")
    models = load(inputs, "levels")
    levels = read_levels(path, next(iter(models.values())).names)
    scores = {
        name: {
            f"{level}/{measure}": value
            for level, judged in levels.items()
            for measure, value in level_scores(f.features, judged).items()
        }
        for name, f in models.items()
    }
    ceilings = {
        level: judged.answers.ceilings()["leave_one_out"] for level, judged in levels.items()
    }
    section = Section(
        title="Levels: "
        + ", ".join(f"{len(j.triplets):,} answers {level}" for level, j in levels.items()),
        scores=scores,
        references={f"ceiling, {k}: majority of the others": v for k, v in ceilings.items()},
        notes=["entropies are correlated within a level, over its triplets"],
    )
    drawn = {}
    if inputs.figures:
        accuracies = {
            name: {level: s[f"{level}/accuracy_cosine"] for level in levels}
            for name, s in scores.items()
        }
        drawn["levels"] = figures.accuracy_by_level(
            accuracies, ceilings, "majority of all other people"
        )
    return section, drawn


def evaluate_pairs(inputs: Inputs) -> Made:
    """The pairs that an aligned model and its control judge most differently."""
    path = given(inputs.human.pairs, "pairs")
    models = load(inputs, "pairs")
    pairs = ValidationPairs.read(path, next(iter(models.values())))
    section = Section(
        title=f"Validation pairs: {len(pairs.pairs)}",
        scores={name: pair_scores(f.features, pairs) for name, f in models.items()},
        references={"chance of auc": 0.5},
        notes=["people rate the pairs that AligNet favours as more similar: above 0.5 agrees"],
    )
    return section, {}
