"""The paper's claim on the synthetic corpus: one model for all tasks against one for each.

    python -m benchmarks.molt5_multitask.multitask

The quickstart's model, corpus, vocabulary and optimizer. All rows are packed, so that a step sees a
like number of tokens in every run. Compared on held-out rows, by the exact match of greedy outputs
and by the loss of a token:

- one model for all tasks, mixed equally (the paper), in proportion, and at temperature 2;
- one model for each task, with as many updates as the task has in the equal mixture (a fifth);
- the same with as many updates as the model for all tasks has, for `--long` only.

Several seeds of parameters and data order; the corpus is the same. Runs are kept in the work folder
and resume there. Writes `multitask.json`, `multitask.md` and `multitask.png` beside this file.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import tyro
from matplotlib.figure import Figure

from common import Experiment, train
from common.distributed import to_host
from common.files import replace
from common.perf import enable_compile_cache
from common.report import provenance, spread, table
from configs.molt5_multitask import quickstart
from molt5_multitask import results
from molt5_multitask.data.mixing import Mixing
from molt5_multitask.tasks import TASKS
from molt5_multitask.training import MultitaskT5

OUTPUT = pathlib.Path(__file__)
SHARED, ALONE, LONG = "all tasks, equal shares", "a model for each task", "the same, as many steps"
MIXINGS = {
    SHARED: Mixing(strategy="equal"),
    "all tasks, in proportion": Mixing(strategy="proportional"),
    "all tasks, temperature 2": Mixing(strategy="temperature", temperature=2.0),
}
MEASURES = ("exact match", "loss")
Scores = dict[str, dict[str, float]]
"""By task, then by measure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare one model for all tasks with one for each."""

    workdir: pathlib.Path = pathlib.Path("runs/molt5_multitask/multitask")
    """Folder of the runs."""
    steps: int = 1000
    """Steps of a model for all tasks, a multiple of five."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs."""
    long: bool = False
    """Train the models for each task as long as that for all, too."""


def run(arguments: Arguments, name: str, seed: int, steps: int, **changes: Any) -> Scores:
    """Train and score a model, or read what was found before."""
    folder = f"{name}, {steps} steps, seed {seed}".replace(" ", "_").replace(",", "")
    workdir = arguments.workdir / folder
    found = workdir / "scores.json"
    if not found.is_file():
        base = quickstart.config()
        experiment: Experiment[MultitaskT5] = dataclasses.replace(
            base,
            task=dataclasses.replace(base.task, eval_every=steps, **changes),
            steps=steps,
            seed=seed,
            workdir=str(workdir),
            optim=dataclasses.replace(base.optim, warmup_steps=steps // 5),
        )
        result = train(experiment, description=f"{name}, seed {seed}")
        scores = results.score_held_out(experiment, to_host(result.params))
        kept = {
            task: {
                "exact match": row["exact match"],
                "loss": result.metrics[f"valid/{task}/loss"],
            }
            for task, row in scores.items()
        }
        replace(found, (json.dumps(kept, indent=1) + "\n").encode())
        print(name, seed, kept, flush=True)
    return json.loads(found.read_text())


def measure(arguments: Arguments) -> dict[str, list[Scores]]:
    """Return the scores of every variant, for each seed."""
    found: dict[str, list[Scores]] = {}
    for seed in arguments.seeds:
        for name, mixing in MIXINGS.items():
            scores = run(arguments, name, seed, arguments.steps, mixing=mixing)
            found.setdefault(name, []).append(scores)
        lengths = {ALONE: arguments.steps // len(TASKS)}
        lengths |= {LONG: arguments.steps} if arguments.long else {}
        for name, steps in lengths.items():
            each: Scores = {}
            for task in TASKS:
                each |= run(arguments, f"{name}, {task}", seed, steps, tasks=(task,))
            found.setdefault(name, []).append(each)
    return found


def report(found: Mapping[str, list[Scores]], measure: str) -> str:
    """Return the table of a measure."""
    rows = [
        (task, *(spread([scores[task][measure] for scores in runs]) for runs in found.values()))
        for task in TASKS
    ]
    means = (
        spread([statistics.mean(scores[task][measure] for task in TASKS) for scores in runs])
        for runs in found.values()
    )
    return table((measure, *found), [*rows, ("mean of the tasks", *means)])


def draw(found: Mapping[str, list[Scores]]) -> Figure:
    """Draw the exact match of each task and variant, a point for each seed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, runs) in enumerate(found.items()):
        place = [x + 0.15 * (i - (len(found) - 1) / 2) for x in range(len(TASKS))]
        means = [statistics.mean(scores[task]["exact match"] for scores in runs) for task in TASKS]
        bars = axes.bar(place, means, 0.14, label=name, alpha=0.6)
        for scores in runs:
            values = [scores[task]["exact match"] for task in TASKS]
            axes.plot(place, values, ".", color=bars.patches[0].get_facecolor(), alpha=1.0)
    axes.set_xticks(range(len(TASKS)), [task.replace("_", " ") for task in TASKS])
    axes.set_ylabel("exact match, held-out rows")
    axes.legend(frameon=False, fontsize=8)
    return figure


def main(arguments: Arguments) -> None:
    """Run the comparison, and write the results."""
    enable_compile_cache()
    found = measure(arguments)
    origin = provenance()
    document = {**origin, "steps": arguments.steps, "seeds": arguments.seeds, "runs": found}
    OUTPUT.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    draw(found).savefig(OUTPUT.with_suffix(".png"), dpi=150)
    parts = [
        "# One model for all tasks against one for each, synthetic corpus",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"{arguments.steps:,} steps of a model for all tasks; mean and standard deviation of "
        f"{len(arguments.seeds)} seeds. What is what: see `multitask.py`.",
        *(report(found, measure) for measure in MEASURES),
        "![exact match by task](multitask.png)",
    ]
    OUTPUT.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
