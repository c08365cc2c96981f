"""Figures of an embedding: what its dimensions mean, and how the fit settled."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from alignment.vice.embedding import Embedding
from common.runs import Curves


def top_objects(embedding: Embedding, *, count: int = 8, columns: int = 6) -> Figure:
    """Draw for each dimension the objects with the largest means; error bars are one deviation."""
    d = embedding.mean.shape[1]
    rows = -(-d // columns)
    figure = Figure(figsize=(2.5 * columns, 0.3 + 0.21 * (count + 2) * rows), layout="constrained")
    figure.suptitle("Dimensions by their sum over objects; objects with the largest values")
    limit = 1.1 * float((embedding.mean + embedding.scale).max())
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        if i >= d:
            axes.axis("off")
            continue
        top = np.argsort(-embedding.mean[:, i])[:count]
        axes.barh(
            np.arange(count),
            embedding.mean[top, i],
            xerr=embedding.scale[top, i],
            color="#c6d8ea",
            error_kw={"elinewidth": 0.6, "ecolor": "grey"},
        )
        for row, name in enumerate(embedding.names[top]):
            axes.text(0.02 * limit, row, str(name), va="center", fontsize=7.5)
        axes.set(xlim=(0, limit), ylim=(count - 0.4, -0.6), yticks=[])
        axes.set_title(f"{i + 1}", fontsize=8, loc="left", pad=2)
        axes.tick_params(axis="x", labelsize=6, length=2, pad=1, labelbottom=i + columns >= d)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def convergence(curves: Curves, seeds: int) -> Figure:
    """Draw dimensions and held-out accuracy of each seed against the step.

    Args:
      curves: those of the run.
      seeds: number of seeds.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = (("dimensions", "dimensions after pruning"), ("accuracy", "held-out accuracy"))
    for axes, (what, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for seed in range(seeds):
            points = curves[f"held_out/{what}/{seed}"]
            axes.plot(*zip(*points, strict=True), color="tab:blue", alpha=0.5, linewidth=1)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{seeds} seeds")
    return figure


def write(folder: pathlib.Path, figures: dict[str, Figure]) -> list[str]:
    """Save figures as PNG and SVG; return the paths of the PNGs."""
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.svg")
        figure.savefig(folder / f"{name}.png", dpi=150)
    return [str(folder / f"{name}.png") for name in figures]
