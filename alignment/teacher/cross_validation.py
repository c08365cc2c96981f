"""Choosing the regularisation by objects that a map has not seen."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from alignment.judgments import (
    Triplets,
    correct,
    pair_logits,
    split_by_object,
    unit_rows,
)
from alignment.teacher.choices import Choices
from alignment.teacher.ensemble import average_maps
from alignment.teacher.fit import FitConfig, Group, fit

MEASURES = ("accuracy", "accuracy, cosine", "nll")


def score(features: Float[np.ndarray, "n p"], triplets: Triplets) -> dict[str, float]:
    """Judge features by human triplets.

    Returns:
      "accuracy" by dot products, "accuracy, cosine", and "nll", the mean of -log p in nats at
      temperature 1.
    """
    logits = pair_logits(features, triplets)
    return {
        "accuracy": float(correct(logits).mean()),
        "accuracy, cosine": float(correct(pair_logits(unit_rows(features), triplets)).mean()),
        "nll": float(-jax.nn.log_softmax(logits)[:, 0].mean()),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Scores of maps on objects that they have not seen."""

    lambdas: tuple[float, ...]
    """Strengths of the regulariser."""
    scores: Float[np.ndarray, "folds lambdas measures"]
    """`MEASURES` of each map on the human triplets among its held-out objects."""
    weights: Float[np.ndarray, "folds lambdas p p"]
    """The maps."""
    bias: Float[np.ndarray, "folds lambdas p"]
    """The same."""

    @property
    def best(self) -> int:
        """Number of the lambda with the lowest mean of the negative log-likelihood."""
        return int(self.scores[..., MEASURES.index("nll")].mean(0).argmin())

    def summary(self) -> dict[str, Any]:
        """Return what a report needs."""
        return {
            "lambda": self.lambdas[self.best],
            "lambdas": list(self.lambdas),
            **{name: self.scores[..., i].tolist() for i, name in enumerate(MEASURES)},
        }


def cross_validate(
    features: Float[np.ndarray, "n p"],
    choices: Choices,
    human: Triplets,
    held_out: Bool[np.ndarray, "folds n"],
    lambdas: Sequence[float],
    config: FitConfig,
    *,
    maps: int = 1,
    objects: Bool[np.ndarray, "n"] | None = None,
    **options: Any,
) -> CrossValidation:
    """Fit maps for all folds and lambdas at once, and score them on held-out objects.

    Args:
      features: standardised features.
      choices: what to fit.
      human: human triplets to score with.
      held_out: the objects that each fold leaves out.
      lambdas: strengths of the regulariser.
      config: how maps are fitted.
      maps: fits of each map, from different batches, whose similarities are averaged.
      objects: the only objects to use, for a cross-validation within a training set.
      options: see `fit`.

    Raises:
      ValueError: if a fold has no triplet to fit or to score, and what `fit` raises.
    """
    allowed = np.ones(len(features), bool) if objects is None else objects
    groups, tests = [], []
    for number, mask in enumerate(held_out):
        inside = allowed & ~mask
        test = split_by_object(human, ~(allowed & mask))[0]
        if not len(test):
            raise ValueError(f"fold {number}: no human triplet lies within its held-out objects")
        groups += [Group(choices.among(inside), np.flatnonzero(inside))] * maps
        tests.append(test)
    found = fit(features, groups, lambdas, config, **options)
    weights, bias = averaged(found.weights, found.bias, maps)
    scores = np.array(
        [
            [[score(features @ w + b, test)[m] for m in MEASURES] for w, b in zip(*by, strict=True)]
            for test, *by in zip(tests, weights, bias, strict=True)
        ]
    )
    return CrossValidation(lambdas=tuple(lambdas), scores=scores, weights=weights, bias=bias)


def averaged(
    weights: Float[np.ndarray, "groups lambdas p p"],
    bias: Float[np.ndarray, "groups lambdas p"],
    maps: int,
) -> tuple[Float[np.ndarray, "folds lambdas p p"], Float[np.ndarray, "folds lambdas p"]]:
    """Average the similarities of each `maps` consecutive groups."""
    if maps == 1:
        return weights, bias
    split = [x.reshape(-1, maps, *x.shape[1:]).swapaxes(1, 2) for x in (weights, bias)]
    pairs = [
        [average_maps(w, b) for w, b in zip(*by, strict=True)] for by in zip(*split, strict=True)
    ]
    return tuple(np.array([[pair[i] for pair in row] for row in pairs]) for i in range(2))  # type: ignore[return-value]
