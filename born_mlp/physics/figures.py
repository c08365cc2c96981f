"""Figures of the Born series and of the unitary limit.

    python -m born_mlp.physics.figures --out figures/physics

writes each of `FIGURES` as PNG and SVG.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from born_mlp.physics import samplers
from born_mlp.physics.born import born_terms
from born_mlp.physics.scattering import scattering_length, wave_function
from born_mlp.physics.shallowness import shallowness

_STYLE: Any = {
    "font.size": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.0,
    "savefig.dpi": 150,
    "svg.hashsalt": "born_mlp",
}
_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]


def born_convergence(
    *, strengths: tuple[float, ...] = (0.1, 0.3, 0.6, 0.9, 1.1), orders: int = 16
) -> Figure:
    """Relative error of the Born approximations of one random potential, at several strengths."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    potential = samplers.Boxes(cells=16, low=0, high=2).sample(0, 1)[0]
    potential /= shallowness(potential)
    n = np.arange(1, orders + 1)
    for strength, colour in zip(strengths, _COLOURS, strict=False):
        exact = scattering_length(strength * potential)
        sums = np.cumsum(born_terms(strength * potential, orders))
        error = np.abs(sums / exact - 1)
        shown = error > 1e-15  # the rest is rounding
        axes.semilogy(n[shown], error[shown], "o", color=colour, markersize=7)
        axes.semilogy(n[shown], strength ** n[shown], "-", color=colour, linewidth=1.4, zorder=1)
        axes.annotate(
            rf"$\lambda = {strength:g}$",
            (n[shown][-1], error[shown][-1]),
            xytext=(9, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.set_xlim(0.5, orders + 2)
    axes.set_ylim(1e-15, 1e2)
    axes.set_xlabel("order $n$ of the Born approximation")
    axes.set_ylabel("relative error of $a_0$")
    axes.set_title(r"The error of the $n$-th Born approximation (dots) follows $\lambda^n$ (lines)")
    axes.set_xticks(range(2, orders + 1, 2))
    return figure


def unitary_limit(*, orders: tuple[int, ...] = (1, 2, 3, 8)) -> Figure:
    """Scattering length of square wells and its Born approximations through the first pole."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    strength = jnp.linspace(-6, 6, 1201)
    pole = np.pi**2 / 4
    exact = np.array(scattering_length(strength[:, None]))
    exact[np.argmin(np.abs(strength - pole))] = np.nan  # no vertical stroke at the pole
    axes.plot(strength, exact, color="black", linewidth=3, label="exact")
    sums = np.cumsum(born_terms(strength[:, None], max(orders)), axis=1)
    for order, colour in zip(orders, _COLOURS, strict=False):
        axes.plot(strength, sums[:, order - 1], color=colour, label=f"Born {order}")
    axes.axvspan(-pole, pole, color="0.93", zorder=0)
    axes.axvline(pole, color="0.4", linestyle="--", linewidth=1.2)
    axes.annotate(
        "first bound state, $U = \\pi^2/4$",
        (pole, 0.55),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color="0.25",
        fontsize=11,
    )
    axes.annotate("the series converges", (0, -5.6), ha="center", color="0.35")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlim(-6, 6)
    axes.set_ylim(-6, 6)
    axes.set_xlabel("strength $U$ of the square well (attractive for $U > 0$)")
    axes.set_ylabel("scattering length $a_0$ / range")
    axes.set_title("Through the first unitary limit")
    axes.legend(loc="upper center", frameon=False)
    return figure


def wave_functions() -> Figure:
    """Step potentials and their zero-energy wave functions; the lines cut the axis at `a_0`."""
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    rows = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=(1, 1.5))
    shape = samplers.Boxes(cells=16, low=0, high=2).sample(4, 1)[0]
    shape /= shallowness(shape)
    x = jnp.linspace(0, 2.5, 1001)
    cases = [("repulsive", -1.0), ("shallow", 0.4), ("beyond the first pole", 1.6)]
    for (upper, lower), (name, strength), colour in zip(
        rows.T, cases, (_COLOURS[5], _COLOURS[0], _COLOURS[2]), strict=True
    ):
        potential = jnp.asarray(strength * shape)
        upper.stairs(-potential, np.arange(17) / 16, fill=True, color=colour, alpha=0.35)
        upper.stairs(-potential, np.arange(17) / 16, color=colour, linewidth=1.5)
        upper.axhline(0, color="0.6", linewidth=0.8)
        u = wave_function(potential, x)
        a0 = float(scattering_length(potential))
        lower.plot(x, u, color=colour, linewidth=2.5)
        line = u[-1] * (x - a0) / (x[-1] - a0)
        lower.plot(x, line, "--", color="0.3", linewidth=1.2)
        lower.axhline(0, color="0.6", linewidth=0.8)
        lower.axvline(1, color="0.8", linewidth=1)
        if a0 > 0:
            lower.plot(a0, 0, "o", color="black", zorder=5)
        upper.set_title(rf"{name}, $\lambda = {strength:g}$" if strength > 0 else name)
        lower.set_title(rf"$a_0 = {a0:.2f}$", loc="right", y=0.02)
        lower.set_xlabel("$x = r/\\rho$")
    rows[0, 0].set_ylabel("$-U(x)$")
    rows[1, 0].set_ylabel("$u(x)$")
    rows[1, 0].set_xlim(0, 2.5)
    rows[1, 0].set_xticks([0, 1, 2])
    rows[1, 0].set_ylim(-1.2, 2.2)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "born_convergence": born_convergence,
    "unitary_limit": unitary_limit,
    "wave_functions": wave_functions,
}
"""The figures by file name."""


def main() -> None:
    """Write all figures."""
    parser = argparse.ArgumentParser(description="Write the figures of the Born series.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("figures/physics"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with jax.enable_x64(True), rc_context(_STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            figure.savefig(out / f"{name}.png")
            print(out / f"{name}.png")


if __name__ == "__main__":
    main()
