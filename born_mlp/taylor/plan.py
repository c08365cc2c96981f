"""How the centroid formula of order m is cut into matrix products.

Every diagram of order m has one deepest vertex whose subtree holds more than half of the m legs.
Cutting there (Wigner's 2n+1 theorem) gives

    D^m f = sum_l sum_i sum_(a; b_1..b_k) D^a r_i phi_l^(k)(z_i) D^(b_1) z_i ... D^(b_k) z_i

summed over all distributions of the m indices, with `a < m/2`, `k >= 2` and all `b <= m/2`. Here
`r = df/dy_l` is the root propagator, and only derivatives up to order `m // 2` of z and
`(m - 1) // 2` of r ever pass through a weight matrix.

Order 2 is left to the chain rule of the gradient, see `engine.evaluate`.

The factors of a term are dealt to two groups of w and p indices: the *weighted* group, which holds
r and the vertex, and the *plain* group, a product of derivatives of z. The sum over the neurons i
is then a matrix product `(C_w, H) x (H, C_p)`, and the remaining sum over the ways to deal m
indices out to the groups is a gather.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

from born_mlp import packing

Partition = tuple[int, ...]
"""Orders `b_1 >= b_2 >= ...` of a product of derivatives of z."""


def partitions(total: int, largest: int) -> Iterator[Partition]:
    """Yield the partitions of `total` into parts of at most `largest`, parts descending."""
    if total == 0:
        yield ()
    for part in range(min(total, largest), 0, -1):
        for rest in partitions(total - part, part):
            yield (part, *rest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One kind of term of the centroid formula, dealt to the two groups."""

    adjoint: int
    """Order a of the derivative of r."""
    weighted: Partition
    """Derivatives of z that stand in the weighted group, beside r."""
    plain: Partition
    """Derivatives of z in the plain group."""
    coefficient: float
    """One over how often the sum over the groups repeats the same distribution."""

    @property
    def order(self) -> int:
        """Number of indices w in the weighted group."""
        return self.adjoint + sum(self.weighted)

    @property
    def vertex(self) -> int:
        """Order k of the derivative of the activation."""
        return len(self.weighted) + len(self.plain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The terms whose weighted group holds `w` indices and whose plain group holds `p`."""

    w: int
    p: int
    terms: tuple[Term, ...]

    @property
    def symmetric(self) -> bool:
        """Whether the ways with the first index in the weighted group stand for all.

        They do if exchanging the groups changes nothing, and for a single product of first
        derivatives, whose ways are all equal.
        """
        dealt = {(t.weighted, t.plain): t.coefficient for t in self.terms}
        exchanged = all(dealt.get((t.plain, t.weighted)) == t.coefficient for t in self.terms)
        equal = len(dealt) == 1 and all(set(t.weighted) == set(t.plain) == {1} for t in self.terms)
        return (exchanged or equal) and all(t.adjoint == 0 for t in self.terms)

    @property
    def plains(self) -> tuple[Partition, ...]:
        """The distinct products of the plain group."""
        return tuple(dict.fromkeys(term.plain for term in self.terms))


@functools.cache
def splits(order: int, z_order: int, r_order: int, *, first: bool) -> tuple[Split, ...]:
    """Return the division of the terms of one layer into the fewest and most balanced splits.

    Args:
        order: m, at least 3.
        z_order: highest order of the derivatives of z that do not vanish.
        r_order: highest order of the derivatives of r that do not vanish.
        first: whether this is the first layer. Its plain group is the same at all points, and the
            smallest possible weighted group is then the cheapest.
    """
    kinds = [
        (a, blocks)
        for a in range(min((order - 1) // 2, r_order) + 1)
        for blocks in partitions(order - a, min(order // 2, z_order))
        if len(blocks) >= 2
    ]
    sizes = [max((a for a, _ in kinds), default=0)] if first else range(1, order)
    subsets = [s for n in range(1, len(sizes) + 1) for s in itertools.combinations(sizes, n)]
    # Elementwise work is applied to the weighted group: among equals, it should be the smaller.
    subsets.sort(key=lambda s: (len(s), sum(abs(order - 2 * w) for w in s), sum(s)))
    for subset in subsets:
        dealt = [_deal(a, blocks, subset) for a, blocks in kinds]
        if all(dealt):
            break
    if r_order:
        # A symmetric block, for the price of more terms, is out of reach: deal each kind once.
        dealt = [ways[:1] for ways in dealt]
    terms = [
        dataclasses.replace(term, coefficient=term.coefficient / len(ways))
        for ways in dealt
        for term in ways
    ]
    return tuple(
        Split(w=w, p=order - w, terms=tuple(t for t in terms if t.order == w)) for w in subset
    )


def _deal(adjoint: int, blocks: Partition, sizes: tuple[int, ...]) -> list[Term]:
    """Return the ways to deal the blocks so that the weighted group has the first size that fits.

    The first way has the smallest blocks in the plain group, where few distinct products then
    serve all kinds of terms.
    """
    dealt: dict[int, set[tuple[Partition, Partition]]] = {w: set() for w in sizes}
    for n in range(len(blocks)):
        for chosen in itertools.combinations(range(len(blocks)), n):
            weighted = tuple(blocks[i] for i in chosen)
            plain = tuple(b for i, b in enumerate(blocks) if i not in chosen)
            dealt.get(adjoint + sum(weighted), set()).add((plain, weighted))
    ways = next((ways for ways in dealt.values() if ways), set())
    return [
        Term(
            adjoint=adjoint,
            weighted=weighted,
            plain=plain,
            coefficient=1
            / math.prod(math.comb(blocks.count(b), weighted.count(b)) for b in set(blocks)),
        )
        for plain, weighted in sorted(ways)
    ]


def layer_splits(order: int, n_layers: int) -> list[tuple[Split, ...]]:
    """Return the splits of each of the nonlinear layers 1..K."""
    return [
        splits(
            order,
            1 if layer == 0 else order // 2,
            0 if layer == n_layers - 1 else (order - 1) // 2,
            first=layer == 0,
        )
        for layer in range(n_layers)
    ]


def working_set(widths: tuple[int, ...], d: int, order: int) -> int:
    """Return the numbers that are alive at once for one point, roughly.

    Args:
        widths: `(inputs, H_1, ..., outputs)` of the network.
        d: number of variables of differentiation.
        order: highest order.
    """
    widest, outputs = max(widths[1:]), widths[-1]
    half = packing.size(d, order // 2)
    products = 2 * widest * half
    if order < 2:
        return products
    if order == 2:  # the first derivatives of z and r, each before and after a kernel
        return 4 * widest * d * outputs
    block = half * packing.size(d, order - order // 2)
    return 2 * products + outputs * (products + block + packing.size(d, order))
