"""Classification with frozen features: few-shot, linear and shift probes.

All are logistic regression with an L2 penalty, `C sum_i CE_i + |W|^2 / 2` (no penalty on the bias),
fitted by L-BFGS; the whole grid of C is fitted at once.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from alignment.evaluation.lbfgs import minimize

GRID = tuple(10.0**e for e in range(-4, 7))
"""Inverse strengths C of the penalty that cross-validation chooses from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticRegression:
    """Linear classifiers, one for each C."""

    weights: Float[Array, "grid p classes"]
    """float32."""
    bias: Float[Array, "grid classes"]
    """float32."""

    def only(self, index: int) -> "LogisticRegression":
        """Return the classifier of one C."""
        return LogisticRegression(
            weights=self.weights[index : index + 1], bias=self.bias[index : index + 1]
        )

    def predict(self, features: Float[np.ndarray, "n p"]) -> Int[np.ndarray, "grid n"]:
        """Return the most probable class."""
        return np.stack(
            [
                np.argmax(features @ w + b, 1)
                for w, b in zip(np.asarray(self.weights), np.asarray(self.bias), strict=True)
            ]
        )


def fit_logistic(
    features: Float[np.ndarray, "n p"],
    labels: Int[np.ndarray, "n"],
    *,
    classes: int,
    c: Sequence[float] = GRID,
    rows: Bool[np.ndarray, "n"] | None = None,
    iterations: int = 500,
    tolerance: float = 1e-4,
) -> LogisticRegression:
    """Fit one classifier for each C, all at once.

    Args:
      features: not standardised here.
      labels: 0 to classes - 1.
      classes: number of classes.
      c: the inverse strengths of the penalty.
      rows: which rows to fit; all by default.
      iterations: steps of L-BFGS at most.
      tolerance: stop when no derivative of the objective, per row, is larger.

    Raises:
      FloatingPointError: if the loss is not finite.
    """
    weight = np.ones(len(labels), np.float32) if rows is None else rows.astype(np.float32)
    w, b = _fit(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(weight / weight.sum()),
        jnp.asarray(1 / (np.array(c) * weight.sum()), jnp.float32),
        iterations,
        tolerance,
        classes=classes,
    )
    if not np.isfinite(b).all():
        raise FloatingPointError("the loss of the regression is not finite: look at the features")
    return LogisticRegression(weights=w, bias=b)


@functools.partial(jax.jit, static_argnames="classes")
def _fit(
    x: Float[Array, "n p"],
    y: Int[Array, "n"],
    weight: Float[Array, "n"],
    penalty: Float[Array, "grid"],
    iterations: int,
    tolerance: float,
    *,
    classes: int,
) -> tuple[Float[Array, "grid p classes"], Float[Array, "grid classes"]]:
    """Minimise `sum_i weight_i CE_i + penalty |W|^2 / 2` for each penalty."""
    n, p = x.shape
    grid = len(penalty)
    target = jax.nn.one_hot(y, classes)

    def split(flat: Array) -> tuple[Array, Array]:
        return flat[:, classes:].reshape(grid, p, classes), flat[:, :classes]

    def value_and_grad(flat: Array) -> tuple[Array, Array]:
        w, b = split(flat)
        # All classifiers in one matrix product: (n, p) x (p, grid classes).
        logits = (x @ jnp.moveaxis(w, 0, 1).reshape(p, -1)).reshape(n, grid, classes) + b
        log_p = jax.nn.log_softmax(logits)
        loss = -jnp.einsum("n,ngk,nk->g", weight, log_p, target)
        residual = weight[:, None, None] * (jnp.exp(log_p) - target[:, None])
        w_grad = jnp.moveaxis((x.T @ residual.reshape(n, -1)).reshape(p, grid, classes), 1, 0)
        w_grad += penalty[:, None, None] * w
        grad = jnp.concatenate([residual.sum(0), w_grad.reshape(grid, -1)], 1)
        return loss + penalty * jnp.sum(jnp.square(w), (1, 2)) / 2, grad

    start = jnp.zeros((grid, (p + 1) * classes))
    return split(minimize(value_and_grad, start, iterations=iterations, tolerance=tolerance))


def best_fit(
    features: Float[np.ndarray, "n p"],
    labels: Int[np.ndarray, "n"],
    folds: Int[np.ndarray, "n"],
    *,
    classes: int,
) -> LogisticRegression:
    """Fit all rows with the C of GRID that is best on rows held out; of equals, the smallest.

    Args:
      features: of the rows.
      labels: their classes.
      folds: which rows are held out together; those of fold -1 never are.
      classes: number of classes.
    """
    hits = np.zeros(len(GRID))
    for fold in np.unique(folds[folds >= 0]):
        held_out = folds == fold
        model = fit_logistic(features, labels, classes=classes, rows=~held_out)
        hits += (model.predict(features[held_out]) == labels[held_out]).sum(1)
    # The whole grid once more: to compile for a single C would take longer.
    return fit_logistic(features, labels, classes=classes).only(int(np.argmax(hits)))


