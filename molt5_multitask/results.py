"""What a finished training run leaves: the exported model, held-out predictions, scores, curves."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from matplotlib.figure import Figure

from common import Experiment
from common.files import local_folder
from common.report import provenance, table
from common.runs import Curves, read_curves
from common.task import Params
from molt5_multitask.corpus import copy_baseline
from molt5_multitask.pretrained import save_pretrained
from molt5_multitask.tasks import TASKS
from molt5_multitask.training import MultitaskT5
from molt5_multitask.validation import HeldOutWriter, score

SHOWN = ("validity", "Morgan", "top-1", "accuracy 90 %", "ROUGE-L", "BLEU-4")
"""Scores of the summary, beside the exact match of the strings."""


def export(experiment: Experiment[MultitaskT5], params: Params) -> str:
    """Write model and vocabulary to `export` in the work folder, in Hugging Face's form."""
    path = f"{experiment.workdir or '.'}/export"
    with local_folder(path) as folder:
        experiment.task.tokenizer.save(folder)
        save_pretrained(folder, experiment.task.model, params)
    return path


def score_held_out(experiment: Experiment[MultitaskT5], params: Params) -> dict[str, Any]:
    """Decode held-out rows of each task greedily, write them down, and score them.

    Every process decodes all of them on a device of its own; the first one writes.

    Returns:
      The scores by task; "exact match" is that of the strings, "copy baseline" that of copying the
      input.
    """
    task = experiment.task
    folder = epath.Path(experiment.workdir or ".") / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    first = jax.process_index() == 0
    writer = HeldOutWriter(task=task, rows=task.test_rows)
    found: dict[str, Any] = {}
    for name, (examples, outputs) in writer(params, progress=first).items():
        lines = ["input\treference\toutput_1"]
        lines += [f"{e.input}\t{e.target}\t{out}" for e, out in zip(examples, outputs, strict=True)]
        if first:
            (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
        found[name] = {
            "rows": len(examples),
            "copy baseline": copy_baseline({name: examples})[name],
            **score(examples, outputs),
        }
    return found


def write(experiment: Experiment[MultitaskT5], scores: Mapping[str, Any]) -> str:
    """Write `results.json`, `results.md` and the learning curves; return the Markdown."""
    workdir = experiment.workdir or "."
    origin = provenance()
    curves = read_curves(workdir)
    losses = {name: curve[-1][1] for name, curve in curves.items() if name.endswith("loss")}
    content = {**origin, "steps": experiment.steps, "losses": losses, "tasks": scores}
    header = ("task", "rows", "exact match", "copying the input", "other scores")
    rows = [
        [
            name,
            f"{row['rows']:,}",
            f"{row['exact match']:.3f}",
            f"{row['copy baseline']:.3f}",
            ", ".join(f"{key} {row[key]:.3f}" for key in SHOWN if key in row),
        ]
        for name, row in scores.items()
    ]
    text = "\n\n".join(
        (
            f"# {experiment.steps:,} steps, held-out rows, greedy decoding",
            f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
            table(header, rows),
            "![learning curves](learning_curves.png)",
        )
    )
    with local_folder(workdir) as folder:
        (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
        (folder / "results.md").write_text(text + "\n")
        learning_curves(curves).savefig(folder / "learning_curves.png", dpi=150)
    return text


def learning_curves(curves: Curves) -> Figure:
    """Draw the training loss and the validation loss of each task over the steps."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    labels = {"train/loss": "training, all tasks"}
    labels |= {f"valid/{name}/loss": f"held out, {name.replace('_', ' ')}" for name in TASKS}
    for key, label in labels.items():
        if key in curves:
            training = key == "train/loss"
            axes.plot(
                *zip(*curves[key], strict=True),
                label=label,
                color="black" if training else None,
                linewidth=1,
                marker=None if training else ".",
            )
    axes.set_xlabel("step")
    axes.set_ylabel("loss of a token")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure
