"""Is a model unsure where people are? Entropies, divergences, calibration, temperature."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy, pearsonr, spearmanr, trim_mean

from alignment.evaluation.answers import Answers
from alignment.judgments import Triplets, pair_logits

Binning = Literal["width", "mass"]
Divergence = Literal["kl", "jensen_shannon"]
TEMPERATURES = (1e-3, 1e3)
"""Temperatures that are searched."""


def against_answers(
    features: Float[np.ndarray, "n p"], answers: Answers, *, prefix: str = ""
) -> dict[str, float]:
    """Compare choice probabilities (dot products, temperature 1) with people's distributions.

    Returns:
      `probability_pearson` over all pairs of all triplets, `entropy_spearman` between the
      entropies, `kl`, the mean KL(human || model) in nats, and `modal_spearman` between the
      model's largest probability and the share of the most frequent answer.
    """
    log_p = log_softmax(np.asarray(pair_logits(features, answers.triplets), np.float64), axis=1)
    human = answers.probabilities
    scores = {
        "probability_pearson": _correlation(pearsonr, np.exp(log_p).ravel(), human.ravel()),
        "entropy_spearman": _correlation(spearmanr, _entropies(np.exp(log_p)), _entropies(human)),
        "kl": float((-_entropies(human) - (human * log_p).sum(1)).mean()),
        "modal_spearman": _correlation(spearmanr, log_p.max(1), human.max(1)),
    }
    return {prefix + name: value for name, value in scores.items()}


def _correlation(kind: Callable, a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation; NaN where one side is constant."""
    return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(kind(a, b).statistic)


def _entropies(p: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m"]:
    return np.asarray(entropy(p, axis=1))


def response_time_spearman(
    features: Float[np.ndarray, "n p"],
    triplets: Triplets,
    seconds: Float[np.ndarray, "m"],
    *,
    trim: float = 0.1,
) -> float:
    """Correlate the entropy of the model's choice with the time people took, triplet by triplet.

    Args:
      features: one row for each image.
      triplets: one answer a row; the order within a row does not matter.
      seconds: response time of each answer. They must be of one level: pooled levels correlate by
        their means alone.
      trim: share of the fastest and of the slowest answers to a triplet that its mean leaves out.

    Returns:
      Spearman's correlation between entropies and mean times; NaN for fewer than three triplets.
    """
    distinct, which = np.unique(np.sort(triplets, 1), axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    groups = np.split(seconds[order], np.cumsum(np.bincount(which.ravel()))[:-1])
    if len(distinct) < 3:
        return float("nan")
    times = np.array([trim_mean(group, trim) for group in groups])
    p = softmax(np.asarray(pair_logits(features, distinct), np.float64), axis=1)
    return _correlation(spearmanr, _entropies(p), times)


def calibration_error(
    confidence: Float[np.ndarray, "m"],
    correct: Bool[np.ndarray, "m"],
    *,
    bins: int = 10,
    binning: Binning = "width",
) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy over bins.

    Args:
      confidence: probability of the predicted choice.
      correct: whether it was the human one.
      bins: number of bins.
      binning: of equal width between 0 and 1, or of equal numbers of choices.
    """
    if binning == "width":
        which = np.minimum((confidence * bins).astype(int), bins - 1)
    else:
        rank = np.argsort(np.argsort(confidence, kind="stable"), kind="stable")
        which = rank * bins // len(confidence)
    gap = np.bincount(which, correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def triplet_calibration(
    features: Float[np.ndarray, "n p"], triplets: Triplets, *, binning: Binning = "width"
) -> float:
    """Return the expected calibration error of odd-one-out choices (temperature 1)."""
    p = softmax(np.asarray(pair_logits(features, triplets), np.float64), axis=1)
    return calibration_error(p.max(1), p.argmax(1) == 0, binning=binning)


def best_temperature(
    logits: Float[np.ndarray, "m 3"],
    target: Float[np.ndarray, "m 3"],
    *,
    divergence: Divergence = "kl",
) -> tuple[float, float]:
    """Search the temperature at which `softmax(logits / temperature)` is nearest the target.

    Args:
      logits: similarities of the pairs.
      target: probabilities of the pairs, such as VICE's.
      divergence: mean KL(target || model), or mean Jensen-Shannon distance (the square root of the
        divergence), in nats.

    Returns:
      The temperature (it divides), and the divergence there.
    """
    logits = np.asarray(logits, np.float64)

    def distance(log_temperature: float) -> float:
        log_q = log_softmax(logits / np.exp(log_temperature), axis=1)
        if divergence == "kl":
            return float((-_entropies(target) - (target * log_q).sum(1)).mean())
        q = np.exp(log_q)
        middle = (target + q) / 2
        js = (rel_entr(target, middle) + rel_entr(q, middle)).sum(1) / 2
        return float(np.sqrt(np.maximum(js, 0)).mean())

    # Distances need not have one valley: look everywhere first, then closely.
    low, high = np.log(TEMPERATURES)
    grid = np.linspace(low, high, 61)
    best = int(np.argmin([distance(t) for t in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(distance, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x)), float(found.fun)
