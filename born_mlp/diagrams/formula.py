"""Diagrams as formulas: Unicode text and LaTeX.

Indices: o is the output, a, b, c.. the neuron of each vertex, j1..jm the input component of each
leg; all but o are summed over. `R_l`, `Q_{k<-l}` and `P_l` are the propagators from y_l to the
output, from y_l to z_k, and from the input to z_l; `R_0` is the Jacobian of the network. The
layers of a topology are open and left out.
"""

import dataclasses
import string
from collections.abc import Iterator

from born_mlp.diagrams.tree import Diagram

_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclasses.dataclass(frozen=True)
class Factor:
    """One factor of a diagram: a propagator, a vertex, or the displacement v at a leg."""

    symbol: str
    """R, Q, P, v, or phi."""
    layers: tuple[int, ...]
    """Layers below the symbol, output side first; empty if open."""
    indices: tuple[str, ...]
    """Its indices, such as `("a", "j1")`."""
    order: int = 0
    """Order of the derivative of phi."""

    def text(self) -> str:
        """Return Unicode text, such as `φ″₂[a]`."""
        symbol = self.symbol
        if symbol == "phi":
            primes = {2: "″", 3: "‴"}
            symbol = "φ" + primes.get(self.order, f"⁽{self.order}⁾".translate(_SUPERSCRIPT))
        subscript = "←".join(map(str, self.layers)).translate(_SUBSCRIPT)
        indices = ",".join(index[0] + index[1:].translate(_SUBSCRIPT) for index in self.indices)
        return f"{symbol}{subscript}[{indices}]"

    def latex(self) -> str:
        r"""Return LaTeX, such as `[\varphi''_{2}]_{a}`."""
        indices = "".join(
            index if len(index) == 1 else f"{index[0]}_{{{index[1:]}}}" for index in self.indices
        )
        if self.symbol == "v":
            return f"v_{{{indices}}}"
        return f"[{self.head_latex()}]_{{{indices}}}"

    def head_latex(self) -> str:
        r"""Return the symbol with its layers in LaTeX, such as `\varphi''_{2}`."""
        symbol = self.symbol
        if symbol == "phi":
            primes = "'" * self.order if self.order < 4 else f"^{{({self.order})}}"
            symbol = rf"\varphi{primes}"
        subscript = r"\leftarrow ".join(map(str, self.layers))
        return f"{symbol}_{{{subscript}}}" if subscript else symbol


def factors(diagram: Diagram) -> Iterator[Factor]:
    """Yield the factors of a diagram: the root first, each vertex before its children, v last."""
    open_layers = bool(diagram.children) and not diagram.layer
    letters = iter(string.ascii_lowercase.replace("j", "").replace("o", "").replace("v", ""))
    legs = [f"j{j}" for j in range(1, diagram.order + 1)]
    unused_legs = iter(legs)

    def layers(*values: int) -> tuple[int, ...]:
        return () if open_layers else values

    def below(tree: Diagram, index: str) -> Iterator[Factor]:
        yield Factor("phi", layers(tree.layer), (index,), order=len(tree.children))
        for child in tree.children:
            if child.children:
                letter = next(letters)
                yield Factor("Q", layers(tree.layer, child.layer), (index, letter))
                yield from below(child, letter)
            else:
                yield Factor("P", layers(tree.layer), (index, next(unused_legs)))

    root = next(letters) if diagram.children else next(unused_legs)
    yield Factor("R", layers(diagram.layer), ("o", root))
    if diagram.children:
        yield from below(diagram, root)
    for leg in legs:
        yield Factor("v", (), (leg,))


def text(diagram: Diagram) -> str:
    """Return the term of `f_o(x + v)` that the diagram stands for, with its symmetry factor."""
    weight = "" if diagram.automorphisms == 1 else f"1/{diagram.automorphisms} "
    return f"{weight}Σ " + " ".join(factor.text() for factor in factors(diagram))


def latex(diagram: Diagram) -> str:
    """Return the same term in LaTeX, for use in mathematics mode."""
    weight = "" if diagram.automorphisms == 1 else rf"\frac{{1}}{{{diagram.automorphisms}}}"
    return rf"{weight}\sum " + r"\,".join(factor.latex() for factor in factors(diagram))
