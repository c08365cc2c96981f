"""The student stage on real photographs: does alignment with people do what the paper says?

    python -m benchmarks.alignment.students

Tiny ImageNet (200 fine, 20 coarse classes; 135 training images each) from `../shared/data/images`,
human judgments from `../shared/data/alignment`. A small ViT is trained on the fine classes: the
start. The teacher is a stand-in for a strong model, made through the classes' THINGS concepts: its
features of an image are the CLIP ViT-B/32 features of the concept that its class is, or is a kind
of (157 classes; the images of the other 43 are in no triplet). So it knows the class of each
training image and nothing else of it. Its transform is fitted to VICE's choices (the teacher
stage). Cluster-border triplets are labelled by the transformed features, and for the control by the
features as they are, scaled so that over random triplets of classes the labels have the same mean
entropy. AligNet and control students start from the same weights, and differ in the labels alone;
several seeds.

Measured on test images, features of the backbone, cosine:

- coarse: triplets with two of one coarse class, of different fine classes, and one of another;
- fine: three fine classes of one coarse class, the odd one is that which VICE's embedding of the
  concepts finds least like the others, where its most probable pair has 0.45 or more;
- class border: two of one fine class, one of another of the same coarse class;
- the same two without people's help, coarse and class border, among the 43 unlabelled classes;
- 1-shot classification, fine, and 1- and 5-shot, coarse; coarse classes learned on half of their
  fine classes and tested on the others (shift, as BREEDS); a linear probe for CIFAR-10, and
  Spearman's correlation of its entropy with that of people's labels (CIFAR-10H).

Everything is written to the work folder and resumes there; the results to `students.json`,
`students.md` and `students.png` beside this file.
"""

import dataclasses
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy.stats import entropy, spearmanr

from alignment.classifier import Classifier
from alignment.cluster import __main__ as cluster
from alignment.embedder import Embedder
from alignment.evaluation.figures import COLOURS
from alignment.evaluation.odd_one_out import odd_one_out
from alignment.evaluation.probes import few_shot, fit_logistic, shift_probe
from alignment.features import Features
from alignment.files import read_arrays, write_arrays
from alignment.images.preprocess import Preprocessing, named
from alignment.judgments import Standardisation, Transform, pair_logits, read_names
from alignment.student import Student
from alignment.teacher import __main__ as teacher
from alignment.teacher.fit import FitConfig
from alignment.train import run as train_and_export
from alignment.triplets import __main__ as triplets
from alignment.triplets.batches import TripletImages
from alignment.triplets.shared_images import Pool
from alignment.vit.config import ViTConfig, preset
from alignment.vit.pretrained import from_pretrained
from common import CheckpointConfig, Experiment, LogConfig, OptimConfig
from common.perf import enable_compile_cache
from common.report import provenance, table

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
Model = Literal["start", "AligNet", "control"]
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train the start, the students and their controls, and compare them."""

    workdir: pathlib.Path = pathlib.Path("runs/alignment/students")
    """Folder of everything in between."""
    shared: pathlib.Path = SHARED
    """Folder of the shared data."""
    size: Literal[32, 64] = 64
    """Side of the images, pixels; 32 are means of 2 x 2."""
    patch: int = 8
    """Side of a patch."""
    width: int = 128
    """Width of the ViT; its MLP has four times as much."""
    layers: int = 4
    """Blocks."""
    start_epochs: float = 10.0
    """Passes over the training images for the start; the longest part of all on a CPU."""
    student_steps: int = 800
    """Steps of each student."""
    student_rate: float = 3e-4
    """Peak of the students' learning rate."""
    pull: float = 1.5
    """Sum over the steps of learning rate times decay towards the start, as published."""
    teacher_steps: int = 2000
    """Steps of the teacher's fits."""
    clusters: int = 20
    """Clusters of the teacher's features."""
    train_triplets: int = 65_536
    """Training triplets, a multiple of 256."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students."""
    level_triplets: int = 20_000
    """Test triplets of each kind."""
    images_per_class: int | None = None
    """Take the first images of each class only, for a trial."""

    @property
    def model(self) -> ViTConfig:
        """The architecture of start and students."""
        return preset(
            "vit-tiny",
            image_size=self.size,
            patch=self.patch,
            width=self.width,
            mlp=4 * self.width,
            layers=self.layers,
            heads=self.width // 32,
        )


