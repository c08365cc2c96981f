"""Make galleries of diagrams, and check the sum rule: `python -m born_mlp.diagrams --help`."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from born_mlp.diagrams import draw, enumerate_diagrams, formula, tikz, topologies, values
from born_mlp.mlp import MLP, load_network


def gallery(
    *, order: int, depth: int | None = None, out: pathlib.Path = pathlib.Path("runs/diagrams")
) -> None:
    """Draw all diagrams: a gallery and one figure each (SVG and PNG), formulas, LaTeX.

    Args:
        order: Order m of the derivative.
        depth: Number K of nonlinear layers; without it, the topologies with open layers.
        out: Folder to write to.
    """
    page = draw.gallery(order, depth)
    diagrams = topologies(order) if depth is None else enumerate_diagrams(order, depth)
    name = f"order{order}" + ("_topologies" if depth is None else f"_depth{depth}")
    (out / name).mkdir(parents=True, exist_ok=True)
    for suffix in ("svg", "png"):
        page.savefig(out / f"{name}.{suffix}", dpi=160)
    for i, diagram in enumerate(diagrams, start=1):
        single = draw.figure(diagram, depth)
        for suffix in ("svg", "png"):
            single.savefig(out / name / f"{i:03}.{suffix}", dpi=160)
    lines = [f"({i})  {formula.text(diagram)}\n" for i, diagram in enumerate(diagrams, start=1)]
    (out / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    (out / f"{name}.tex").write_text(tikz.document(diagrams, depth), encoding="utf-8")
    print("".join(lines), end="")
    print(f"written: {out / name}.svg .png .txt .tex, and one figure each in {out / name}/")


def check(
    *,
    order: int = 3,
    in_features: int = 3,
    hidden: tuple[int, ...] = (5, 4),
    out_features: int | None = None,
    activation: str = "gelu",
    output_activation: str | None = None,
    seed: int = 0,
    networks: pathlib.Path | None = None,
    member: int = 0,
) -> None:
    """Add up the diagrams of an MLP and compare with nested autodiff, in double precision.

    The point is the origin of a trained network, a random one of a random network.

    Args:
        order: Order m of the derivative.
        networks: `networks.safetensors` of a training run; without it, a random network of
            the options below.
        member: Network of the ensemble, counted from 0.
        in_features: Dimension of the input.
        hidden: Widths of the hidden layers.
        out_features: Dimension of the output; scalar without it.
        activation: Name of the activation.
        output_activation: Activation of the output layer; linear without it.
        seed: Seed of the weights and of the point.
    """
    with jax.enable_x64(True):
        if networks is None:
            mlp = MLP(
                in_features=in_features,
                hidden=hidden,
                out_features=out_features,
                activation=activation,
                output_activation=output_activation,
            )
            weights, point = jax.random.split(jax.random.key(seed))
            params = mlp.init(weights, dtype=jnp.float64)
            x = jax.random.normal(point, (in_features,))
        else:
            mlp, ensemble = load_network(networks)
            members = len(ensemble[0]["kernel"])
            if not 0 <= member < members:
                raise ValueError(f"{networks} has the members 0 to {members - 1}, not {member}")
            params = jax.tree.map(lambda leaf: leaf[member], ensemble)
            x = jnp.zeros(mlp.in_features)
        diagrams = values.diagrams_of(mlp, order)
        tensors = np.asarray(values.tensors(mlp, params, x, order=order))
        error = values.check_sum_rule(mlp, params, x, order=order)
    for diagram, tensor in zip(diagrams, tensors, strict=True):
        norm = np.linalg.norm(np.ravel(tensor))
        print(f"{diagram!s:24} multiplicity {diagram.multiplicity:4}   norm {norm:.3e}")
    print(f"{len(diagrams)} diagrams add up to the derivative of order {order}: error {error:.1e}")


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"gallery": gallery, "check": check})
    except ValueError as error:
        sys.exit(f"error: {error}")
