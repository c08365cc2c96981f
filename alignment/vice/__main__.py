"""Fit embeddings to human odd-one-out choices.

    python -m alignment.vice triplets.npz --names unique_id.txt --out runs/vice

Fits several seeds at once, and resumes where it stopped. Writes `embedding.npz` (the seed with the
best bound, pruned), `seeds/*.npz` (all of them), `choices.npz` (the choice probabilities that all
seeds together expect), `vice.json`, figures, and the log and checkpoints of the run.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro

from alignment import judgments
from alignment.vice import figures
from alignment.vice.agreement import agreement
from alignment.vice.embedding import Embedding, soft_choices
from alignment.vice.model import Prior, Vice
from common import (
    CheckpointConfig,
    Experiment,
    LogConfig,
    OptimConfig,
    StepConfig,
    cli,
    train,
)
from common.report import provenance
from common.runs import Curves, read_curves

CALL = 10
"""Steps of one compiled call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Fit embeddings to human odd-one-out choices."""

    triplets: tyro.conf.Positional[pathlib.Path]
    """Choices: .npz, .npy or text, three columns, the odd one last, counted from 0."""
    names: pathlib.Path
    """Names of the objects, one a line; the triplets refer to its lines."""
    out: pathlib.Path
    """Folder to write to."""
    leave_out: tuple[pathlib.Path, ...] = ()
    """Files of triplets whose sets of objects must stay unseen."""
    held_out: float = 0.1
    """Share of the triplets that is kept for measuring accuracy."""
    seeds: int = 8
    """Independent embeddings."""
    dimensions: int = 50
    """Dimensions before pruning."""
    prior: Prior = Prior()
    """Prior of each coordinate."""
    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 8192
    """Triplets of a step."""
    learning_rate: float = 0.1
    """Peak of Adam's learning rate, which falls to 0 with half a cosine."""
    seed: int = 0
    """Seed of all randomness."""
    eval_every: int = 100
    """Cadence of the evaluations, in steps."""
    samples: int = 50
    """Posterior samples of each seed for the choice probabilities."""
    choices: pathlib.Path | None = None
    """Triplets whose choice probabilities to write; those of the fit, and held out, if None."""
    figures: bool = True
    """Draw the figures."""


def experiment(arguments: Arguments) -> Experiment[Vice]:
    """Return the training run."""
    every = arguments.eval_every
    return Experiment(
        task=Vice(
            triplets=str(arguments.triplets),
            names=str(arguments.names),
            leave_out=tuple(map(str, arguments.leave_out)),
            held_out=arguments.held_out,
            seeds=arguments.seeds,
            dimensions=arguments.dimensions,
            prior=arguments.prior,
            eval_every=every,
        ),
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        workdir=str(arguments.out / "training"),
        optim=OptimConfig(name="adam", learning_rate=arguments.learning_rate),
        step=StepConfig(per_call=CALL),
        checkpoint=CheckpointConfig(every=every),
        log=LogConfig(every=every, tensorboard=False),
    )


def summarise(
    arguments: Arguments, task: Vice, seeds: Sequence[Embedding], curves: Curves
) -> dict[str, Any]:
    """Return the numbers of a finished run; of each seed, and the agreement between them."""
    train_triplets, held_out = task.split
    last = {name: curve[-1][1] for name, curve in curves.items()}
    rows = []
    for i, embedding in enumerate(seeds):
        steps, counts = zip(*curves[f"held_out/dimensions/{i}"], strict=True)
        changes = np.flatnonzero(np.diff(counts))
        expected = soft_choices([embedding], held_out, samples=arguments.samples).probabilities
        rows.append(
            {
                "bound": last[f"train/bound/{i}"],
                "dimensions": embedding.mean.shape[1],
                "dimensions stable since step": steps[changes[-1] + 1 if len(changes) else 0],
                "accuracy": last[f"held_out/accuracy/{i}"],
                "nll": last[f"held_out/nll/{i}"],
                "accuracy, posterior mean of p": float(judgments.correct(expected).mean()),
                "nll, posterior mean of p": float(-np.log(expected[:, 0]).mean()),
            }
        )
    together = soft_choices(seeds, held_out, samples=arguments.samples).probabilities
    return {
        "training triplets": len(train_triplets),
        "held-out triplets": len(held_out),
        "seeds": rows,
        "best": int(np.argmin([row["bound"] for row in rows])),
        "all seeds": {
            "accuracy, posterior mean of p": float(judgments.correct(together).mean()),
            "nll, posterior mean of p": float(-np.log(together[:, 0]).mean()),
        },
        "agreement": agreement(seeds) if len(seeds) > 1 else None,
    }


def run(arguments: Arguments) -> Embedding:
    """Fit, write all files, and return the embedding of the seed with the best bound."""
    run_config = experiment(arguments)
    task = run_config.task
    split = task.split
    asked = np.concatenate(split)
    if arguments.choices is not None:
        asked = judgments.read_triplets(arguments.choices, len(task.objects))
    print(f"{len(split[0]):,} triplets to fit, {len(split[1]):,} held out")
    result = train(run_config, description=f"{task.seeds} embeddings")
    seeds = [embedding.pruned() for embedding in task.embeddings(result.params)]
    out = arguments.out
    curves = read_curves(out / "training")
    found = summarise(arguments, task, seeds, curves)
    best = seeds[found["best"]]
    best.write(out / "embedding.npz")
    for i, embedding in enumerate(seeds):
        embedding.write(out / "seeds" / f"{i}.npz")
    soft_choices(seeds, asked, samples=arguments.samples).write(out / "choices.npz")
    document = {**provenance(), **found}
    (out / "vice.json").write_text(json.dumps(document, indent=1) + "\n")
    drawn = []
    if arguments.figures:
        panels = {
            "dimensions": figures.top_objects(best),
            "convergence": figures.convergence(curves, len(seeds)),
        }
        drawn = figures.write(out, panels)
    print(json.dumps({k: found[k] for k in ("best", "seeds", "all seeds", "agreement")}, indent=1))
    files = ("embedding.npz", "seeds/*.npz", "choices.npz", "vice.json")
    print("written: " + ", ".join([*(str(out / name) for name in files), *drawn]))
    return best


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