# --- Data -------------------------------------------------------------------------------------


def reader(folder: pathlib.Path) -> Callable[..., dict[str, np.ndarray]]:
    """Return the function that decodes the image files; it lies beside them."""
    spec = importlib.util.spec_from_file_location("read_images", folder / "read_images.py")
    if spec is None or spec.loader is None or not (folder / "read_images.py").is_file():
        raise FileNotFoundError(f"no read_images.py in {folder}: give --shared")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


def image_file(arguments: Arguments, name: str) -> pathlib.Path:
    """Decode an image file once, and return where its pixels lie."""
    path = arguments.workdir / "images" / f"{name}_{arguments.size}.npz"
    if not path.is_file():
        folder = arguments.shared / "images"
        load, size = reader(folder), arguments.size if name.startswith("tiny") else 32
        found = load(
            folder / f"{name}.npz", **({"size": 32} if size == 32 and "tiny" in name else {})
        )
        keep = np.ones(len(found["label"]), bool)
        if arguments.images_per_class is not None:
            order = np.argsort(found["label"], kind="stable")
            counts = np.bincount(found["label"])
            place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
            keep = np.zeros(len(order), bool)
            keep[order[place < arguments.images_per_class]] = True
        write_arrays(
            path,
            {
                "images": found["images"][keep],
                "names": np.char.decode(found["source"], "utf-8")[keep],
                "labels": found["label"][keep].astype(np.int32),
                "label_names": found["class_names"],
                "coarse": found["coarse"][keep].astype(np.int32),
                "coarse_names": found["coarse_names"],
            },
        )
    return path


def concepts(arguments: Arguments) -> Int[np.ndarray, "classes"]:
    """Return the THINGS row of each class, or of what it is a kind of; -1 for none."""
    lines = (arguments.shared / "images" / "class_to_things.tsv").read_text("utf-8").splitlines()
    header, *rows = (line.split("\t") for line in lines)
    at = {
        name: header.index(name)
        for name in ("dataset", "label", "things_row", "broader_things_row")
    }
    found = np.full(200, -1)
    for row in rows:
        if row[at["dataset"]] == "tiny_imagenet":
            value = row[at["things_row"]] or row[at["broader_things_row"]]
            if value:
                found[int(row[at["label"]])] = int(value)
    return found


# --- Teacher and triplets ---------------------------------------------------------------------


def make_teacher(arguments: Arguments) -> Transform:
    """Fit the transform of CLIP's features of the THINGS objects to VICE's choices."""
    folder, out = arguments.workdir / "teacher", arguments.workdir / "teacher" / "transform.npz"
    data = arguments.shared / "alignment"
    names = read_names(data / "things_spose" / "unique_id.txt")
    clip = np.load(
        data / "things_features" / "clip-vit-base-p32-embeddings.npy", allow_pickle=False
    )
    if not out.is_file():
        Features(features=clip, names=names, model="CLIP ViT-B/32").write(folder / "things.npz")
        teacher.run(
            teacher.Arguments(
                features=folder / "things.npz",
                triplets=data / "things_triplets" / "things_human_triplets_300k.npz",
                embeddings=(data / "vice" / "vice_things_final_embedding.npy",),
                lambdas=(1e-2, 3e-2, 1e-1, 3e-1),
                fit=FitConfig(steps=arguments.teacher_steps),
                out=out,
            )
        )
    return Transform.read(out)


def label_entropy(features: Float[np.ndarray, "n p"], drawn: Int[np.ndarray, "m 3"]) -> float:
    """Return the mean entropy, in nats, of the choices between images."""
    p = jax.nn.softmax(pair_logits(jnp.asarray(features, jnp.float32), drawn))
    return float(entropy(np.asarray(p, np.float64), axis=1).mean())


