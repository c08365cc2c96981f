"""Figures of one file of predictions: similarity distributions, and molecules side by side."""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from molt5_multitask import chem
from molt5_multitask.metrics.scores import Scores

DISTRIBUTIONS = {
    "Tanimoto similarity": ("MACCS", "RDK", "Morgan"),
    "score of the row": ("ROUGE-1", "ROUGE-2", "ROUGE-L", "METEOR"),
    "similarity of the action sequences": ("similarity",),
}
"""Scores between 0 and 1 that share a figure, with the label of its axis."""
PAIRS = 3
"""Pairs of molecules in each line of the grid."""
PIXELS = 360


def write(
    folder: pathlib.Path,
    name: str,
    references: Sequence[str],
    outputs: Sequence[str],
    scores: Scores,
) -> list[str]:
    """Draw what the scores allow as PNG files; return their paths."""
    figures = {}
    for label, metrics in DISTRIBUTIONS.items():
        rows = {metric: scores.per_row[metric] for metric in metrics if metric in scores.per_row}
        if any(np.isfinite(values).any() for values in rows.values()):
            figures["similarities"] = similarities(name, label, rows)
    morgan = scores.per_row.get("Morgan")
    if morgan is not None and np.isfinite(morgan).any():
        figures["molecules"] = molecules(name, references, outputs, morgan)
    paths = []
    for stem, figure in figures.items():
        figure.savefig(folder / f"{stem}.png", dpi=150)
        paths.append(f"{folder}/{stem}.png")
    return paths


def similarities(name: str, label: str, rows: dict[str, np.ndarray]) -> Figure:
    """Draw the distribution over the rows of each score, with its mean."""
    figure = Figure(figsize=(3.2 * len(rows) + 0.4, 3.0), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, (metric, values) in zip(panels, rows.items(), strict=True):
        kept = values[np.isfinite(values)]
        axes.hist(kept, bins=np.linspace(0, 1, 41), color="tab:blue")
        axes.axvline(kept.mean(), color="black", linewidth=1, linestyle="--")
        axes.set_title(f"{metric}: mean {kept.mean():.3f}", fontsize=10)
        axes.set_xlabel(label)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1])
    panels[0].set_ylabel("rows")
    shown = np.isfinite(next(iter(rows.values()))).sum()
    total = len(next(iter(rows.values())))
    what = f"all {total:,} rows" if shown == total else f"{shown:,} valid of {total:,} rows"
    figure.suptitle(f"{name}: {what}", fontsize=11)
    return figure


def molecules(
    name: str, references: Sequence[str], outputs: Sequence[str], morgan: np.ndarray
) -> Figure:
    """Draw reference beside prediction for the worst, median and best rows by Morgan similarity."""
    order = np.argsort(morgan, kind="stable")[: np.isfinite(morgan).sum()]  # NaN comes last
    pairs = min(PAIRS, len(order))
    middle = (len(order) - pairs) // 2
    chosen = {
        "worst": order[:pairs],
        "median": order[middle : middle + pairs],
        "best": order[len(order) - pairs :][::-1],
    }
    figure = Figure(figsize=(4.4 * pairs, 7.6), layout="constrained")
    panels = figure.subplots(len(chosen), 2 * pairs, squeeze=False)
    for line, (which, rows) in zip(panels, chosen.items(), strict=True):
        for k, row in enumerate(rows):
            left, right = line[2 * k], line[2 * k + 1]
            _draw(left, references[row], f"row {row + 1}: reference")
            _draw(right, outputs[row], f"predicted, Morgan {morgan[row]:.2f}")
        line[0].set_ylabel(which, fontsize=11)
    figure.suptitle(f"{name}: worst, median and best of {len(order):,} valid outputs", fontsize=11)
    return figure


def _draw(axes: Axes, smiles: str, title: str) -> None:
    mol = chem.parse(smiles) or Chem.Mol()
    drawer = rdMolDraw2D.MolDraw2DCairo(PIXELS, PIXELS)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    axes.imshow(imread(io.BytesIO(drawer.GetDrawingText()), "png"))
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
