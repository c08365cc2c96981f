"""How much each class of diagrams contributes to a derivative, and how that changes in training."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic

import jax.numpy as jnp
import matplotlib
import numpy as np
from jax import Array
from jaxtyping import Float
from matplotlib.figure import Figure

from born_mlp.diagrams.draw import add_panel, draw, size
from born_mlp.diagrams.tree import Diagram
from born_mlp.diagrams.values import Key, by_class, contributions, diagrams_of
from born_mlp.mlp import MLP, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares(Generic[Key]):
    """Sizes of classes of diagrams, averaged over points and directions."""

    classes: dict[Key, float]
    """Mean absolute contribution of each class, over the sum of these means: they add up to 1."""
    remaining: float
    """Mean absolute total over the same sum: 1 if no class cancels another, 0 if all cancels."""


def shares(
    mlp: MLP,
    params: Params,
    x: Float[Array, "*#batch d"],
    v: Float[Array, "*#batch d"],
    *,
    order: int,
    key: Callable[[Diagram], Key],
) -> Shares[Key]:
    """Compare the classes of `key` by what they contribute to the term of order m of `f(x + v)`.

    Contributions of one class add up with their signs before the absolute value is taken; the mean
    is over points, directions and outputs. `values.by_class` has examples of keys.
    """
    values = contributions(mlp, params, x, v, order=order)
    classes = by_class(values, diagrams_of(mlp, order), key)
    sizes = {name: float(jnp.mean(jnp.abs(value))) for name, value in classes.items()}
    gross = sum(sizes.values())
    if not gross > 0 or not np.isfinite(gross):
        raise ValueError(f"the contributions of order {order} add up to {gross}: no shares")
    total = float(jnp.mean(jnp.abs(values.sum(axis=0))))
    return Shares(
        classes={name: size / gross for name, size in sizes.items()}, remaining=total / gross
    )


def plot_shares(
    history: Sequence[tuple[int, Params]],
    mlp: MLP,
    x: Float[Array, "*#batch d"],
    v: Float[Array, "*#batch d"],
    *,
    order: int,
    key: Callable[[Diagram], Hashable] = lambda diagram: diagram.topology,
) -> Figure:
    """Return a figure of the shares of classes of diagrams against the training step.

    `history` has `(step, params)` by ascending step. The dashed line is `Shares.remaining`.
    """
    found = [shares(mlp, params, x, v, order=order, key=key) for _, params in history]
    figure = stack_shares(
        [(step, one.classes) for (step, _), one in zip(history, found, strict=True)],
        title=f"Diagrams of order {order}",
    )
    axes = figure.axes[0]
    remaining = [one.remaining for one in found]
    label = "|sum| / sum of |classes|"
    axes.plot([step for step, _ in history], remaining, color="black", ls="--", lw=1.5, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, -0.03), frameon=False, fontsize=9)
    return figure


def stack_shares(history: Sequence[tuple[int, Mapping[Key, float]]], *, title: str) -> Figure:
    """Return a figure of shares, stacked, against the training step.

    `history` has `(step, shares by class)` by ascending step, two or more, all with the same
    classes. A class that is a diagram gets its picture in the legend, any other its name.
    """
    steps = [step for step, _ in history]
    if len(steps) < 2 or sorted(set(steps)) != steps:
        raise ValueError(f"a stack of shares needs two or more ascending steps, got {steps}")
    names = list(history[0][1])
    colors = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.9, len(names)))
    left, bottom, plot, row = 0.75, 0.65, 5.2, max(0.7, 3.2 / len(names))  # inches
    width, height = left + plot + 2.7, bottom + row * len(names) + 0.45
    result = Figure(figsize=(width, height))
    axes = add_panel(result, left, bottom, plot, row * len(names))
    stack = [[classes[name] for _, classes in history] for name in names]
    axes.stackplot(steps, stack, colors=colors, edgecolor="white", linewidth=0.8)
    axes.set_xlim(steps[0], steps[-1])
    axes.set_ylim(0, 1)
    axes.set_xlabel("training step")
    axes.set_ylabel("share of the absolute contributions")
    axes.set_title(title)
    pictures = [size(name, detail="lines") for name in names if isinstance(name, Diagram)]
    scale = min([0.2, *(min(2.0 / w, 0.9 * row / h) for w, h in pictures)])
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        middle = bottom + (i + 0.5) * row
        patch = add_panel(result, left + plot + 0.2, middle - 0.11, 0.22, 0.22)
        patch.set_facecolor(color)
        patch.set(xticks=[], yticks=[])
        if isinstance(name, Diagram):
            w, h = (scale * length for length in size(name, detail="lines"))
            panel = add_panel(result, left + plot + 0.55, middle - h / 2, w, h)
            draw(panel, name, detail="lines")
        else:
            result.text((left + plot + 0.55) / width, middle / height, str(name), va="center")
    return result
