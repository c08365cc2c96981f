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
several seeds. Their temperature, one for both, is that at which the start fits the human-aligned
labels of validation triplets best.

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
`students.md` and `students.png` beside this folder.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from alignment.evaluation.figures import COLOURS
from alignment.files import read_arrays
from alignment.train import run as train_and_export
from alignment.triplets.shared_images import Pool
from benchmarks.alignment.students.data import Arguments, image_file
from benchmarks.alignment.students.labels import make_triplets
from benchmarks.alignment.students.measures import Scores, score, test_triplets
from benchmarks.alignment.students.training import (
    start_experiment,
    start_losses,
    student_experiment,
)
from common import Experiment
from common.files import replace
from common.perf import enable_compile_cache
from common.report import provenance, spread, table

OUTPUT = pathlib.Path(__file__).parent


def train_and_score(
    arguments: Arguments, experiment: Experiment[Any], drawn: Mapping[str, np.ndarray]
) -> Scores:
    """Return the scores of a model; train it and compute them where they are not there yet."""
    path = pathlib.Path(experiment.workdir or "") / "scores.json"
    if not path.is_file():
        metrics = train_and_export(experiment)
        scores = score(arguments, path.parent / "export", drawn)
        logged = {
            "test/accuracy": "test accuracy, fine",
            f"synthetic/cluster_border_{arguments.clusters}/accuracy": (
                "accuracy on AligNet's validation labels"
            ),
        }
        scores |= {name: metrics[key] for key, name in logged.items() if key in metrics}
        replace(path, (json.dumps(scores, indent=1) + "\n").encode())
    return json.loads(path.read_text())


def run_study(arguments: Arguments) -> dict[str, Any]:
    """Train and score everything that is not there yet."""
    pool = Pool(triplets=256, groups=16, images_each=4)
    entropies = make_triplets(arguments, pool)
    test = read_arrays(image_file(arguments, "tiny_imagenet_test"))
    drawn = test_triplets(arguments, test["labels"], test["coarse"])
    models: dict[str, list[Scores]] = {
        "start": [train_and_score(arguments, start_experiment(arguments), drawn)],
        "AligNet": [],
        "control": [],
    }
    losses = start_losses(arguments, pool)
    tau = min(losses, key=losses.__getitem__)
    for seed in arguments.seeds:
        for model, aligned in (("AligNet", True), ("control", False)):
            experiment = student_experiment(arguments, pool, seed, tau, aligned=aligned)
            scores = train_and_score(arguments, experiment, drawn)
            models[model].append(scores)
            print(model, seed, json.dumps(scores, indent=1), flush=True)
    return {"entropies": entropies, "start's loss by tau": losses, "tau": tau, "models": models}


def report(found: Mapping[str, Any]) -> str:
    """Write the table."""
    models: Mapping[str, list[Scores]] = found["models"]
    measures = list(dict.fromkeys(m for rows in models.values() for row in rows for m in row))
    lines = []
    for m in measures:
        columns = ([row[m] for row in rows if m in row] for rows in models.values())
        lines.append((m, *(spread(values) if values else "-" for values in columns)))
    entropies = ", ".join(f"{k} {v:.3f}" for k, v in found["entropies"].items())
    losses = ", ".join(
        f"{tau:g}: {value:.3f}" for tau, value in found["start's loss by tau"].items()
    )
    return "\n\n".join(
        [
            table(("measure", *models), lines),
            "Odd-one-out chance is 0.333. Spread: standard deviation over seeds of the student, "
            "from one start.",
            f"Mean entropy of the labels, nats, and scale of the control's features: {entropies}.",
            f"The start's loss on validation triplets by temperature: {losses}; "
            f"taken: {found['tau']:g}.",
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
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def main(arguments: Arguments) -> None:
    """Run the study, and write the results."""
    enable_compile_cache()
    found = run_study(arguments)
    origin = provenance()
    settings = {k: str(v) for k, v in dataclasses.asdict(arguments).items() if k != "shared"}
    document = {**origin, "arguments": settings, **found}
    OUTPUT.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    draw_figure(found).savefig(OUTPUT.with_suffix(".png"), dpi=150)
    parts = [
        "# Students of human-aligned and of raw labels, on photographs",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        "What is what: see `students/__main__.py`.",
        report(found),
        f"![Odd-one-out accuracy by level]({OUTPUT.with_suffix('.png').name})",
    ]
    OUTPUT.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
