r"""Diagrams as LaTeX for the package tikz-feynman.

Every vertex has a fixed place, so that any LaTeX engine compiles them, without the automatic layout
that needs LuaLaTeX.
"""

import math
from collections.abc import Sequence

from born_mlp.diagrams import formula
from born_mlp.diagrams.layout import Point, layout
from born_mlp.diagrams.tree import Diagram

PREAMBLE = r"""\usepackage{amsmath}
\usepackage[compat=1.1.0]{tikz-feynman}
\usetikzlibrary{arrows.meta, decorations.markings}
\definecolor{propagatorP}{HTML}{0072B2}
\definecolor{propagatorQ}{HTML}{D55E00}
\definecolor{propagatorR}{HTML}{009E73}
\tikzset{
  P/.style={draw=propagatorP, text=propagatorP, line width=0.8pt},
  Q/.style={draw=propagatorQ, text=propagatorQ, line width=0.8pt},
  R/.style={draw=propagatorR, text=propagatorR, line width=0.8pt},
  % n arrowheads: the line carries a derivative of order n
  carries/.style={postaction={decorate}, decoration={markings,
    mark=between positions 10mm-0.9mm*(#1-1) and 10.1mm+0.9mm*(#1-1) step 1.8mm
      with {\arrow{Latex[length=5pt, width=4pt]}}}},
}
"""
"""What the pictures need in the preamble of a document."""

_COLUMN, _ROW = 2.0, 0.9
"""Centimetres between two layers and between two legs."""


def picture(diagram: Diagram, depth: int | None = None) -> str:
    """Return a `tikzpicture` of one diagram, for a document that has `PREAMBLE`."""
    placed = layout(diagram, depth)
    legs = {leg: f"j{j}" for j, leg in enumerate(placed.legs, start=1)}
    dots = {vertex.position: f"v{i}" for i, vertex in enumerate(placed.vertices, start=1)}
    output = placed.lines[-1].end
    names = legs | dots | {output: "f"}
    vertices = [
        rf"\vertex ({name}) at {_at(leg)} {{\(j_{{{name[1:]}}}\)}};" for leg, name in legs.items()
    ]
    for vertex in placed.vertices:
        label = rf"label={{[inner sep=1pt]{55 * vertex.side}:\({vertex.label}\)}}"
        name = dots[vertex.position]
        vertices.append(rf"\vertex [dot, {label}] ({name}) at {_at(vertex.position)} {{}};")
    vertices.append(rf"\vertex (f) at {_at(output)} {{\(f\)}};")
    edges = []
    for i, line in enumerate(placed.lines, start=1):
        bends = line.start[1] != line.end[1]
        straight = line.end[0] - line.start[0] - bends  # columns before the bend
        where = (0.25 if line.kind == "P" else 0.5) / max(straight, 1)
        side = "above" if line.kind == "P" else "auto" if line.side > 0 else "auto, swap"
        label = rf"edge node={{node [{side}, pos={where:.2g}] {{\({line.label}\)}}}}"
        first = f"{line.kind}, carries={line.order}, {label}"
        start, end = f"({names[line.start]})", f"({names[line.end]})"
        rise = (line.start[1] - line.end[1]) * _ROW
        # The bend of `draw`, as the directions of its two ends.
        curve = f"out=0, in={math.degrees(math.atan2(0.45 * rise, -0.3 * _COLUMN)):.0f}"
        if not bends:
            edges.append(f"{start} -- [{first}] {end}")
        elif not straight:
            edges.append(f"{start} -- [{first}, {curve}] {end}")
        else:
            vertices.append(rf"\vertex (b{i}) at {_at((line.end[0] - 1, line.start[1]))};")
            edges.append(f"{start} -- [{first}] (b{i}) -- [{line.kind}, {curve}] {end}")
    return "\n".join(
        [
            r"\begin{tikzpicture}",
            r"  \begin{feynman}",
            *(f"    {vertex}" for vertex in vertices),
            r"    \diagram* {",
            ",\n".join(f"      {edge}" for edge in edges),
            "    };",
            r"  \end{feynman}",
            r"\end{tikzpicture}",
        ]
    )


def document(diagrams: Sequence[Diagram], depth: int | None = None) -> str:
    """Return a complete LaTeX document: each diagram with its weights and its formula."""
    entries = [
        "\n".join(
            [
                r"\begin{minipage}{\linewidth}\centering",
                picture(diagram, depth),
                rf"\[{formula.latex(diagram)}\]",
                rf"symmetry factor \({diagram.symmetry_factor}\), "
                rf"multiplicity \({diagram.multiplicity}\)",
                r"\end{minipage}\par\bigskip",
            ]
        )
        for diagram in diagrams
    ]
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[margin=2cm]{geometry}",
            PREAMBLE + r"\begin{document}",
            r"\setlength{\parindent}{0pt}",
            "\n\n".join(entries),
            r"\end{document}",
            "",
        ]
    )


def _at(point: Point) -> str:
    return f"({point[0] * _COLUMN:g}, {point[1] * _ROW:.3g})"
