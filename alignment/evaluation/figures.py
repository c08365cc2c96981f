"""Figures of an evaluation."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde, rankdata, spearmanr

from alignment.evaluation.hierarchy import RELATIONS
from alignment.evaluation.rsa import upper_triangle

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by everybody (Okabe and Ito)."""

Pictures = Callable[[Int[np.ndarray, "m"]], Sequence[np.ndarray]]
"""Gives the pictures of some rows: uint8 (height, width, 3) each."""
RDMs = Mapping[str, Float[np.ndarray, "n n"]]


def rsa_scatter(human: Float[np.ndarray, "n n"], models: RDMs) -> Figure:
    """Draw the models' dissimilarities over the mean human ones, a panel for each model."""
    figure = Figure(figsize=(3.2 * len(models) + 0.3, 3.3), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    x = upper_triangle(human)
    for axes, (name, matrix) in zip(panels, models.items(), strict=True):
        y = upper_triangle(matrix)
        axes.scatter(x, y, s=4, alpha=0.25, linewidths=0, color=COLOURS[0], rasterized=True)
        axes.set_title(f"{name}: Spearman {spearmanr(x, y).statistic:.3f}", fontsize=10)
        axes.set_xlabel("mean human dissimilarity")
    panels[0].set_ylabel("model dissimilarity, 1 - cosine")
    return figure


def rdm_panels(matrices: RDMs, categories: Sequence[str] | np.ndarray | None = None) -> Figure:
    """Draw dissimilarity matrices side by side, as ranks, ordered by category."""
    n = len(next(iter(matrices.values())))
    groups = np.asarray(["" for _ in range(n)] if categories is None else categories)
    order = np.argsort(groups, kind="stable")
    names, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    figure = Figure(figsize=(3.4 * len(matrices) + 1.4, 3.7), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        ranks = np.zeros_like(matrix, float)
        above = np.triu_indices(n, 1)
        ranks[above] = rankdata(matrix[above]) / len(above[0])
        ranks += ranks.T
        image = axes.imshow(ranks[np.ix_(order, order)], cmap="viridis", vmin=0, vmax=1)
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="white", linewidth=0.7)
            axes.axvline(start - 0.5, color="white", linewidth=0.7)
        axes.set_title(name, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    if len(names) > 1:
        panels[0].set_yticks(starts + (sizes - 1) / 2, names.tolist(), fontsize=8)
    figure.colorbar(image, ax=panels.tolist(), label="dissimilarity, rank", shrink=0.8)
    return figure


def accuracy_by_level(
    accuracies: Mapping[str, Mapping[str, float]], ceilings: Mapping[str, float], ceiling: str
) -> Figure:
    """Draw odd-one-out accuracies of models, by level, with ceiling and chance.

    Args:
      accuracies: by model, then by level.
      ceilings: by level.
      ceiling: which ceiling it is.
    """
    levels = list(ceilings)
    figure = Figure(figsize=(1.8 * len(levels) + 2.6, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(accuracies)
    x = np.arange(len(levels))
    for k, (name, by_level) in enumerate(accuracies.items()):
        at = x + (k - (len(accuracies) - 1) / 2) * width
        heights = [by_level[level] for level in levels]
        bars = axes.bar(at, heights, width * 0.94, color=COLOURS[k % len(COLOURS)], label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, label_type="center", color="white")
    for i, level in enumerate(levels):
        label = f"ceiling: {ceiling}" if i == 0 else ""
        axes.hlines(ceilings[level], i - 0.45, i + 0.45, color="black", label=label)
    axes.axhline(1 / 3, color="grey", linestyle=":", label="chance")
    axes.set_xticks(x, levels)
    axes.set_ylabel("odd-one-out accuracy (cosine)")
    axes.set_ylim(0, 1.05)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    return figure


def hierarchy_densities(changes: Mapping[str, Mapping[str, Float[np.ndarray, "pairs"]]]) -> Figure:
    """Draw how the relative distances of pairs changed, a panel for each model.

    Args:
      changes: by model, then by relation.
    """
    figure = Figure(figsize=(4.2 * len(changes) + 0.4, 3.3), layout="constrained")
    panels = figure.subplots(1, len(changes), sharex=True, squeeze=False)[0]
    pooled = np.concatenate([v for by_relation in changes.values() for v in by_relation.values()])
    low, high = np.quantile(pooled, [0.001, 0.999])
    x = np.linspace(low, high, 300)
    for axes, (name, by_relation) in zip(panels, changes.items(), strict=True):
        for relation, values in by_relation.items():
            colour = COLOURS[RELATIONS.index(relation)]
            label = f"{relation} ({values.mean():+.3f})"
            if len(values) > 1 and np.ptp(values) > 0:
                shown = values[:: max(1, len(values) // 5000)]
                axes.plot(x, gaussian_kde(shown)(x), color=colour, label=label)
            axes.axvline(values.mean(), color=colour, linewidth=0.8, linestyle="--")
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("change of relative distance (negative: closer)")
        axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legend
        title = "pairs (mean change)"
        axes.legend(fontsize=7, title=title, title_fontsize=7, loc="upper left", framealpha=1)
    panels[0].set_ylabel("density")
    return figure


def neighbours(
    models: Mapping[str, Float[np.ndarray, "n _"]],
    queries: Int[np.ndarray, "q"],
    names: Sequence[str],
    pictures: Pictures | None = None,
    *,
    count: int = 5,
) -> Figure:
    """Draw the nearest images of some images by cosine, model beside model."""
    count = min(count, len(names) - 1)
    firsts = {name: 1.25 + k * (count + 0.25) for k, name in enumerate(models)}
    columns = 1.25 + len(models) * (count + 0.25)
    figure, axes = _canvas(columns, len(queries), head=0.35, pictures=pictures is not None)
    for line, query in enumerate(queries):
        cells = [(0.0, line, query)]
        for name, features in models.items():
            unit = features / np.linalg.norm(features, axis=1, keepdims=True)
            similarity = unit @ unit[query]
            similarity[query] = -np.inf
            nearest = np.argsort(-similarity, kind="stable")[:count]
            cells += [(firsts[name] + i, line, row) for i, row in enumerate(nearest)]
        _show(axes, cells, names, pictures)
    heads = {"image": 0.5} | {f"nearest, {name}": x + count / 2 for name, x in firsts.items()}
    for text, x in heads.items():
        axes.text(x, -0.05, text, ha="center", va="bottom", fontsize=10)
    return figure


def triplet_grid(
    triplets: Int[np.ndarray, "t 3"],
    choices: Mapping[str, Int[np.ndarray, "t"]],
    names: Sequence[str],
    pictures: Pictures | None = None,
    *,
    columns: int = 2,
) -> Figure:
    """Draw triplets, and under each image who chose it as the odd one.

    Args:
      triplets: rows of the images.
      choices: by who chose, the column of the odd one in each triplet; -1 is none.
      names: of the images.
      pictures: of the images; without them the names are written.
      columns: triplets in a line.
    """
    lines = -(-len(triplets) // columns)
    pitch = 1.4  # room for the labels under the images
    figure, axes = _canvas(
        3.3 * columns, pitch * lines, head=0.35, pictures=pictures is not None, size=1.4
    )
    for t, triplet in enumerate(triplets):
        line, column = divmod(t, columns)
        cells = [(3.3 * column + i, pitch * line, row) for i, row in enumerate(triplet)]
        _show(axes, cells, names, pictures)
        for image, (x, y, _) in enumerate(cells):
            who = [(k, name) for k, (name, odd) in enumerate(choices.items()) if odd[t] == image]
            for place, (k, name) in enumerate(who):
                axes.text(
                    x + 0.5 + (place - (len(who) - 1) / 2) * 0.34,
                    y + 1.14,
                    name,
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white",
                    bbox={"facecolor": COLOURS[k], "edgecolor": "none", "pad": 1.5},
                )
    title = "chosen as the odd one out by " + ", ".join(choices)
    axes.text(3.3 * columns / 2, -0.08, title, ha="center", va="bottom", fontsize=10)
    return figure


def _canvas(
    width: float, height: float, *, head: float, pictures: bool, size: float = 1.0
) -> tuple[Figure, Axes]:
    """Return axes over a whole figure, with unit cells, y downwards, and a head above y = 0."""
    tall = size if pictures else 0.45 * size
    figure = Figure(figsize=(1.15 * size * width, tall * height + head))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, -head / tall))
    axes.axis("off")
    return figure, axes


def _show(
    axes: Axes,
    cells: Sequence[tuple[float, float, int]],
    names: Sequence[str],
    pictures: Pictures | None,
) -> None:
    """Put pictures, or names, into cells: left, top and row of the image."""
    if pictures is None:
        for x, y, row in cells:
            name = str(names[row]).replace("_", " ")
            axes.text(x + 0.5, y + 0.5, name, ha="center", va="center", fontsize=8)
        return
    limits = axes.get_xlim(), axes.get_ylim()
    shown = pictures(np.array([row for _, _, row in cells]))
    for (x, y, _), picture in zip(cells, shown, strict=True):
        axes.imshow(picture, extent=(x + 0.08, x + 0.92, y + 0.96, y + 0.04), aspect="auto")
    axes.set(xlim=limits[0], ylim=limits[1])