def make_triplets(arguments: Arguments, pool: Pool) -> dict[str, float]:
    """Make the triplets of AligNet and control; return the entropies of their labels."""
    out = arguments.workdir
    transform = make_teacher(arguments)
    clip = Features.read(out / "teacher" / "things.npz").features
    train = read_arrays(image_file(arguments, "tiny_imagenet_train"))
    row = concepts(arguments)[train["labels"]]
    known = row >= 0
    # Different classes in each triplet, so that no similarity is that of an image with itself.
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.unique(row[known]), (20_000, 3))
    drawn = drawn[(np.sort(drawn, 1)[:, 1:] != np.sort(drawn, 1)[:, :-1]).all(1)]
    target = label_entropy(transform(clip), drawn)
    low, high = 0.1, 100.0
    for _ in range(40):  # the larger the scale, the lower the entropy
        scale = (low * high) ** 0.5
        low, high = (scale, high) if label_entropy(scale * clip, drawn) > target else (low, scale)
    own = transform.standardisation
    scaled = dataclasses.replace(
        transform, standardisation=Standardisation(mean=scale * own.mean, std=scale * own.std)
    )
    features, path = out / "teacher" / "train.npz", out / "teacher" / "scaled.npz"
    Features(
        features=(scale * clip[row[known]]).astype(np.float32),
        names=train["names"][known],
        model="CLIP ViT-B/32 of the class's THINGS concept",
        labels=train["labels"][known],
        label_names=train["label_names"],
    ).write(features)
    scaled.write(path)
    clusters = out / "teacher" / "clusters.npz"
    cluster.run(
        cluster.Arguments(
            features=features, out=clusters, transform=path, clusters=arguments.clusters
        )
    )
    settings: dict[str, Any] = {
        "features": features,
        "clusters": clusters,
        "out": out / "triplets",
        "train": arguments.train_triplets,
        "val": 2048,
        "pool": pool,
    }
    triplets.run(triplets.Arguments(transform=path, **settings))
    triplets.run(triplets.Arguments(untransformed=True, **settings))
    return {"AligNet": target, "control": label_entropy(scale * clip, drawn), "scale": scale}


# --- Training ---------------------------------------------------------------------------------


