"""VICE on real data: 297,338 human triplets of 1,854 THINGS objects; and its speed beside torch.

    python -m benchmarks.alignment.vice

Results: `alignment.vice` with its defaults, a tenth of the triplets held out (by sets of objects).
Beside it the published embedding on the same held-out triplets. That one was fitted to 4.7 million
triplets, most likely with these among them, so that its number is no held-out accuracy. The
embedding is also compared with the published one, dimension by dimension.

Speed: triplets a second, times seeds, of a whole training step: sample, likelihood, prior,
gradient and Adam. Ours is the step of `common.train`; the peer a torch loop written from the
specification, which fits one seed after the other. By turns in one process; medians of windows,
compiling left out.

Writes `vice.json` and `vice.md` beside this file, and the figures `vice_dimensions` and
`vice_convergence`; the run itself goes to `runs/alignment/vice`.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

# Torch's waiting threads would keep the cores busy while the other side runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import jax
import numpy as np
import tyro

from alignment.judgments import correct, pair_logits
from alignment.vice import __main__ as command
from alignment.vice.agreement import best_matches, similarity_correlation
from alignment.vice.model import Prior
from benchmarks.alignment.things import Things
from common import report
from common.data import stack_steps
from common.setup import prepare

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
BATCHES = (256, 8192)
SEEDS = (1, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure VICE."""

    data: pathlib.Path = pathlib.Path("../shared/data/alignment")
    """The shared data."""
    out: pathlib.Path = pathlib.Path("runs/alignment/vice")
    """Folder of the run."""
    seeds: int = 8
    """Seeds of the run."""
    steps: int | None = None
    """Steps of the run; None takes the command's."""
    results: bool = True
    """Fit and score."""
    speed: bool = True
    """Measure the speed; needs torch."""
    windows: int = 7
    """Windows of the clock."""


