"""Propagator/vertex diagrams as rooted trees: enumeration, layers and symmetry.

A derivative of order m of an MLP is a sum over series-reduced rooted trees with m leaves. A leaf
(an external leg) is one differentiation with respect to the input, a node with k children is a
vertex `phi_l^(k)` in a nonlinear layer l of 1..K, and layers decrease strictly towards the leaves.
The trees are what iterating the formula of Faa di Bruno over the layers gives, once every block
of one element (a factor phi') has been absorbed into the propagators.
"""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction


@dataclasses.dataclass(frozen=True, order=True)
class Diagram:
    """A diagram up to permutation of its legs, in canonical form: equal trees compare equal.

    It is the root vertex; `Diagram()` is a single leg from input to output, the only diagram of
    order 1. A topology is a diagram whose layers are left open (0 everywhere).
    """

    layer: int = 0
    """Layer 1..K of the root vertex; 0 for a leg, which starts at the input y_0 = x, and for the
    vertices of a topology."""
    children: tuple["Diagram", ...] = ()
    """Subdiagrams that feed the root vertex, kept in descending order; empty for a leg."""

    def __post_init__(self) -> None:
        if len(self.children) == 1:
            raise ValueError("a vertex needs at least two children: phi' belongs to a propagator")
        if self.layer and not self.children:
            raise ValueError(f"a leg starts at the input, layer 0, not at layer {self.layer}")
        if self.children and max(child.layer for child in self.children) >= max(self.layer, 1):
            layers = [child.layer for child in self.children]
            raise ValueError(
                f"layers must decrease from the root to the legs, but a vertex in layer "
                f"{self.layer} has children in layers {layers}"
            )
        if self.layer and any(child.children and not child.layer for child in self.children):
            raise ValueError("give a layer to every vertex, or to none")
        object.__setattr__(self, "children", tuple(sorted(self.children, reverse=True)))

    def __str__(self) -> str:
        """Compact notation: `2(1(..).)` has its root in layer 2, a dot is a leg."""
        if not self.children:
            return "."
        return f"{self.layer or ''}({''.join(map(str, self.children))})"

    @functools.cached_property
    def order(self) -> int:
        """Number of legs m: the order of the derivative."""
        return sum(child.order for child in self.children) if self.children else 1

    @functools.cached_property
    def automorphisms(self) -> int:
        """|Aut|, the number of permutations of the legs that leave the (layered) tree as it is."""
        repeats = math.prod(math.factorial(n) for n in Counter(self.children).values())
        return repeats * math.prod(child.automorphisms for child in self.children)

    @property
    def symmetry_factor(self) -> Fraction:
        """1/|Aut|, the weight of the diagram in the expansion of `f(x + v)`."""
        return Fraction(1, self.automorphisms)

    @property
    def multiplicity(self) -> int:
        """m!/|Aut|: number of diagrams with labelled legs, each of weight one in `D^m f`."""
        return math.factorial(self.order) // self.automorphisms

    @property
    def vertices(self) -> tuple["Diagram", ...]:
        """The subdiagrams rooted at each vertex, this one first, depth first."""
        if not self.children:
            return ()
        return (self, *itertools.chain.from_iterable(child.vertices for child in self.children))

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of all vertices, descending."""
        return tuple(sorted((vertex.layer for vertex in self.vertices), reverse=True))

    @property
    def topology(self) -> "Diagram":
        """The same tree with its layers left open."""
        return Diagram(children=tuple(child.topology for child in self.children))

    @property
    def height(self) -> int:
        """Number of vertices on the longest path to a leg: the smallest depth K that holds it."""
        return 1 + max(child.height for child in self.children) if self.children else 0


LEG = Diagram()
"""A single leg."""


@functools.cache
def topologies(order: int) -> tuple[Diagram, ...]:
    """Return all topologies with `order` legs, by number of vertices; A000669 counts them."""
    require(order)
    if order == 1:
        return (LEG,)
    trees = [Diagram(children=children) for children in _forests(order, topologies)]
    return tuple(sorted(trees, key=lambda tree: (len(tree.vertices), tree)))


@functools.cache
def enumerate_diagrams(order: int, depth: int) -> tuple[Diagram, ...]:
    """Return all diagrams of `order` in `depth` nonlinear layers, up to permutation of the legs.

    They are sorted by topology, as `topologies` lists them, then by layers. Their multiplicities
    add up to the number of labelled diagrams, `counts.labelled(order)(depth)`.
    """
    require(order, depth)
    if order == 1:
        return (LEG,)
    diagrams = [
        Diagram(layer, children)
        for layer in range(1, depth + 1)
        for children in _forests(order, functools.partial(enumerate_diagrams, depth=layer - 1))
    ]
    position = {topology: i for i, topology in enumerate(topologies(order))}
    return tuple(sorted(diagrams, key=lambda d: (position[d.topology], d.layers, d)))


def _forests(
    order: int, pool: Callable[[int], tuple[Diagram, ...]]
) -> Iterator[tuple[Diagram, ...]]:
    """Yield the multisets of at least two trees with `order` legs; `pool(n)` has those with n."""
    for partition in _partitions(order, order - 1):
        choices = [
            itertools.combinations_with_replacement(pool(legs), n)
            for legs, n in Counter(partition).items()
        ]
        for forest in itertools.product(*choices):
            yield tuple(itertools.chain.from_iterable(forest))


def _partitions(n: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Yield the partitions of `n` into descending parts of at most `largest`."""
    if n == 0:
        yield ()
    for part in range(min(n, largest), 0, -1):
        for rest in _partitions(n - part, part):
            yield (part, *rest)


def require(order: int, depth: int = 0) -> None:
    """Raise ValueError unless `order` >= 1 and `depth` >= 0."""
    if order < 1:
        raise ValueError(f"order = {order}: a derivative has order 1 or more")
    if depth < 0:
        raise ValueError(f"depth = {depth}: the number of nonlinear layers cannot be negative")
