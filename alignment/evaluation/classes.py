"""Evaluations by classes of images, each of all models that have the features for it."""

import numpy as np

from alignment.evaluation import figures
from alignment.evaluation.hierarchy import (
    Hierarchy,
    ImageClasses,
    distance_changes,
    distances_by_relation,
    sample_images,
)
from alignment.evaluation.inputs import Inputs, Made, SkipError, before_and_after, load, pictures_of
from alignment.evaluation.probes import few_shot, linear_probe, shift_probe
from alignment.evaluation.results import Section
from alignment.evaluation.rsa import correlate, rdm
from alignment.features import Features

PAIR_IMAGES = 2000
"""Images, at most, whose pairs are compared."""
SHOWN = 8
"""Queries in a figure of neighbours."""


def _classes(inputs: Inputs, features: Features) -> ImageClasses:
    """Return the classes of images on three levels."""
    if features.labels is None:
        raise SkipError("the features of `test` have no `labels`")
    path = inputs.human.hierarchy
    if path is None:
        if features.coarse is None:
            raise SkipError("no hierarchy: give --human.hierarchy, or features with `coarse`")
        return ImageClasses(
            subordinate=features.labels, basic=features.labels, superordinate=features.coarse
        )
    if features.label_names is None:
        raise SkipError("the features of `test` have no `label_names` to look up in the hierarchy")
    return ImageClasses.of_hierarchy(
        Hierarchy.read(path),
        features.label_names[features.labels].tolist(),
        basic=inputs.basic_depth,
        superordinate=inputs.superordinate_depth,
    )


def evaluate_hierarchy(inputs: Inputs) -> Made:
    """How distances follow the hierarchy of classes, and how they changed."""
    models = load(inputs, "test")
    first = next(iter(models.values()))
    rows = sample_images(len(first.names), PAIR_IMAGES, inputs.seed)
    classes = _classes(inputs, first).take(rows)
    features = {name: f.features[rows] for name, f in models.items()}
    scores = {name: distances_by_relation(x, classes) for name, x in features.items()}
    changes = {
        name: distance_changes(features["before"], x, classes)
        for name, x in features.items()
        if name != "before" and "before" in features
    }
    for name, change in changes.items():
        scores[name] |= {f"change, {relation}": float(v.mean()) for relation, v in change.items()}
    matrices = {name: rdm(x) for name, x in features.items()}
    scores["after"] = scores.get("after", {}) | {
        f"rsa with {name}": correlate(matrices["after"], matrix)
        for name, matrix in matrices.items()
        if name != "after" and "after" in matrices
    }
    section = Section(
        title=f"Hierarchy: mean relative distance of the pairs of {len(rows):,} images",
        scores={name: s for name, s in scores.items() if s},
        notes=["relative: cosine distance over its mean; a change below 0 is an approach"],
    )
    drawn = {}
    if inputs.figures:
        if changes:
            drawn["hierarchy"] = figures.hierarchy_densities(changes)
        chosen = sample_images(len(first.names), SHOWN, inputs.seed)
        pictures = pictures_of(inputs.pictures.test, first.names)
        labels = first.names.tolist()
        if pictures is None and first.labels is not None and first.label_names is not None:
            labels = first.label_names[first.labels].tolist()
        drawn["neighbours"] = figures.neighbours(before_and_after(models), chosen, labels, pictures)
    return section, drawn


def evaluate_probes(inputs: Inputs) -> Made:
    """Few-shot, linear and shift probes on frozen features."""
    train, test = load(inputs, "train"), load(inputs, "test")
    scores: dict[str, dict[str, float]] = {}
    for name in train.keys() & test.keys():
        fitted, tested = train[name], test[name]
        if fitted.labels is None or tested.labels is None:
            raise SkipError("the features of `train` and `test` need `labels`")
        found = scores.setdefault(name, {})
        kinds = {"fine": (fitted.labels, tested.labels)}
        if fitted.coarse is not None and tested.coarse is not None:
            kinds["coarse"] = (fitted.coarse, tested.coarse)
        for kind, (y, y_test) in kinds.items():
            sides = (fitted.features, y), (tested.features, y_test)
            for shots in inputs.shots:
                mean, deviation = few_shot(
                    *sides, shots=shots, repetitions=inputs.repetitions, seed=inputs.seed
                )
                found[f"{kind}, {shots}-shot"] = mean
                found[f"{kind}, {shots}-shot, deviation over draws"] = deviation
            (found[f"{kind}, linear"],) = linear_probe(*sides, seed=inputs.seed)
        if fitted.coarse is not None:
            superclass = np.zeros(max(fitted.labels.max(), tested.labels.max()) + 1, int)
            superclass[fitted.labels] = fitted.coarse
            sides = (fitted.features, fitted.labels), (tested.features, tested.labels)
            shift = shift_probe(*sides, superclass, seed=inputs.seed)
            found |= {f"coarse, {which} classes": value for which, value in shift.items()}
    if not scores:
        raise SkipError("no model has features of both `train` and `test`")
    any_test = next(iter(test.values()))
    section = Section(
        title=f"Probes: accuracy on {len(any_test.names):,} images",
        scores={name: scores[name] for name in inputs.models if name in scores},
        notes=[
            "logistic regression on frozen features, L2 penalty by cross-validation",
            "shift: superclasses learned on half of their classes (source), tested on the others",
        ],
    )
    return section, {}