def settings(arguments: Arguments, things: Things) -> command.Arguments:
    """Return the run, which leaves out the triplets that the other benchmarks score."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    unseen = []
    for name, (triplets, _) in (("347", things.distributions), ("1001", things.diagnostic)):
        unseen.append(arguments.out / f"unseen_{name}.npz")
        np.savez(unseen[-1], triplets=triplets)
    steps = {} if arguments.steps is None else {"steps": arguments.steps}
    return command.Arguments(
        triplets=things.human_path,
        names=arguments.data / "things_spose/unique_id.txt",
        out=arguments.out,
        leave_out=tuple(unseen),
        seeds=arguments.seeds,
        **steps,
    )


def measure_results(arguments: Arguments) -> dict[str, Any]:
    """Fit, and compare with the published embedding."""
    things = Things(folder=arguments.data)
    run = settings(arguments, things)
    best = command.run(run)
    for name in ("dimensions", "convergence"):
        shutil.copy(arguments.out / f"{name}.png", OUTPUT.with_name(f"vice_{name}.png"))
    held_out = command.experiment(run).task.split[1]

    def scores(embedding: np.ndarray) -> dict[str, float]:
        logits = pair_logits(embedding, held_out)
        return {
            "accuracy": float(correct(logits).mean()),
            "NLL": float(-jax.nn.log_softmax(logits)[:, 0].mean()),
            **things.uncertainty(embedding),
        }

    found = json.loads((arguments.out / "vice.json").read_text())
    return {
        **{key: found[key] for key in ("training triplets", "held-out triplets", "seeds")},
        **{key: found[key] for key in ("best", "all seeds", "agreement")},
        "ours": scores(best.values),
        "published": scores(things.vice),
        "against the published": {
            "dimensions of ours, best match": float(best_matches(best.values, things.vice).mean()),
            "published dimensions, best match": float(
                best_matches(things.vice, best.values).mean()
            ),
            "similarities": similarity_correlation(best.values, things.vice),
        },
    }


# --- Speed ------------------------------------------------------------------------------------


def torch_loop(
    objects: int, triplets: np.ndarray, batch: int, dimensions: int, prior: Prior
) -> Any:
    """Return a function that takes one training step of one seed."""
    import torch

    mean = torch.nn.Parameter(torch.rand(objects, dimensions))
    log_scale = torch.nn.Parameter(torch.full((objects, dimensions), -2.3))
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.01)
    data = torch.from_numpy(triplets.astype(np.int64))
    spike, slab, weight = prior.spike_scale, prior.slab_scale, prior.spike_weight
    spike_log, slab_log = np.log(weight / spike), np.log((1 - weight) / slab)

    def step() -> None:
        rows = data[torch.randint(len(data), (batch,))]
        noise = torch.randn_like(mean)
        x = mean + log_scale.exp() * noise
        y = x.relu()
        i, j, k = (y[rows[:, c]] for c in range(3))
        logits = torch.stack([(i * j).sum(1), (i * k).sum(1), (j * k).sum(1)], 1)
        nll = -torch.log_softmax(logits, 1)[:, 0].mean()
        log_p = torch.logaddexp(spike_log - (x / spike) ** 2 / 2, slab_log - (x / slab) ** 2 / 2)
        excess = -(log_scale + noise**2 / 2 + log_p).sum()
        loss = nll + excess / len(data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def jax_loop(run: command.Arguments) -> Callable[[], None]:
    """Return a function that takes `command.CALL` training steps of all seeds."""
    setup = prepare(dataclasses.replace(command.experiment(run), workdir=None))
    state = [setup.init_state()]
    batches = dict(stack_steps(setup.data, 0, command.CALL))

    def steps() -> None:
        state[0], window = setup.train_step(state[0], batches)
        jax.block_until_ready(window)

    steps()
    return steps


def measure_speed(arguments: Arguments) -> list[dict[str, Any]]:
    """Time both by turns, for each size of batch and number of seeds."""
    things = Things(folder=arguments.data)
    found = []
    for batch in BATCHES:
        for seeds in SEEDS:
            run = dataclasses.replace(
                settings(arguments, things), batch_size=batch, seeds=seeds, dimensions=100
            )
            ours = jax_loop(run)
            theirs = torch_loop(len(things.names), things.human, batch, 100, run.prior)
            rates: dict[str, list[np.ndarray]] = {"ours": [], "torch": []}
            for _ in range(arguments.windows + 1):
                for name, loop, number in (("ours", ours, 1), ("torch", theirs, command.CALL)):
                    begin = np.array([time.perf_counter(), time.process_time()])
                    for _ in range(number):
                        loop()
                    taken = np.array([time.perf_counter(), time.process_time()]) - begin
                    count = seeds if name == "ours" else 1
                    rates[name].append(batch * command.CALL * count / taken)
            kept = {name: np.array(values[1:]) for name, values in rates.items()}
            found.append(
                {
                    "batch": batch,
                    "seeds": seeds,
                    **{f"{n}, triplets/s": np.median(v, 0).tolist() for n, v in kept.items()},
                    **{
                        f"{n}, range": [v.min(0).tolist(), v.max(0).tolist()]
                        for n, v in kept.items()
                    },
                    "ratio": (np.median(kept["ours"], 0) / np.median(kept["torch"], 0)).tolist(),
                }
            )
            print(found[-1], flush=True)
    return found


def write(document: dict[str, Any]) -> None:
    """Write the JSON file and the tables made of it."""
    OUTPUT.write_text(json.dumps(document, indent=1) + "\n")
    parts = ["# VICE on human THINGS triplets"]
    for what, part in document.items():
        parts.append(f"{part['machine']}; {part['date']}; {part['versions']}; `{part['command']}`")
        parts += results_text(part) if what == "results" else [speed_table(part["rows"])]
    OUTPUT.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def results_text(found: dict[str, Any]) -> list[str]:
    """Return the tables of the run."""
    seeds = found["seeds"]
    header = ["seed", *seeds[0]]
    rows = [
        [
            f"{i} (kept)" if i == found["best"] else str(i),
            *(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()),
        ]
        for i, row in enumerate(seeds)
    ]
    compared = ["accuracy", "NLL", "entropy", "KL", "max p"]
    both = [
        [name, *(f"{found[name][key]:.4f}" for key in compared)] for name in ("ours", "published")
    ]
    together = found["all seeds"]
    return [
        f"{found['training triplets']:,} triplets to fit, {found['held-out triplets']:,} held out.",
        report.table(header, rows),
        "All seeds together, mean of their probabilities: accuracy "
        f"{together['accuracy, posterior mean of p']:.4f}, NLL "
        f"{together['nll, posterior mean of p']:.4f}. Agreement between seeds: "
        + ", ".join(f"{k} {v:.3f}" for k, v in found["agreement"].items())
        + ". With the published embedding: "
        + ", ".join(f"{k} {v:.3f}" for k, v in found["against the published"].items())
        + ".",
        report.table(["embedding, mean, on the held-out triplets", *compared], both),
        "Entropy (Spearman) and KL(human, model) on 347 answer distributions, max p against modal "
        "share (Spearman) on 1,001 triplets; none of them was fitted by ours.",
        "![objects with the largest values in each dimension](vice_dimensions.png)",
        "![dimensions and accuracy by step](vice_convergence.png)",
    ]


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Return triplets a second and the ratios."""
    header = (
        "batch",
        "seeds",
        "ours, triplets/s: wall",
        "processor",
        "torch, triplets/s: wall",
        "processor",
        "ratio: wall",
        "processor",
    )
    return report.table(
        header,
        [
            [
                f"{row['batch']:,}",
                str(row["seeds"]),
                *(f"{v:,.0f}" for v in (*row["ours, triplets/s"], *row["torch, triplets/s"])),
                *(f"{v:.1f}" for v in row["ratio"]),
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Measure, and write the tables; a part that is not measured keeps its numbers."""
    arguments = tyro.cli(Arguments)
    document = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    if arguments.results:
        document["results"] = {**report.provenance(), **measure_results(arguments)}
        write(document)
    if arguments.speed:
        document["speed"] = {**report.provenance(), "rows": measure_speed(arguments)}
        write(document)


if __name__ == "__main__":
    main()