def linear_probe(
    train: tuple[Float[np.ndarray, "n p"], Int[np.ndarray, "n"]],
    *tests: tuple[Float[np.ndarray, "m p"], Int[np.ndarray, "m"]],
    seed: int = 0,
) -> list[float]:
    """Return the accuracy on each test set of a classifier fitted on all training rows.

    C is chosen on a tenth of them, which is held out for it; the classifier is then fitted on all.
    """
    x, y = train
    classes = int(y.max()) + 1
    held_out = np.random.default_rng(seed).permutation(len(y)) < len(y) / 10
    model = best_fit(x, y, np.where(held_out, 0, -1), classes=classes)
    return [float((model.predict(x_test)[0] == y_test).mean()) for x_test, y_test in tests]


def few_shot(
    train: tuple[Float[np.ndarray, "n p"], Int[np.ndarray, "n"]],
    test: tuple[Float[np.ndarray, "m p"], Int[np.ndarray, "m"]],
    *,
    shots: int,
    repetitions: int = 5,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the mean test accuracy after a few examples of each class, and its deviation.

    C is cross-validated with one example of each class held out at a time; with one shot there is
    nothing to hold out, and C is 1.

    Args:
      train: features and classes to draw the examples from.
      test: features and classes to test on.
      shots: examples of each class.
      repetitions: random draws of the examples; the deviation is over them.
      seed: seed of the draws.

    Raises:
      ValueError: for a class with fewer examples.
    """
    (x, y), (x_test, y_test) = train, test
    counts = np.bincount(y)
    present = np.flatnonzero(counts)
    if (few := present[counts[present] < shots]).size:
        raise ValueError(
            f"class {few[0]} has {counts[few[0]]} training examples, fewer than {shots} shots"
        )
    classes = int(y.max()) + 1
    accuracies = []
    for repetition in range(repetitions):
        generator = np.random.default_rng((seed, repetition))
        order = generator.permutation(len(y))
        by_class = order[np.argsort(y[order], kind="stable")]
        place = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen, folds = by_class[place < shots], place[place < shots]
        if shots > 1:
            model = best_fit(x[chosen], y[chosen], folds, classes=classes)
        else:
            model = fit_logistic(x[chosen], y[chosen], classes=classes, c=[1.0])
        accuracies.append((model.predict(x_test)[0] == y_test).mean())
    return float(np.mean(accuracies)), float(np.std(accuracies))


def shift_split(
    superclass: Int[np.ndarray, "classes"], *, seed: int = 0
) -> tuple[Bool[np.ndarray, "classes"], Bool[np.ndarray, "classes"]]:
    """Split the classes of each superclass at random in two halves: source and target, as BREEDS.

    Superclasses of one class are in neither; of an odd number, one class is left out.
    """
    generator = np.random.default_rng(seed)
    source, target = np.zeros((2, len(superclass)), bool)
    for members in (np.flatnonzero(superclass == s) for s in np.unique(superclass)):
        members = generator.permutation(members)
        half = len(members) // 2
        source[members[:half]], target[members[half : 2 * half]] = True, True
    return source, target


def shift_probe(
    train: tuple[Float[np.ndarray, "n p"], Int[np.ndarray, "n"]],
    test: tuple[Float[np.ndarray, "m p"], Int[np.ndarray, "m"]],
    superclass: Int[np.ndarray, "classes"],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Classify superclasses, from images of other classes than those that were learned.

    Args:
      train: features and classes.
      test: features and classes.
      superclass: superclass of each class.
      seed: seed of the split.

    Returns:
      Accuracy of the superclass on test images of the `source` and of the `target` classes; nothing
      where no two superclasses have two classes each.
    """
    source, target = shift_split(superclass, seed=seed)
    used = np.unique(superclass[source])
    if len(used) < 2:
        return {}
    compact = np.zeros(superclass.max() + 1, int)
    compact[used] = np.arange(len(used))
    target_of = compact[superclass]

    def part(
        data: tuple[np.ndarray, np.ndarray], kept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        x, y = data
        rows = kept[y]
        return x[rows], target_of[y[rows]]

    accuracies = linear_probe(
        part(train, source), part(test, source), part(test, target), seed=seed
    )
    return dict(zip(("source", "target"), accuracies, strict=True))