def start_experiment(arguments: Arguments) -> Experiment[Classifier]:
    """Return the training of the start."""
    batch = 128
    path = image_file(arguments, "tiny_imagenet_train")
    rows = len(read_arrays(path, required=("labels",))["labels"])
    steps = max(2, round(arguments.start_epochs * rows / batch))
    return Experiment(
        task=Classifier(
            model=arguments.model,
            images=str(path),
            classes=200,
            test_images=str(image_file(arguments, "tiny_imagenet_test")),
            label_smoothing=0.1,
            shift=arguments.size // 8,
            eval_every=500,
        ),
        steps=steps,
        batch_size=batch,
        workdir=str(arguments.workdir / "start"),
        optim=OptimConfig(
            learning_rate=1e-3, warmup_steps=min(200, steps // 10), weight_decay=0.05, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=50, tensorboard=False),
    )


def student_experiment(
    arguments: Arguments, pool: Pool, seed: int, *, aligned: bool
) -> Experiment[Student]:
    """Return the training of a student or a control."""
    steps, warmup = arguments.student_steps, arguments.student_steps // 20
    rates = arguments.student_rate * (steps / 2)  # sum of warm-up and cosine
    name = f"{'alignet' if aligned else 'control'}_{seed}"
    return Experiment(
        task=Student(
            model=arguments.model,
            start_from=str(arguments.workdir / "start" / "export"),
            head_seed=seed,
            data_set=TripletImages(
                root=str(arguments.workdir / "triplets"),
                images=str(image_file(arguments, "tiny_imagenet_train")),
                labels="uncertainty_distillation" if aligned else "untransformed",
                sampling=f"cluster_border_{arguments.clusters}",
                group_triplets=pool.triplets,
                group_images=pool.images,
            ),
            eval_samplings=(),
        ),
        steps=steps,
        batch_size=pool.triplets,
        seed=seed,
        workdir=str(arguments.workdir / name),
        optim=OptimConfig(
            learning_rate=arguments.student_rate,
            warmup_steps=warmup,
            weight_decay=arguments.pull / rates,
            decay_to_init=True,
        ),
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=50, tensorboard=False),
    )


# --- Measures ---------------------------------------------------------------------------------


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


# --- The study --------------------------------------------------------------------------------


def run_study(arguments: Arguments) -> dict[str, Any]:
    """Train and score everything that is not there yet."""
    pool = Pool(triplets=256, groups=16, images_each=4)
    entropies = make_triplets(arguments, pool)
    runs: dict[str, tuple[Model, Experiment[Any]]] = {
        "start": ("start", start_experiment(arguments))
    }
    for seed in arguments.seeds:
        for model, aligned in (("AligNet", True), ("control", False)):
            experiment = student_experiment(arguments, pool, seed, aligned=aligned)
            runs[f"{model}, seed {seed}"] = (model, experiment)  # type: ignore[assignment]
    test = read_arrays(image_file(arguments, "tiny_imagenet_test"))
    drawn = test_triplets(arguments, test["labels"], test["coarse"])
    found: dict[str, Any] = {"entropies": entropies, "models": {}, "seconds": {}}
    for name, (model, experiment) in runs.items():
        path = pathlib.Path(experiment.workdir or "") / "scores.json"
        if not path.is_file():
            began = time.monotonic()
            metrics = train_and_export(experiment)
            seconds = time.monotonic() - began
            scores = score(arguments, path.parent / "export", drawn)
            if model == "start":
                scores["test accuracy, fine"] = metrics["test/accuracy"]
            path.write_text(json.dumps({"seconds": seconds, "scores": scores}, indent=2) + "\n")
        document = json.loads(path.read_text())
        found["models"].setdefault(model, []).append(document["scores"])
        found["seconds"][name] = document["seconds"]
        print(name, json.dumps(document["scores"], indent=1), flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    """Write a mean, with its standard deviation where there are several values."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def report(found: Mapping[str, Any]) -> str:
    """Write the table."""
    models: Mapping[str, list[Scores]] = found["models"]
    measures = list(dict.fromkeys(m for rows in models.values() for row in rows for m in row))
    rows = [
        (m, *(spread([row[m] for row in rows]) if m in rows[0] else "" for rows in models.values()))
        for m in measures
    ]
    entropies = ", ".join(f"{k} {v:.3f}" for k, v in found["entropies"].items())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in found["seconds"].items())
    return "\n\n".join(
        [
            table(("measure", *models), rows),
            "Odd-one-out chance is 0.333. Spread: standard deviation over seeds of the student, "
            "from one start.",
            f"Mean entropy of the labels, nats, and scale of the control's features: {entropies}.",
            f"Training took: {seconds}.",
        ]
    )


def draw_figure(found: Mapping[str, Any]) -> Figure:
    """Draw the accuracies of the levels, with their spread."""
    models: Mapping[str, list[Scores]] = found["models"]
    kinds = [m for m in models["start"][0] if m.startswith(("coarse", "fine", "class border"))]
    kinds = [m for m in kinds if "classes" not in m or "unlabelled" in m]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, ((name, rows), colour) in enumerate(zip(models.items(), COLOURS, strict=False)):
        means = [statistics.mean(row[k] for row in rows) for k in kinds]
        error = [statistics.stdev([r[k] for r in rows]) if len(rows) > 1 else 0 for k in kinds]
        at = np.arange(len(kinds)) + 0.27 * (i - 1)
        axes.bar(at, means, 0.25, yerr=error, label=name, color=colour, capsize=3)
    axes.axhline(1 / 3, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(kinds)), [k.replace(", ", ",\n") for k in kinds], fontsize=8)
    axes.set_ylabel("odd-one-out accuracy")
    axes.legend(frameon=False)
    return figure


def main(arguments: Arguments) -> None:
    """Run the study, and write the results."""
    enable_compile_cache()
    found = run_study(arguments)
    origin = provenance()
    here = pathlib.Path(__file__)
    settings = {k: str(v) for k, v in dataclasses.asdict(arguments).items() if k != "shared"}
    document = {**origin, "arguments": settings, **found}
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    draw_figure(found).savefig(here.with_suffix(".png"), dpi=150)
    parts = [
        "# Students of human-aligned and of raw labels, on photographs",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        "What is what: see `students.py`.",
        report(found),
        f"![Odd-one-out accuracy by level]({here.with_suffix('.png').name})",
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
