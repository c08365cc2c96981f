"""Formulas, layouts, drawings, LaTeX and the command that writes them."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from born_mlp.diagrams import LEG, Diagram, draw, enumerate_diagrams, formula, shares, tikz
from born_mlp.diagrams.__main__ import check, gallery
from born_mlp.diagrams.layout import Line, layout
from born_mlp.mlp import MLP

CHAIN = Diagram(3, (Diagram(1, (LEG, LEG)), LEG))


def row_of(line: Line, column: float) -> float:
    """Return the row of a line where it keeps its row, before its last column."""
    return line.start[1] if column <= line.end[0] - 1 else float("nan")


def test_formula() -> None:
    assert formula.text(CHAIN) == (
        "1/2 Σ R₃[o,a] φ″₃[a] Q₃←₁[a,b] φ″₁[b] P₁[b,j₁] P₁[b,j₂] P₃[a,j₃] v[j₁] v[j₂] v[j₃]"
    )
    assert formula.text(CHAIN.topology).startswith("1/2 Σ R[o,a] φ″[a] Q[a,b] φ″[b] P[b,j₁]")
    assert formula.text(LEG) == "Σ R₀[o,j₁] v[j₁]"
    assert formula.text(Diagram(12, (LEG,) * 4)).startswith("1/24 Σ R₁₂[o,a] φ⁽⁴⁾₁₂[a] P₁₂[a,j₁]")
    assert formula.latex(Diagram(2, (LEG, LEG))) == (
        r"\frac{1}{2}\sum [R_{2}]_{oa}\,[\varphi''_{2}]_{a}\,[P_{2}]_{aj_{1}}\,[P_{2}]_{aj_{2}}"
        r"\,v_{j_{1}}\,v_{j_{2}}"
    )


@pytest.mark.parametrize(("order", "depth"), [(4, 3), (5, 4)])
def test_lines_do_not_cross_and_carry_their_order(order: int, depth: int) -> None:
    for diagram in enumerate_diagrams(order, depth):
        placed = layout(diagram, depth)
        assert len(placed.legs) == order
        assert placed.lines[-1].order == order
        assert sum(line.order for line in placed.lines if line.kind == "P") == order
        for vertex in placed.vertices:
            incoming = [line.order for line in placed.lines if line.end == vertex.position]
            (outgoing,) = [line.order for line in placed.lines if line.start == vertex.position]
            assert outgoing == sum(incoming)
        # At every column all lines and vertices have rows of their own, half a row apart or more.
        for column in range(depth + 1):
            rows = [
                row_of(line, column)
                for line in placed.lines
                if line.start[0] <= column < line.end[0]
            ]
            straight = sorted(row for row in rows if not np.isnan(row))
            gaps = [b - a for a, b in itertools.pairwise(straight)]
            assert min(gaps, default=1.0) >= 0.5


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts that overlap in a figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    return [
        (a, b)
        for (a, one), (b, other) in itertools.combinations(boxes, 2)
        if one.overlaps(other) and a and b
    ]


@pytest.mark.parametrize(("order", "depth"), [(1, 2), (2, 2), (4, 3), (4, None), (5, None)])
def test_no_text_of_a_gallery_overlaps_another(order: int, depth: int | None) -> None:
    figure = draw.gallery(order, depth)
    assert overlaps(figure) == []
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)


def test_no_text_of_a_single_drawing_overlaps_another() -> None:
    for diagram in enumerate_diagrams(4, 3):
        assert overlaps(draw.figure(diagram, 3)) == []


def test_gallery_has_a_panel_for_each_diagram_on_one_scale() -> None:
    figure = draw.gallery(4, 3)
    assert len(figure.axes) == 14
    scales = []
    for axes in figure.axes:
        width, height = axes.bbox.size
        scales += [width / np.ptp(axes.get_xlim()), height / np.ptp(axes.get_ylim())]
    np.testing.assert_allclose(scales, scales[0])


def test_drawings_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="needs 3 layers"):
        draw.figure(CHAIN, 2)
    with pytest.raises(ValueError, match="without a nonlinear layer"):
        draw.gallery(2, 0)
    with pytest.raises(ValueError, match="1344 diagrams of order 8"):
        draw.gallery(8, 4)


@pytest.mark.parametrize("diagram", [*enumerate_diagrams(4, 3), LEG, CHAIN.topology])
def test_tikz_names_what_it_uses(diagram: Diagram) -> None:
    picture = tikz.picture(diagram)
    defined = re.findall(r"\\vertex (?:\[.*\] )?\((\w+)\)", picture)
    edges = picture[picture.index(r"\diagram*") :]
    used = set(re.findall(r"\((\w+)\)", edges))
    assert len(defined) == len(set(defined))
    assert used == set(defined)
    assert picture.count("{") == picture.count("}")
    assert [int(n) for n in re.findall(r"carries=(\d+)", picture)] == [
        line.order for line in layout(diagram).lines
    ]
    document = tikz.document([diagram])
    assert document.count(r"\begin{") == document.count(r"\end{")
    assert formula.latex(diagram) in document


def test_shares_through_training_are_drawn() -> None:
    mlp = MLP(in_features=2, hidden=(4, 3))
    x, v = jnp.zeros(2), jax.random.normal(jax.random.key(1), (5, 2))
    history = [(step, mlp.init(jax.random.key(step))) for step in (0, 10, 20)]
    figure = shares.plot_shares(
        history, mlp, x, v, order=2, key=lambda diagram: f"layer {diagram.layer}"
    )
    assert [text.get_text() for text in figure.texts] == ["layer 1", "layer 2"]
    (stacked, *_) = figure.axes
    top = stacked.collections[-1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(1.0)
    pictures = shares.plot_shares(history, mlp, x, v, order=2)
    assert len(pictures.axes) == 3  # the plot, a patch and a picture: one topology
    with pytest.raises(ValueError, match="ascending steps"):
        shares.plot_shares(history[::-1], mlp, x, v, order=2)


def test_command_writes_a_gallery(tmp_path: Path) -> None:
    gallery(order=2, depth=2, out=tmp_path)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    singles = [f"order2_depth2/{i:03}.{suffix}" for i in (1, 2) for suffix in ("png", "svg")]
    assert names == sorted(
        [*(f"order2_depth2.{s}" for s in ("png", "svg", "tex", "txt")), *singles]
    )


def test_command_checks_the_sum_rule(capsys: pytest.CaptureFixture[str]) -> None:
    check(order=2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("2 diagrams add up to the derivative of order 2: error ")
    assert float(last.split()[-1]) < 1e-14


def test_command_refuses_bad_input() -> None:
    command = [sys.executable, "-m", "born_mlp.diagrams", "gallery", "--order", "8", "--depth", "4"]
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: 1344 diagrams of order 8")
