"""How many diagrams there are, as polynomials in the depth K, without enumerating layerings.

A subdiagram with root in layer k chooses its children among those with roots below k, so that the
number of layerings obeys `N(K) = sum_{k=1..K} g(k - 1)` with g a product over the children. A tree
with m legs has at most m - 1 vertices: N is a polynomial of degree m - 1 at most, and its values
at K = 0..m-1, which are integers, determine it.
"""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from born_mlp.diagrams.tree import Diagram, require


@dataclasses.dataclass(frozen=True)
class CountPolynomial:
    """A polynomial in the depth K that takes integer values."""

    binomial: tuple[int, ...]
    """Coefficients c_j of `sum_j c_j C(K, j)`, from j = 0; the last one is not zero."""

    @classmethod
    def interpolate(cls, values: Sequence[int]) -> "CountPolynomial":
        """Return the polynomial of degree n - 1 with `values` of length n at K = 0..n-1."""
        differences, row = [], list(values)
        while row:
            differences.append(row[0])
            row = [b - a for a, b in itertools.pairwise(row)]
        while differences and differences[-1] == 0:
            differences.pop()
        return cls(tuple(differences))

    def __call__(self, depth: int) -> int:
        """Evaluate at K = `depth` >= 0."""
        return sum(c * math.comb(depth, j) for j, c in enumerate(self.binomial))

    @property
    def monomial(self) -> tuple[Fraction, ...]:
        """Coefficients of `sum_j a_j K^j`, from j = 0, exact."""
        total = [Fraction(0)] * len(self.binomial)
        falling = [Fraction(1)]  # C(K, j) as a polynomial in K
        for j, c in enumerate(self.binomial):
            for power, a in enumerate(falling):
                total[power] += c * a
            shifted, scaled = [Fraction(0), *falling], [*(j * a for a in falling), Fraction(0)]
            falling = [(a - b) / (j + 1) for a, b in zip(shifted, scaled, strict=True)]
        return tuple(total)

    def __str__(self) -> str:
        """Binomial form, as in `K + 3 C(K,2)`."""
        return _sum(self.binomial, lambda j: "K" if j == 1 else f"C(K,{j})", times=" ")

    def latex(self) -> str:
        """Binomial form in LaTeX, which matplotlib's mathtext reads too."""
        return _sum(self.binomial, lambda j: "K" if j == 1 else rf"\binom{{K}}{{{j}}}", times=r"\,")


def layerings(topology: Diagram) -> CountPolynomial:
    """Return the number of diagrams of a topology, up to permutation of the legs."""
    return CountPolynomial.interpolate(_layerings(topology, topology.order))


def labelled_layerings(topology: Diagram) -> CountPolynomial:
    """Return the number of diagrams of a topology with labelled legs.

    It is m!/|Aut| times the strict order polynomial of the tree of vertices: once the legs are
    labelled no symmetry is left.
    """
    values = _strict_order(topology, topology.order)
    return CountPolynomial.interpolate([topology.multiplicity * n for n in values])


def diagrams(order: int) -> CountPolynomial:
    """Return the number of diagrams of `order`, up to permutation of the legs.

    One more layer is one more Euler transform, as the children of the new layer's vertices (or the
    single propagator that passes it by) form a multiset: partitions for K = 2, A001970 for K = 3.
    """
    require(order)
    rows = [[1] * order]  # K = 1: a single vertex, or at order 1 the propagator
    while len(rows) < order:
        rows.append(_euler_transform(rows[-1]))
    return CountPolynomial.interpolate([int(order == 1), *(row[-1] for row in rows)][:order])


def labelled_diagrams(order: int) -> CountPolynomial:
    """Return the number of diagrams of `order` with labelled legs: the terms of `D^m f`.

    Its value at K is `m! [x^m] E(E(..E(x)))` with K times `E(x) = exp(x) - 1`, as one more layer
    partitions the labels once more: Bell numbers for K = 2, A000258 and A000307 for K = 3 and 4.
    """
    require(order)
    stirling = _stirling_second_kind(order)
    rows = [[int(n == 1) for n in range(1, order + 1)]]  # K = 0: the identity
    while len(rows) < order:
        rows.append(
            [sum(s * a for s, a in zip(row, rows[-1], strict=True)) for row in stirling],
        )
    return CountPolynomial.interpolate([row[-1] for row in rows])


@functools.cache
def _layerings(topology: Diagram, depths: int) -> tuple[int, ...]:
    """Return the number of layerings up to permutation for K = 0..depths-1."""
    if not topology.children:
        return (1,) * depths
    below = [(_layerings(child, depths), n) for child, n in Counter(topology.children).items()]
    new = (
        math.prod(math.comb(values[k] + n - 1, n) for values, n in below)  # multisets of n each
        for k in range(depths - 1)
    )
    return tuple(itertools.accumulate(new, initial=0))


@functools.cache
def _strict_order(topology: Diagram, depths: int) -> tuple[int, ...]:
    """Return the strict order polynomial of the tree of vertices for K = 0..depths-1."""
    if not topology.children:
        return (1,) * depths
    below = [_strict_order(child, depths) for child in topology.children]
    new = (math.prod(values[k] for values in below) for k in range(depths - 1))
    return tuple(itertools.accumulate(new, initial=0))


def _euler_transform(a: Sequence[int]) -> list[int]:
    """Return b_1..b_n with `1 + sum b_i x^i = prod_i (1 - x^i)^(-a_i)`, for a_1..a_n."""
    c = [sum(d * a[d - 1] for d in range(1, n + 1) if n % d == 0) for n in range(1, len(a) + 1)]
    b: list[int] = []
    for n in range(1, len(a) + 1):
        b.append((c[n - 1] + sum(c[k - 1] * b[n - k - 1] for k in range(1, n))) // n)
    return b


def _stirling_second_kind(n: int) -> list[list[int]]:
    """Return S(i, j), the partitions of i labels into j blocks, for i, j = 1..n."""
    rows = [[int(j == 1) for j in range(1, n + 1)]]
    while len(rows) < n:
        last = rows[-1]
        rows.append([(j + 1) * s + (last[j - 1] if j else 0) for j, s in enumerate(last)])
    return rows


def _sum(coefficients: Sequence[int], term: Callable[[int], str], *, times: str) -> str:
    """Write `sum_j c_j term(j)` for counts, whose constant stands alone: a single leg."""
    terms = [
        str(c) if j == 0 else term(j) if c == 1 else f"{c}{times}{term(j)}"
        for j, c in enumerate(coefficients)
        if c
    ]
    return " + ".join(terms) or "0"
