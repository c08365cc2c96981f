"""Diagrams and galleries of them in the style of Feynman, drawn with matplotlib.

A dot is a vertex `phi_l^(k)`. A line with n arrowheads is a propagator that carries a derivative of
order n: P (blue) from an input leg, Q (orange) between vertices, R (green) to the output. Dotted
columns are the nonlinear layers; where a line crosses one it picks up a factor phi'.
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from born_mlp.diagrams import counts
from born_mlp.diagrams.layout import Line, layout
from born_mlp.diagrams.tree import Diagram, enumerate_diagrams, require, topologies

COLORS = {"P": "#0072B2", "Q": "#D55E00", "R": "#009E73"}
"""Colour of each kind of propagator: safe for colour-blind readers (Okabe and Ito)."""
MAX_PANELS = 120
"""Most diagrams that a gallery shows."""

_COLUMN = 2.0
"""Width of a column; the unit of length is the distance of two legs."""
_ARROW = 0.24
"""Length of an arrowhead."""
_GAP, _CAPTION, _HEADING = 0.2, 0.45, 1.15
"""Inches between the panels of a gallery, below each, and above all."""
_GREY = "0.45"


Detail = Literal["lines", "vertices", "all"]
"""What is written: nothing, the symbols of the vertices, or those of the lines too."""


def draw(axes: Axes, diagram: Diagram, depth: int | None = None, *, detail: Detail) -> None:
    """Draw a diagram of `depth` layers, by default of as many as it needs.

    The data limits are set so that one unit is the distance of two legs; the axes should have the
    shape that `size` returns.
    """
    placed = layout(diagram, depth)
    half = (diagram.order - 1) / 2
    layers = range(1, placed.columns + 1) if diagram.layer or not diagram.children else ()
    for layer in layers:
        x = layer * _COLUMN
        axes.plot([x, x], [-half - 0.4, half + 0.45], color="0.75", lw=0.8, ls=":", zorder=1)
    if detail != "lines":
        headings = {0: "$x$", placed.columns + 1: "$f$"} | {layer: f"{layer}" for layer in layers}
        for column, heading in headings.items():
            x = column * _COLUMN
            axes.text(x, half + 0.8, heading, ha="center", va="center", color=_GREY)
        for j, (_, row) in enumerate(placed.legs, start=1):
            axes.text(-0.15, row, f"$j_{{{j}}}$", ha="right", va="center")
    for vertex in placed.vertices:
        x, y = vertex.position[0] * _COLUMN, vertex.position[1]
        axes.plot(x, y, "o", color="black", ms=3.5 if detail == "lines" else 5, zorder=4)
        if detail != "lines":
            va = "bottom" if vertex.side > 0 else "top"
            axes.text(x + 0.12, y + 0.12 * vertex.side, f"${vertex.label}$", ha="left", va=va)
    for line in placed.lines:
        path = _path(line)
        color = COLORS[line.kind]
        axes.plot(*path.T, color=color, lw=1.3, solid_capstyle="round", zorder=2)
        for head in _arrowheads(path, line.order):
            axes.add_patch(Polygon(head, closed=True, facecolor=color, lw=0, zorder=3))
        if detail == "all":
            # Lines that meet in the first layer are further apart where they start.
            where = 0.25 if line.kind == "P" else 0.5
            point, along = _point(path, _length_to(path, where))
            x, y = point + 0.36 * line.side * np.array([-along[1], along[0]])
            axes.text(x, y, f"${line.label}$", ha="center", va="center", color=color)
    left, right, top, bottom = _margins(detail)
    axes.set_xlim(-left, (placed.columns + 1) * _COLUMN + right)
    axes.set_ylim(-half - bottom, half + top)
    axes.set_axis_off()


def size(diagram: Diagram, depth: int | None = None, *, detail: Detail) -> tuple[float, float]:
    """Return the width and height that `draw` fills, in distances of two legs."""
    left, right, top, bottom = _margins(detail)
    columns = layout(diagram, depth).columns + 1
    return left + columns * _COLUMN + right, top + diagram.order - 1 + bottom


def _margins(detail: Detail) -> tuple[float, float, float, float]:
    """Return the space left, right, above and below the lines, for their labels."""
    return (0.2, 0.2, 0.2, 0.2) if detail == "lines" else (0.9, 0.6, 1.15, 0.6)


def figure(diagram: Diagram, depth: int | None = None, *, scale: float = 0.5) -> Figure:
    """Return a figure of one diagram with all its symbols, `scale` inches between two legs."""
    width, height = (scale * length for length in size(diagram, depth, detail="all"))
    result = Figure(figsize=(width, height + 0.25))
    draw(add_panel(result, 0, 0.25, width, height), diagram, depth, detail="all")
    _text(result, width / 2, 0.13, _weights(diagram), size=10)
    return result


def gallery(order: int, depth: int | None = None, *, scale: float = 0.3) -> Figure:
    """Return a figure of all diagrams of `order` in `depth` layers, or of all topologies.

    All panels have one scale, `scale` inches between two legs. The heading has the number of
    diagrams as a polynomial in the depth K; the number of a panel is its place in
    `enumerate_diagrams` or `topologies`, from 1.
    """
    require(order, depth or 0)
    number = len(topologies(order)) if depth is None else counts.diagrams(order)(depth)
    if number == 0:
        raise ValueError(f"without a nonlinear layer there is no diagram of order {order}")
    if number > MAX_PANELS:
        raise ValueError(
            f"{number} diagrams of order {order} do not fit on a page that can be read, at most "
            f"{MAX_PANELS} do: take a lower order or depth, or draw single ones with `figure`"
        )
    shown = topologies(order) if depth is None else enumerate_diagrams(order, depth)
    sizes = [size(diagram, depth, detail="vertices") for diagram in shown]
    width, height = (scale * max(lengths) for lengths in zip(*sizes, strict=True))
    width, height = max(width, 2.4) + _GAP, height + _CAPTION
    down = math.ceil(len(shown) / _panels_across(len(shown), width / height))
    across = math.ceil(len(shown) / down)
    total = max(across * width, 6.6), down * height + _HEADING
    result = Figure(figsize=total)
    _heading(result, order, depth)
    for i, (diagram, own) in enumerate(zip(shown, sizes, strict=True)):
        middle = total[0] / 2 + width * (i % across - (across - 1) / 2)
        bottom = total[1] - _HEADING - height * (i // across + 1) + _CAPTION
        axes = add_panel(result, middle - scale * own[0] / 2, bottom, *(scale * n for n in own))
        draw(axes, diagram, depth, detail="vertices")
        if depth is None:
            first = f"({i + 1})  layerings: ${counts.layerings(diagram).latex()}$"
        elif diagram.children:
            first = f"({i + 1})  layers: {', '.join(map(str, diagram.layers))}"
        else:
            first = f"({i + 1})  no vertex"
        _text(result, middle, bottom - 0.08, first, size=8)
        _text(result, middle, bottom - 0.26, _weights(diagram), size=8)
    return result


def _heading(figure: Figure, order: int, depth: int | None) -> None:
    """Write the counts and the key above a gallery."""
    width, height = figure.get_size_inches()
    unlabelled, labelled = counts.diagrams(order), counts.labelled_diagrams(order)
    if depth is None:
        title = f"Order {order}: topologies"
    else:
        title = (
            f"Order {order}, depth {depth}: {unlabelled(depth)} up to permutation of the legs, "
            f"{labelled(depth)} with labelled legs"
        )
    polynomials = f"${unlabelled.latex()}$  up to permutation,  ${labelled.latex()}$  labelled"
    _text(figure, width / 2, height - 0.2, title, size=12)
    _text(figure, width / 2, height - 0.48, f"in $K$ layers:  {polynomials}", size=8.5)
    key = {"P": "P: input to vertex", "Q": "Q: vertex to vertex", "R": "R: vertex to output"}
    for i, (kind, words) in enumerate(key.items()):
        _text(figure, width / 2 + 1.5 * (i - 1), height - 0.74, words, size=8, color=COLORS[kind])
    words = "n arrowheads: a derivative of order n"
    if depth is not None:
        words += r";  a line that crosses a layer takes a factor $\varphi'$ there"
    _text(figure, width / 2, height - 0.94, words, size=8, color=_GREY)


def _weights(diagram: Diagram) -> str:
    return f"symmetry factor {diagram.symmetry_factor}, multiplicity {diagram.multiplicity}"


def add_panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes to a figure, their place and size in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _text(
    figure: Figure, x: float, y: float, text: str, *, size: float, color: str = "black"
) -> None:
    """Write centred text at a place in inches."""
    w, h = figure.get_size_inches()
    figure.text(x / w, y / h, text, ha="center", va="center", fontsize=size, color=color)


def _panels_across(panels: int, aspect: float) -> int:
    """Return how many panels of `aspect` width/height a row takes for a page of 16:10."""
    return min(panels, max(3, round(math.sqrt(1.6 * panels / aspect))))


def _path(line: Line, points: int = 33) -> Float[np.ndarray, "points 2"]:
    """Return the polyline of a propagator: along its row, then a bend in the last column."""
    start = np.array([line.start[0] * _COLUMN, line.start[1]])
    end = np.array([line.end[0] * _COLUMN, line.end[1]])
    if start[1] == end[1]:
        return np.stack([start, end])
    bend = np.array([end[0] - _COLUMN, start[1]])
    first = bend + np.array([0.5 * _COLUMN, 0])
    second = end + np.array([-0.3 * _COLUMN, 0.45 * (start[1] - end[1])])
    t = np.linspace(0, 1, points)[:, None]
    curve = (1 - t) ** 3 * bend + 3 * t * (1 - t) * ((1 - t) * first + t * second) + t**3 * end
    return np.concatenate([start[None], curve])


def _length(path: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points"]:
    """Return the length of the path up to each point."""
    return np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])


def _point(path: Float[np.ndarray, "points 2"], length: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the point at `length` along the path and the unit tangent there."""
    lengths = _length(path)
    point = np.array([np.interp(length, lengths, path[:, i]) for i in (0, 1)])
    segment = int(np.clip(np.searchsorted(lengths, length), 1, len(path) - 1))
    while lengths[segment] == lengths[segment - 1]:
        segment += 1
    step = path[segment] - path[segment - 1]
    return point, step / np.linalg.norm(step)


def _length_to(path: Float[np.ndarray, "points 2"], columns: float) -> float:
    """Return the length along the path up to a place `columns` to the right of its start."""
    return float(np.interp(path[0, 0] + columns * _COLUMN, path[:, 0], _length(path)))


def _arrowheads(path: Float[np.ndarray, "points 2"], number: int) -> list[np.ndarray]:
    """Return `number` triangles in a row around the middle of the first column."""
    heads = []
    for i in range(number):
        offset = _ARROW * (0.85 * (i - (number - 1) / 2) + 0.5)
        tip, along = _point(path, _length_to(path, 0.5) + offset)
        across = np.array([-along[1], along[0]]) * _ARROW * 0.42
        tail = tip - _ARROW * along
        heads.append(np.stack([tip, tail + across, tail - across]))
    return heads
