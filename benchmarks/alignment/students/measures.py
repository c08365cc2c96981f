"""What is measured of a model; see the head of this folder's `__main__`."""

import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.stats import entropy, spearmanr

from alignment.embedder import Embedder
from alignment.evaluation.odd_one_out import odd_one_out
from alignment.evaluation.probes import few_shot, fit_logistic, shift_probe
from alignment.files import read_arrays
from alignment.images.preprocess import Preprocessing, named
from alignment.judgments import pair_logits
from alignment.vit.pretrained import from_pretrained
from benchmarks.alignment.students.data import Arguments, concepts, image_file

Scores = dict[str, float]


def draw_where(
    fits: Callable[[np.ndarray], np.ndarray], rows: Int[np.ndarray, "n"], count: int
) -> Int[np.ndarray, "count 3"]:
    """Draw triplets of rows at random until `count` of them fit."""
    rng = np.random.default_rng(0)
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        drawn = rng.choice(rows, (500_000, 3))
        found.append(drawn[fits(drawn)])
    return np.concatenate(found)[:count].astype(np.int32)


def test_triplets(
    arguments: Arguments, labels: np.ndarray, coarse: np.ndarray
) -> dict[str, Int[np.ndarray, "m 3"]]:
    """Draw the triplets of each kind; see the head of this file."""
    rows = np.arange(len(labels))
    concept = concepts(arguments)
    unlabelled = rows[concept[labels] < 0]

    def coarse_fits(t: np.ndarray) -> np.ndarray:
        (a, b, c), (x, y, _) = coarse[t].T, labels[t].T
        return (a == b) & (a != c) & (x != y)

    def border_fits(t: np.ndarray) -> np.ndarray:
        (a, _, c), (x, y, z) = coarse[t].T, labels[t].T
        return (x == y) & (x != z) & (a == c) & (t[:, 0] != t[:, 1])

    def inside_fits(t: np.ndarray) -> np.ndarray:
        (a, b, c), (x, y, z) = coarse[t].T, concept[labels[t]].T
        different = (x != y) & (x != z) & (y != z)
        return (a == b) & (a == c) & different & (np.minimum(np.minimum(x, y), z) >= 0)

    count = arguments.level_triplets
    inside = draw_where(inside_fits, rows, 4 * count)
    path = arguments.shared / "alignment" / "vice" / "vice_things_final_embedding.npy"
    vice = np.load(path, allow_pickle=False)
    p = np.asarray(jax.nn.softmax(pair_logits(jnp.asarray(vice), concept[labels[inside]])))
    sure = p.max(1) >= 0.45
    inside, pair = inside[sure], p[sure].argmax(1)
    order = np.array([(0, 1, 2), (0, 2, 1), (1, 2, 0)])[pair]
    return {
        "coarse": draw_where(coarse_fits, rows, count),
        "fine": np.take_along_axis(inside, order, 1)[:count],
        "class border": draw_where(border_fits, rows, count),
        "coarse, unlabelled classes": draw_where(coarse_fits, unlabelled, count),
        "class border, unlabelled classes": draw_where(border_fits, unlabelled, count),
    }


def embed(export: pathlib.Path, images: np.ndarray, size: int) -> Float[np.ndarray, "n d"]:
    """Return the features of images by an exported backbone."""
    found = from_pretrained(export)
    preprocessing: Preprocessing = named("alignet", size)
    resized = np.stack([preprocessing.resize(image) for image in images])
    return Embedder(found.config, found.params, preprocessing, batch_size=250)(resized)


def cifar_scores(arguments: Arguments, features: Callable[[np.ndarray], np.ndarray]) -> Scores:
    """Probe for CIFAR-10, and compare the entropy of its predictions with people's."""
    train, test = (read_arrays(image_file(arguments, f"cifar10_{s}")) for s in ("train", "test"))
    x, x_test = features(train["images"]), features(test["images"])
    mean, std = x.mean(0), x.std(0)
    model = fit_logistic((x - mean) / std, train["labels"], classes=10, c=(0.01,))
    logits = (x_test - mean) / std @ np.asarray(model.weights[0]) + np.asarray(model.bias[0])
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float64)
    scores = {"CIFAR-10, linear": float((p.argmax(1) == test["labels"]).mean())}
    people = np.load(
        arguments.shared / "alignment" / "cifar10h" / "cifar10h-probs.npy", allow_pickle=False
    )
    if len(people) == len(p):  # all images were taken
        found = spearmanr(entropy(p, axis=1), entropy(people, axis=1)).statistic
        scores["CIFAR-10H, Spearman of entropies"] = float(found)
    return scores


def score(arguments: Arguments, export: pathlib.Path, drawn: Mapping[str, np.ndarray]) -> Scores:
    """Compute all measures of one model."""

    def features(images: np.ndarray) -> np.ndarray:
        return embed(export, images, arguments.size)

    train, test = (
        read_arrays(image_file(arguments, f"tiny_imagenet_{s}")) for s in ("train", "test")
    )
    x, x_test = features(train["images"]), features(test["images"])
    scores = {kind: odd_one_out(x_test, t)["accuracy_cosine"] for kind, t in drawn.items()}
    unit, unit_test = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (x, x_test))
    for kind, key, counts in (("fine", "labels", (1,)), ("coarse", "coarse", (1, 5))):
        for shots in counts:
            sides = (unit, train[key]), (unit_test, test[key])
            accuracy, _ = few_shot(*sides, shots=shots, repetitions=3)
            scores[f"{shots}-shot, {kind}"] = accuracy
    superclass = np.zeros(200, int)
    superclass[train["labels"]] = train["coarse"]
    rows = np.random.default_rng(0).permutation(len(unit))[:6000]
    shift = shift_probe(
        (unit[rows], train["labels"][rows]), (unit_test, test["labels"]), superclass
    )
    scores |= {f"coarse, {which} classes": value for which, value in shift.items()}
    return scores | cifar_scores(arguments, features)
