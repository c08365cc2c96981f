"""Where the vertices and lines of a diagram go, for matplotlib and for tikz alike.

The signal runs from left to right: legs enter at the input in column 0, a vertex of layer l stands
in column l, the root propagator leaves to the output in column K + 1. Rows are one leg apart. A
line keeps its row until the last column before its vertex; as each subtree has rows of its own, no
two lines cross.
"""

import dataclasses
from typing import Literal

from born_mlp.diagrams.formula import Factor
from born_mlp.diagrams.tree import Diagram

Point = tuple[float, float]
"""(column, row), rows counted upwards; the middle of the diagram is row 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vertex:
    """A dot `phi_l^(k)`."""

    position: Point
    """Column and row."""
    label: str
    """LaTeX of its symbol."""
    side: Literal[-1, 1]
    """Where its label has room: 1 above, -1 below the dot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A propagator."""

    kind: Literal["P", "Q", "R"]
    """P from the input to a vertex, Q from vertex to vertex, R to the output."""
    start: Point
    """Column and row on the side of the input."""
    end: Point
    """Column and row on the side of the output."""
    order: int
    """Number n of legs behind the line, which carries a derivative of order n: n arrowheads."""
    label: str
    """LaTeX of its symbol."""
    side: Literal[-1, 1]
    """Where its label has room: 1 above, -1 below the line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A diagram placed on columns and rows."""

    columns: int
    """Number of columns between input and output."""
    legs: tuple[Point, ...]
    """Start of each leg, from the top."""
    vertices: tuple[Vertex, ...]
    """Dots, children before parents."""
    lines: tuple[Line, ...]
    """Propagators; the root propagator is the last one."""


def layout(diagram: Diagram, columns: int | None = None) -> Layout:
    """Place `diagram` on `columns` columns, by default as many as it needs.

    A vertex stands in the column of its layer; in a topology, as far left as it can.
    """
    open_layers = bool(diagram.children) and not diagram.layer
    needed = diagram.height if open_layers else diagram.layer
    columns = needed if columns is None else columns
    if columns < needed:
        raise ValueError(f"the diagram needs {needed} layers, more than the depth {columns}")
    legs: list[Point] = []
    vertices: list[Vertex] = []
    lines: list[Line] = []

    def label(symbol: str, *layers: int, order: int = 0) -> str:
        return Factor(symbol, () if open_layers else layers, (), order).head_latex()

    def place(tree: Diagram) -> Point:
        if not tree.children:
            legs.append((0, (diagram.order - 1) / 2 - len(legs)))
            return legs[-1]
        starts = [place(child) for child in tree.children]
        row = sum(start[1] for start in starts) / len(starts)
        position = (tree.height if open_layers else tree.layer, row)
        for child, start in zip(tree.children, starts, strict=True):
            connect(child, start, position, tree.layer)
        return position

    def connect(tree: Diagram, start: Point, end: Point, layer: int) -> None:
        # The outer side of a line that bends towards its parent is free: a vertex takes it, and
        # leaves the inner side to the line. Legs have the space above them for themselves.
        outer: Literal[-1, 1] = -1 if start[1] < end[1] else 1
        if tree.children:
            symbol = label("phi", tree.layer, order=len(tree.children))
            vertices.append(Vertex(position=start, label=symbol, side=outer))
        kind: Literal["P", "Q", "R"]
        if end[0] > columns:
            kind, symbol = "R", label("R", tree.layer)
        elif tree.children:
            kind, symbol = "Q", label("Q", layer, tree.layer)
        else:
            kind, symbol = "P", label("P", layer)
        lines.append(
            Line(
                kind=kind,
                start=start,
                end=end,
                order=tree.order,
                label=symbol,
                side=-outer if tree.children else 1,
            )
        )

    root = place(diagram)
    connect(diagram, root, (columns + 1, root[1]), 0)
    return Layout(columns=columns, legs=tuple(legs), vertices=tuple(vertices), lines=tuple(lines))
