"""Figures of a study: what was learned, how well, where it ends, and how it came about."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from born_mlp.diagrams.draw import gallery
from born_mlp.diagrams.shares import stack_shares
from born_mlp.diagrams.values import diagrams_of
from born_mlp.nnpt import Perturbation
from born_mlp.samples import exact_tensor
from born_mlp.study import Study
from common.files import local_folder
from common.runs import read_curves

ORDER_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def write(study: Study, found: Mapping[str, Perturbation], results: Mapping[str, Any]) -> list[str]:
    """Draw all figures of a study as PNG and SVG; return where in its folder the PNGs lie."""
    figures: dict[str, Figure] = {"one_network": one_network(results)}
    iterated = {name: r for name, r in results.items() if len(r["coefficients"]) > 1}
    if iterated:
        figures["errors_by_iteration"] = errors_by_iteration(iterated)
    for name, perturbation in found.items():
        cells = study.regimes[name].source.features
        figures[f"coefficients_{name}"] = coefficients(perturbation, cells, name)
        figures[f"strength_{name}"] = error_against_strength(results[name]["test"], name)
        figures[f"training_{name}"] = training_curves(study, name)
        figures[f"diagrams_{name}"] = diagram_shares(study, name)
    for order in sorted({len(p.iterations) for p in found.values()} | {2}):
        figures[f"gallery_order{order}"] = gallery(order, depth=2)
    with local_folder(f"{study.workdir or '.'}/figures") as folder:
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg")
            figure.savefig(folder / f"{name}.png", dpi=150)
    return [f"figures/{name}.png" for name in figures]


def _spread(axes: Axes, x: Any, members: np.ndarray, **style: Any) -> None:
    """Draw the median of the members as a line and their range as a band."""
    middle = np.median(members, axis=-1)
    (line,) = axes.plot(x, middle, **style)
    axes.fill_between(
        x, members.min(-1), members.max(-1), color=line.get_color(), alpha=0.2, linewidth=0
    )


def coefficients(found: Perturbation, cells: int, name: str) -> Figure:
    """Draw the learned Taylor terms beside the exact Born tensors.

    First order as a vector over the cells; second order, and a slice of the third, as matrices,
    with the difference on a scale of its own.
    """
    terms = found.terms()[:3]
    figure = Figure(figsize=(11, 3.4 * len(terms)), layout="constrained")
    figure.suptitle(f"Taylor coefficients of the scattering length at U = 0, {name}")
    grid = figure.add_gridspec(len(terms), 3)
    position = (np.arange(cells) + 0.5) / cells
    for row, term in enumerate(terms):
        order = row + 1
        exact, mean = exact_tensor(cells, order), term.mean(0)
        if order == 1:
            axes = figure.add_subplot(grid[row, :2])
            axes.plot(position, exact, color="black", label="exact first Born term")
            axes.errorbar(
                position, mean, yerr=term.std(0), fmt="o", ms=5, mfc="none", label="learned"
            )
            axes.set(xlabel="cell centre r / range", ylabel=r"$\partial a_0 / \partial U_i$")
            axes.legend(frameon=False)
            axes = figure.add_subplot(grid[row, 2])
            axes.axhline(0, color="black", linewidth=0.8)
            axes.errorbar(position, mean - exact, yerr=term.std(0), fmt="o", ms=4, mfc="none")
            axes.set(xlabel="cell centre r / range", title="learned - exact")
            axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
            continue
        if order == 2:
            what = r"$\frac{1}{2}\,\partial^2 a_0 / \partial U_i \partial U_j$"
        else:
            k = cells // 2
            exact, mean = exact[..., k], mean[..., k]
            third = rf"\partial U_i \partial U_j \partial U_{{{k + 1}}}"
            what = rf"$\frac{{1}}{{6}}\,\partial^3 a_0 / {third}$"
        limit = np.abs(exact).max()
        worst = np.abs(mean - exact).max()
        panels = ((exact, limit, f"exact {what}"), (mean, limit, f"learned {what}"))
        for column, (matrix, bound, title) in enumerate(
            (*panels, (mean - exact, worst, "learned - exact"))
        ):
            axes = figure.add_subplot(grid[row, column])
            image = axes.imshow(
                matrix,
                vmin=-bound,
                vmax=bound,
                cmap="RdBu",
                extent=(0.5, cells + 0.5, cells + 0.5, 0.5),
            )
            axes.set(xlabel="cell j", ylabel="cell i", title=title)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            figure.colorbar(image, ax=axes, shrink=0.9, format="%.1e")
    return figure


def errors_by_iteration(results: Mapping[str, Any]) -> Figure:
    """Draw the error of each order after each iteration: the heart of the theory.

    Filled marks are orders that have been learned, open marks orders beyond the iteration's own.
    """
    figure = Figure(figsize=(1.5 + 3.2 * len(results), 3.8), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        orders = sorted(
            {int(m) for entry in result["coefficients"] for m in entry["known"] | entry["beyond"]}
        )
        for m in orders:
            color = ORDER_COLORS[m - 1]
            points = []
            for entry in result["coefficients"]:
                known = str(m) in entry["known"]
                errors = entry["known" if known else "beyond"].get(str(m))
                if errors is None:
                    continue
                values = np.array(errors["members"])
                x = entry["iteration"] + 0.12 * (m - np.mean(orders))
                axes.plot(
                    np.full(len(values), x), values, "o", ms=4, color=color,
                    mfc=color if known else "none", alpha=0.6,
                )  # fmt: skip
                points.append((x, np.median(values)))
            axes.plot(*zip(*points, strict=True), color=color, label=f"order {m}")
        axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
        axes.set(
            yscale="log",
            title=name,
            xlabel="after iteration",
            xticks=[entry["iteration"] for entry in result["coefficients"]],
        )
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("relative error of the Taylor term")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def one_network(results: Mapping[str, Any]) -> Figure:
    """Draw the first network's errors of the first and second order, regimes by shallowness.

    The paper's first claim: it adapts its derivatives to the leading order alone.
    """
    strength = {
        name: float(np.median([group["lambda"] for group in result["test"]["strength"]]))
        for name, result in results.items()
    }
    names = sorted(results, key=lambda name: strength[name], reverse=True)
    figure = Figure(figsize=(9, 1.6 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    for order, kind in ((1, "known"), (2, "beyond")):
        for row, name in enumerate(names):
            errors = results[name]["coefficients"][0][kind][str(order)]["members"]
            axes.plot(
                errors, np.full(len(errors), row), "o", ms=5, mfc="none",
                color=ORDER_COLORS[order - 1], label=f"order {order}" if row == 0 else None,
            )  # fmt: skip
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xscale="log",
        xlabel="relative error of the Taylor term",
        yticks=range(len(names)),
        yticklabels=[f"{name}  ($\\lambda$ = {strength[name]:.2g})" for name in names],
        title="One network: right to the leading order, wrong in the next",
    )
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def error_against_strength(test: Mapping[str, Any], name: str) -> Figure:
    """Draw the error of learned and exact Born approximations against the shallowness."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    strength = [group["lambda"] for group in test["strength"]]
    for order in test["order"]:
        color = ORDER_COLORS[int(order) - 1]
        exact = [group["born_vs_a0"][order] for group in test["strength"]]
        axes.plot(strength, exact, color=color, linestyle="--", label=f"exact Born {order}")
        learned = np.array([group["proxy_vs_a0"][order] for group in test["strength"]])
        _spread(axes, strength, learned, color=color, marker="o", label=f"learned Born {order}")
    network = np.array([group["network_vs_a0"] for group in test["strength"]])
    _spread(axes, strength, network, color="grey", marker="s", label="networks themselves")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=r"shallowness $\lambda$ of $|U|$ (first pole at 1)",
        ylabel="relative error of the scattering length",
        title=name,
    )
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def training_curves(study: Study, name: str) -> Figure:
    """Draw training loss by member, and the errors of the Taylor terms, against the step."""
    runs = study.runs(name)
    figure = Figure(figsize=(1 + 3.6 * len(runs), 3.4), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, experiment in zip(panels, runs, strict=True):
        assert experiment.workdir is not None
        curves = read_curves(experiment.workdir)
        members = experiment.task.members
        points = np.array([curves[f"train/member/{i}"] for i in range(members)])
        _spread(
            axes, points[0, :, 0], np.sqrt(points[:, :, 1].T), color="grey", label="training error"
        )
        for m in range(1, 4):
            if f"coefficients/order_{m}/0" in curves:
                points = np.array([curves[f"coefficients/order_{m}/{i}"] for i in range(members)])
                _spread(
                    axes,
                    points[0, :, 0],
                    points[:, :, 1].T,
                    color=ORDER_COLORS[m - 1],
                    marker="o",
                    ms=3,
                    label=f"Taylor term {m}",
                )
        axes.set(yscale="log", xlabel="step", title=f"{name}: iteration {experiment.task.order}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("relative error")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def diagram_shares(study: Study, name: str) -> Figure:
    """Draw how the diagrams share the highest learned derivative, through the last iteration."""
    run = study.runs(name)[-1]
    assert run.workdir is not None
    order = max(2, run.task.order)
    diagrams = diagrams_of(run.task.mlp, order)
    curves = read_curves(run.workdir)
    shares = [curves[f"diagrams/order_{order}/{i}"] for i in range(len(diagrams))]
    history = [
        (points[0][0], {d: share for d, (_, share) in zip(diagrams, points, strict=True)})
        for points in zip(*shares, strict=True)
    ]
    title = f"{name}, iteration {run.task.order}: shares of the diagrams of order {order}"
    return stack_shares(history, title=title)
