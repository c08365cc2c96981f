"""The teacher on real data: CLIP ViT-B/32 features, human THINGS triplets, objects left out.

    python -m benchmarks.alignment.teacher

Three folds of objects; a map is fitted on two thirds of them and scored by the human triplets among
the others, as in section 7.2 of the specification. The triplets of the 347 answer distributions and
of the 1,001 repeated triplets are nowhere used for fitting; the columns on them are not
object-disjoint.

The rows of the specification's protocol (512 independent triplets a step, lambda 0.1, fixed) are
there to be compared with its numbers. In those named "chosen", lambda is chosen within the training
objects of each fold, by a cross-validation of its own: the held-out objects play no part in it.
The regressions are no distillation: they predict the coordinates of VICE and both SPoSE embeddings
in closed form, linearly or by the kernel of `alignment.teacher.kernel`. Their regulariser, and the
weight of the text beside CLIP, are chosen within the training objects of each fold, too. The kind
of kernel, and that its metric is measured once, were not: some forty variants were tried on these
very folds, most of which differed by a thousandth or two. The rows with text know the concept's
name: word2vec's vector of it, and the nouns of WordNet above it.

What leaks: only rows of training objects are targets, but the embeddings were fitted by their
authors to judgments among all objects, so that these rows know a little of the held-out ones.

Speed: all folds and lambdas at once, against a torch loop that fits one map after the other, in
windows of a few steps by turns; the whole run is windows times steps. Two torch loops: the
specification's (independent triplets), and one with the same batches as ours, whose maps are
compared with ours after a few steps.

Writes `teacher.json` and `teacher.md` beside this file.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

# Torch's waiting threads would keep the cores busy while the other side runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import tyro

from alignment.judgments import object_folds, split_by_object
from alignment.teacher.choices import Choices, ExpectedChoices, GivenChoices
from alignment.teacher.cross_validation import averaged, cross_validate, score
from alignment.teacher.fit import CHUNK, FitConfig, Group, Maps, draw, fit, iterate
from alignment.teacher.kernel import fit_kernel
from benchmarks.alignment.things import Things
from common import report

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
PUBLISHED = {
    "untrained CLIP, unit norm": (0.502, 0.502, 1.076, 0.073, 0.173, 0.273),
    "VICE targets, random triplets": (0.594, 0.593, 0.888, 0.492, 0.099, 0.588),
    "VICE targets, human-sampled triplets": (0.595, 0.595, 0.887, 0.492, 0.099, 0.587),
    "hard human labels": (0.593, 0.594, 0.891, 0.467, 0.105, 0.564),
    "VICE itself": (0.633, 0.631, 0.827, 0.563, 0.093, 0.785),
}
"""The specification's measurements."""
MEASURES = ("dot", "cosine", "NLL", "entropy", "KL", "max p")
LAMBDAS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From the training objects (a mask) and their embedding to the embedding of all objects."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the teacher."""

    data: pathlib.Path = pathlib.Path("../shared/data/alignment")
    """The shared data."""
    steps: int = 2000
    """Steps of a fit."""
    maps: int = 3
    """Maps that the last rows average."""
    results: bool = True
    """Fit and score the maps."""
    regressions: bool = True
    """Fit and score the regressions."""
    speed: bool = True
    """Measure the speed; needs torch."""
    window: int = 10
    """Steps of a window of the torch loops; ours takes as many as one compiled call does."""
    windows: int = 7
    """Windows of each."""


class Results:
    """Scores by row of the table, mean and single folds."""

    def __init__(self, things: Things) -> None:
        self.things, self.found = things, {}
        self.held_out = object_folds(len(things.names))
        self.splits = [split_by_object(things.human, mask) for mask in self.held_out]

    def add(self, name: str, features: Callable[[int], np.ndarray], **notes: Any) -> None:
        """Score the features that each fold's map gives."""
        folds = [self.things.judge(features(k), test) for k, (_, test) in enumerate(self.splits)]
        mean = {m: statistics.fmean(f[m] for f in folds) for m in MEASURES}
        self.found[name] = {**mean, "folds": folds, **notes}
        print(name, {m: round(v, 4) for m, v in mean.items()}, flush=True)

    def add_maps(self, name: str, weights: np.ndarray, bias: np.ndarray, **notes: Any) -> None:
        """Score one map for each fold."""
        self.add(name, lambda k: self.things.features @ weights[k] + bias[k], **notes)

    def parts(self, mask: np.ndarray) -> np.ndarray:
        """Return three parts of the training objects: none of them is held out in this fold."""
        parts = np.zeros((3, len(mask)), bool)
        parts[:, ~mask] = object_folds(int((~mask).sum()), seed=1)
        return parts

    def groups(self, choices: Callable[[int], Choices], maps: int = 1) -> list[Group]:
        """Return what the maps of each fold are fitted on."""
        return [
            Group(choices(k).among(~mask), np.flatnonzero(~mask))
            for k, mask in enumerate(self.held_out)
            for _ in range(maps)
        ]


def fit_protocol(results: Results, steps: int) -> None:
    """Fit the specification's rows."""
    things = results.things
    config = FitConfig(objects_per_step=None, triplets_per_step=512, steps=steps)
    vice, n = ExpectedChoices.of(things.vice), len(things.names)
    human = GivenChoices(triplets=things.human, targets=vice.probabilities(things.human), objects=n)
    rows: dict[str, Choices] = {
        "VICE targets, random triplets": vice,
        "VICE targets, human-sampled triplets": human,
        "hard human labels": GivenChoices.hard(things.human, n),
    }
    for name, choices in rows.items():
        groups = results.groups(lambda _, choices=choices: choices)
        found = fit(things.features, groups, [0.1], config, description=name)
        results.add_maps(name, found.weights[:, 0], found.bias[:, 0])


def fit_chosen(results: Results, name: str, choices: Choices, *, maps: int, steps: int) -> None:
    """Choose lambda within each fold's training objects, then fit on all of those: by fold."""
    things, config = results.things, FitConfig(steps=steps)
    lambdas = (1e-2, 3e-2, 1e-1, 3e-1)
    chosen, weights, bias = [], [], []
    for k, mask in enumerate(results.held_out):
        inner = cross_validate(
            things.features,
            choices,
            things.human,
            results.parts(mask),
            lambdas,
            config,
            objects=~mask,
            description=f"{name}, fold {k}: lambda",
        )
        chosen.append(lambdas[inner.best])
        groups = [Group(choices.among(~mask), np.flatnonzero(~mask))] * maps
        found = fit(things.features, groups, chosen[-1:], config, description=f"{name}, fold {k}")
        w, b = averaged(found.weights, found.bias, maps)
        weights.append(w[0, 0])
        bias.append(b[0, 0])
    results.add_maps(name, np.array(weights), np.array(bias), chosen=chosen)


def linear(x: np.ndarray, y: np.ndarray, *, ridge: float) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a ridge regression."""
    origin, mean = x.mean(0), y.mean(0)
    x = x - origin
    gram = x.T @ x + ridge * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (y - mean))
    return lambda features: (features - origin) @ weights + mean


def regress(results: Results, name: str, fits: dict[str, Fit]) -> None:
    """Regress VICE and SPoSE; of the fits, take the one that is best within the training objects.

    The best by the negative log-likelihood of human triplets, as in `fit_chosen`, over the same
    inner folds.
    """
    things = results.things
    embedding = np.concatenate([things.vice, *things.spose], 1, dtype=np.float64) / np.sqrt(3)
    predictions, chosen = [], []
    for mask in results.held_out:
        scores: dict[str, list[float]] = {setting: [] for setting in fits}
        for part in results.parts(mask):
            inside, test = ~mask & ~part, split_by_object(things.human, ~part)[0]
            for setting, fit_one in fits.items():
                found = fit_one(inside, embedding[inside])
                scores[setting].append(score(found.astype(np.float32), test)["nll"])
        chosen.append(min(fits, key=lambda setting: statistics.fmean(scores[setting])))
        predictions.append(fits[chosen[-1]](~mask, embedding[~mask]).astype(np.float32))
    results.add(name, lambda k: predictions[k], chosen=chosen)


def measure_regressions(arguments: Arguments) -> dict[str, Any]:
    """Predict the embeddings in closed form, and score."""
    things = Things(folder=arguments.data)
    results = Results(things)
    clip, words, nouns = map(centred, (things.clip, things.word2vec, things.wordnet))

    def ridge_fit(strength: float) -> Fit:
        return lambda rows, y: linear(clip[rows], y, ridge=strength)(clip)

    def kernel_fit(features: np.ndarray, ridge: float, rounds: int) -> Fit:
        return lambda rows, y: fit_kernel(features[rows], y, ridge=ridge, rounds=rounds)(features)

    strengths = (0.03, 0.1, 0.3, 1.0)
    regress(results, "ridge regression", {f"{s:g}": ridge_fit(s) for s in (0.1, 0.3, 1.0, 3.0)})
    for name, rounds in (("kernel", 0), ("kernel, metric learned", 1)):
        regress(results, name, {f"{s:g}": kernel_fit(clip, s, rounds) for s in strengths})
    for name, texts in {
        "kernel, metric learned; CLIP and word2vec": (words,),
        "kernel, metric learned; CLIP, word2vec and WordNet": (words, nouns),
    }.items():
        fits = {}
        for weight in (0.35, 0.5, 0.7):
            features = np.concatenate([clip, *(weight * x for x in texts)], 1)
            fits |= {f"{s:g} (text x {weight})": kernel_fit(features, s, 1) for s in strengths[:2]}
        regress(results, name, fits)
    return results.found


def centred(features: np.ndarray) -> np.ndarray:
    """Return features of mean 0 whose rows have a mean square length of 1."""
    features = features - features.mean(0, dtype=np.float64)
    return features / np.sqrt((features**2).sum(1).mean())


def measure_results(arguments: Arguments) -> dict[str, Any]:
    """Fit and score every row."""
    things = Things(folder=arguments.data)
    results = Results(things)
    results.add("untrained CLIP, unit norm", lambda _: things.clip)
    fit_protocol(results, arguments.steps)
    options = {"steps": arguments.steps}
    vice = ExpectedChoices.of(things.vice)
    fit_chosen(results, "blocks of objects, VICE, chosen", vice, maps=1, **options)
    all_three = ExpectedChoices.of(things.vice, *things.spose)
    name = f"VICE and SPoSE, {arguments.maps} maps averaged, chosen"
    fit_chosen(results, name, all_three, maps=arguments.maps, **options)
    results.add("VICE itself", lambda _: things.vice)
    return results.found


# --- Speed ------------------------------------------------------------------------------------


def torch_loop(things: Things, group: Group, config: FitConfig, strength: float) -> Any:
    """Return a generator that takes a step of one map at each turn, and gives its parameters."""
    import torch

    features = torch.from_numpy(things.features)
    p = features.shape[1]
    weights = torch.nn.Parameter(config.initial_scale * torch.eye(p))
    bias = torch.nn.Parameter(torch.full((p,), config.initial_scale))
    optimizer = torch.optim.Adam([weights, bias], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        batch = draw([group], config, step)
        rows, triplets = torch.from_numpy(batch.rows[0]), torch.from_numpy(batch.triplets[0])
        targets = torch.from_numpy(batch.targets[0])
        z = features[rows] @ weights + bias
        i, j, k = triplets.long().T
        if config.objects_per_step is None:
            pairs = ((z[i] * z[j]).sum(1), (z[i] * z[k]).sum(1), (z[j] * z[k]).sum(1))
        else:
            s = z @ z.T
            pairs = (s[i, j], s[i, k], s[j, k])
        log_p = torch.log_softmax(torch.stack(pairs, 1), 1)
        loss = -(targets * log_p).sum(1).mean()
        m = weights.diagonal().mean()
        loss = loss + strength * ((weights - m * torch.eye(p)) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weights, bias], config.clip_norm)
        optimizer.step()
        schedule.step()
        yield weights, bias


def clock(call: Callable[[], object]) -> tuple[float, float]:
    """Return wall and processor seconds."""
    begin = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def measure_speed(arguments: Arguments) -> dict[str, Any]:
    """Time steps of all maps at once, and of single maps in torch, by turns."""
    things = Things(folder=arguments.data)
    results = Results(things)
    vice = ExpectedChoices.of(things.vice)
    groups = results.groups(lambda _: vice)
    blocks = FitConfig(steps=arguments.steps)
    independent = dataclasses.replace(blocks, objects_per_step=None, triplets_per_step=512)

    # The same maps from the same batches: a short fit, schedule and all.
    short = dataclasses.replace(blocks, steps=20)
    *_, last = torch_loop(things, groups[0], short, LAMBDAS[4])
    ours = fit(things.features, groups[:1], LAMBDAS[4:5], short, progress=False)
    theirs = Maps(*(x.detach().numpy() for x in last))
    difference = np.linalg.norm(ours.weights[0, 0] - theirs.weights) / np.linalg.norm(
        theirs.weights
    )

    loops = {
        "torch, independent triplets": torch_loop(things, groups[0], independent, 0.1),
        "torch, the same batches": torch_loop(things, groups[0], blocks, 0.1),
    }
    clocks: dict[str, list[Any]] = {name: [] for name in (*loops, "ours")}
    ours_config = dataclasses.replace(blocks, steps=CHUNK * (arguments.windows + 1))
    steps = iterate(things.features, groups, LAMBDAS, ours_config)
    for _ in range(arguments.windows + 1):
        clocks["ours"].append(np.divide(clock(lambda: next(steps)), CHUNK))
        for name, loop in loops.items():
            taken = clock(lambda loop=loop: [next(loop) for _ in range(arguments.window)])
            clocks[name].append(np.divide(taken, arguments.window))
    maps = len(groups) * len(LAMBDAS)
    found: dict[str, Any] = {"maps": maps, "difference": float(difference)}
    for name, times in clocks.items():
        # One step of every map; the first window compiles.
        kept = np.array(times[1:]) * (1 if name == "ours" else maps)
        found[name] = {
            "steps of all maps, s": np.median(kept, 0).tolist(),
            "range": [kept.min(0).tolist(), kept.max(0).tolist()],
            "whole run, s": (np.median(kept, 0) * arguments.steps).tolist(),
        }
    return found


def write(document: dict[str, Any]) -> None:
    """Write the JSON file and the tables made of it."""
    OUTPUT.write_text(json.dumps(document, indent=1) + "\n")
    parts = ["# The teacher on CLIP ViT-B/32 features and human THINGS triplets"]
    for what, part in document.items():
        parts.append(f"{part['machine']}; {part['date']}; {part['versions']}; `{part['command']}`")
        parts.append(speed_table(part) if what == "speed" else results_table(part["rows"]))
    OUTPUT.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def results_table(found: dict[str, Any]) -> str:
    """Return the scores, ours beside the specification's in brackets."""
    header = (
        "maps, mean of 3 folds",
        "accuracy, dot",
        "accuracy, cosine",
        "NLL",
        "entropy, Spearman (347)",
        "KL(human, model) (347)",
        "max p, modal share, Spearman (1,001)",
    )
    rows = []
    for name, values in found.items():
        published = PUBLISHED.get(name, (None,) * len(MEASURES))
        notes = f" ({', '.join(map(str, values['chosen']))})" if "chosen" in values else ""
        cells = [
            f"{values[m]:.4f}" + ("" if known is None else f" ({known:.3f})")
            for m, known in zip(MEASURES, published, strict=True)
        ]
        rows.append([name + notes, *cells])
    return report.table(header, rows) + (
        "\n\nIn brackets: behind a number, the specification's measurement; behind a name, the "
        "strength of the regulariser, and the weight of the text, that were chosen in each fold."
    )


