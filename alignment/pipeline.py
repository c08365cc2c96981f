"""The whole pipeline, from judgments to an aligned model, on a world that it draws itself.

    python -m alignment.pipeline configs/alignment/quickstart.py

runs every stage by the function that its own command calls:

    world -> train a teacher's network and the student's start -> embed -> vice -> teacher ->
    cluster -> triplets (aligned, and untransformed for the control) -> train the student and the
    control -> embed -> evaluate

A stage that is done is passed over when the same config is run again in the same folder, and a
stage that was done with other settings is refused; see `alignment.stages`.
"""

import json
import pathlib
from collections.abc import Mapping

import jax

from alignment import export
from alignment.evaluation.results import number
from alignment.stages import Pipeline, in_folder, run_stage
from common import cli
from common.files import is_remote
from common.report import table


def run(config: Pipeline) -> dict[str, float]:
    """Run the pipeline, or what is left of it.

    Returns:
      The accuracies by model and level.
    """
    if not isinstance(config, Pipeline):
        raise ValueError(
            f"this is a config of {type(config).__name__}: run it by python -m alignment.train"
        )
    if jax.process_count() > 1:
        raise ValueError(
            "the pipeline's stages are for one process; on several, run alignment.embed and "
            "alignment.train, which divide their work, and the others on one"
        )
    assert config.workdir is not None
    if is_remote(config.workdir):
        raise ValueError(
            f"the pipeline writes its files to a disk, not to {config.workdir}; alignment.train by "
            "itself may keep its run in a bucket"
        )
    workdir = pathlib.Path(config.workdir)
    stages = list(config.stages())
    times = {}
    for place, stage in enumerate(stages, 1):
        print(f"\n[{place}/{len(stages)}] {stage.name}", flush=True)
        seconds = run_stage(stage, workdir)
        times[stage.name] = "done before" if seconds is None else f"{seconds:.0f} s"
        print(f"[{place}/{len(stages)}] {stage.name}: {times[stage.name]}", flush=True)
    folder = in_folder(config.evaluate, config.workdir).out
    scores = read_accuracies(folder)
    report = accuracy_table(scores)
    (workdir / "accuracies.md").write_text(report + "\n", "utf-8")
    print("\n" + table(("stage", "time"), list(times.items())))
    print("\nOdd-one-out accuracy (cosine) against observers, by level:\n\n" + report)
    student, params = export.restore(in_folder(config.student, config.workdir).workdir)
    numbers, control = (
        {f"odd one out, {k}": v for k, v in scores[m].items()} for m in ("after", "control")
    )
    export.write(workdir / "aligned", student, params, numbers, control=control)
    print(f"\naligned model, its card beside it: {workdir / 'aligned'}")
    print("figures: " + ", ".join(map(str, sorted(folder.glob("*.png")))))
    return {f"{model}/{level}": v for model, row in scores.items() for level, v in row.items()}


def read_accuracies(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    """Read the odd-one-out accuracies of each model from the results of an evaluation.

    Returns:
      By model, then by level; "objects" is over random triplets of the judged objects. The noise
      ceilings stand as a model of their own.
    """
    sections = json.loads((folder / "results.json").read_text())["sections"]
    levels = sections["levels"]
    found = {
        model: {
            measure.removesuffix("/accuracy_cosine"): value
            for measure, value in scores.items()
            if measure.endswith("/accuracy_cosine")
        }
        for model, scores in levels["scores"].items()
    }
    for model, scores in sections["odd one out"]["scores"].items():
        found[model]["objects"] = scores["accuracy_cosine"]
    ceilings = zip(next(iter(found.values())), levels["references"].values(), strict=False)
    return {**found, "noise ceiling": dict(ceilings)}


def accuracy_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the accuracies as a Markdown table, a row for each model."""
    levels = list(next(iter(scores.values())))
    rows = [[model, *(number(row.get(level)) for level in levels)] for model, row in scores.items()]
    return table(["", *levels], rows)


if __name__ == "__main__":
    cli.main(run)