def speed_table(found: dict[str, Any]) -> str:
    """Return the times of the whole run and their ratios."""
    header = ("loop", "whole run, s: wall", "processor", "ours is faster by: wall", "processor")
    ours = found["ours"]["whole run, s"]
    rows = []
    for name in ("ours", "torch, the same batches", "torch, independent triplets"):
        times = found[name]["whole run, s"]
        ratios = [f"{t / o:.1f}" for t, o in zip(times, ours, strict=True)]
        rows.append([name, *(f"{t:.0f}" for t in times), *ratios])
    return (
        f"{found['maps']} maps (3 folds x {len(LAMBDAS)} lambdas); medians of windows, "
        "compiling left out. After 20 steps from the same batches, ours "
        f"and torch's weights differ by {found['difference']:.0e}.\n\n" + report.table(header, rows)
    )


def main() -> None:
    """Measure, and write the tables; a part that is not measured keeps its numbers."""
    arguments = tyro.cli(Arguments)
    document = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    if arguments.results:
        document["results"] = {**report.provenance(), "rows": measure_results(arguments)}
        write(document)
    if arguments.regressions:
        found = measure_regressions(arguments)
        document["regressions"] = {**report.provenance(), "rows": found}
        write(document)
    if arguments.speed:
        document["speed"] = {**report.provenance(), **measure_speed(arguments)}
        write(document)


if __name__ == "__main__":
    main()
