"""Enumeration, symmetry and counts of the diagrams, against sequences and independent formulas."""

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import pytest

from born_mlp.diagrams import LEG, Diagram, counts, enumerate_diagrams, topologies
from born_mlp.diagrams.counts import CountPolynomial

PAIR = Diagram(children=(LEG, LEG))


def compose(outer: list[Fraction], inner: list[Fraction]) -> list[Fraction]:
    """Compose truncated power series without constant terms; entry n belongs to x^(n+1)."""
    size = len(inner)
    power, total = [Fraction(1)] + [Fraction(0)] * size, [Fraction(0)] * (size + 1)
    series = [Fraction(0), *inner]
    for coefficient in outer:
        power = [sum(power[i] * series[n - i] for i in range(n + 1)) for n in range(size + 1)]
        total = [a + coefficient * b for a, b in zip(total, power, strict=True)]
    return total[1:]


def set_partitions(labels: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    if not labels:
        yield []
        return
    first, rest = labels[0], labels[1:]
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            remaining = tuple(label for label in rest if label not in others)
            for partition in set_partitions(remaining):
                yield [(first, *others), *partition]


def labelled_diagrams(labels: tuple[int, ...], depth: int) -> Iterator[Diagram]:
    """Yield the shape of every diagram with labelled legs, by brute force over set partitions."""
    if len(labels) == 1:
        yield LEG
        return
    for layer in range(1, depth + 1):
        for blocks in set_partitions(labels):
            if len(blocks) > 1:
                subdiagrams = [list(labelled_diagrams(block, layer - 1)) for block in blocks]
                for children in itertools.product(*subdiagrams):
                    yield Diagram(layer, children)


def test_topologies_match_a000669_and_total_partitions_a000311() -> None:
    assert [len(topologies(m)) for m in range(1, 8)] == [1, 1, 2, 5, 12, 33, 90]
    total = [sum(tree.multiplicity for tree in topologies(m)) for m in range(1, 8)]
    assert total == [1, 1, 4, 26, 236, 2752, 39208]


@pytest.mark.parametrize(
    ("depth", "labelled", "unlabelled"),
    [
        (1, [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        (2, [1, 2, 5, 15, 52], [1, 2, 3, 5, 7]),  # Bell; partitions
        (3, [1, 3, 12, 60, 358], [1, 3, 6, 14, 27]),  # A000258; A001970
        (4, [1, 4, 22, 154, 1304], [1, 4, 10, 30, 75]),  # A000307; A007713
    ],
)
def test_layered_counts(depth: int, labelled: list[int], unlabelled: list[int]) -> None:
    for order, (n, p) in enumerate(zip(labelled, unlabelled, strict=True), start=1):
        diagrams = enumerate_diagrams(order, depth)
        assert sum(diagram.multiplicity for diagram in diagrams) == n
        assert len(diagrams) == len(set(diagrams)) == p
        assert counts.labelled_diagrams(order)(depth) == n
        assert counts.diagrams(order)(depth) == p


@pytest.mark.parametrize(("order", "depth"), [(3, 3), (4, 2), (4, 3), (5, 2)])
def test_multiplicity_counts_labelled_diagrams(order: int, depth: int) -> None:
    found = list(labelled_diagrams(tuple(range(order)), depth))
    assert set(found) == set(enumerate_diagrams(order, depth))
    assert all(found.count(diagram) == diagram.multiplicity for diagram in set(found))


def test_labelled_count_is_an_iterated_exponential() -> None:
    exponential = [Fraction(1, math.factorial(n)) for n in range(1, 8)]
    series = exponential
    for depth in range(1, 6):
        expected = [math.factorial(n) * a for n, a in enumerate(series, start=1)]
        assert [counts.labelled_diagrams(n)(depth) for n in range(1, 8)] == expected
        series = compose(exponential, series)


@pytest.mark.parametrize("order", range(1, 8))
def test_counts_by_topology_add_up(order: int) -> None:
    for depth in range(9):
        trees = topologies(order)
        total = sum(counts.layerings(tree)(depth) for tree in trees)
        assert total == counts.diagrams(order)(depth)
        labelled = sum(counts.labelled_layerings(tree)(depth) for tree in trees)
        assert labelled == counts.labelled_diagrams(order)(depth)


def test_counts_by_topology_match_enumeration() -> None:
    diagrams = enumerate_diagrams(5, 4)
    for tree in topologies(5):
        layered = [diagram for diagram in diagrams if diagram.topology == tree]
        assert counts.layerings(tree)(4) == len(layered)
        assert counts.labelled_layerings(tree)(4) == sum(d.multiplicity for d in layered)


def test_polynomials_of_the_specification() -> None:
    third, fourth = counts.labelled_diagrams(3), counts.labelled_diagrams(4)
    assert counts.labelled_diagrams(2).monomial == (0, 1)
    assert third.binomial == (0, 1, 3)
    for k in range(10):
        pairs = 3 * Fraction(k * (k - 1) * (2 * k - 1), 6)
        assert fourth(k) == k + 10 * math.comb(k, 2) + pairs + 12 * math.comb(k, 3)
        assert sum(a * k**j for j, a in enumerate(fourth.monomial)) == fourth(k)
    assert str(third) == "K + 3 C(K,2)"
    assert third.latex() == r"K + 3\,\binom{K}{2}"
    assert str(CountPolynomial.interpolate([0, 0, 0])) == "0"
    assert str(counts.labelled_diagrams(1)) == "1"


def test_symmetry_of_the_examples() -> None:
    star = Diagram(children=(LEG,) * 4)
    two_pairs = Diagram(children=(PAIR, PAIR))
    assert star.symmetry_factor == Fraction(1, 24)
    assert two_pairs.symmetry_factor == Fraction(1, 8)
    assert two_pairs.multiplicity == 3
    # A layer tells two pairs apart.
    low, high = Diagram(1, (LEG, LEG)), Diagram(2, (LEG, LEG))
    assert Diagram(3, (low, high)).symmetry_factor == Fraction(1, 4)


def test_canonical_form_ignores_the_order_of_children() -> None:
    low, high = Diagram(1, (LEG, LEG)), Diagram(2, (LEG, LEG, LEG))
    one, other = Diagram(3, (low, high, LEG)), Diagram(3, (LEG, high, low))
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == str(other) == "3(2(...)1(..).)"
    assert one.layers == (3, 2, 1)
    assert one.height == 2
    assert one.order == 6


@pytest.mark.parametrize(
    ("layer", "children", "message"),
    [
        (1, (LEG,), "at least two children"),
        (2, (), "starts at the input"),
        (1, (Diagram(1, (LEG, LEG)), LEG), "must decrease"),
        (0, (Diagram(1, (LEG, LEG)), LEG), "must decrease"),
        (2, (PAIR, LEG), "a layer to every vertex"),
    ],
)
def test_trees_that_are_no_diagrams(
    layer: int, children: tuple[Diagram, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Diagram(layer, children)


def test_order_and_depth_are_checked() -> None:
    for function in (topologies, counts.diagrams, counts.labelled_diagrams):
        with pytest.raises(ValueError, match="order = 0"):
            function(0)
    with pytest.raises(ValueError, match="depth = -1"):
        enumerate_diagrams(2, -1)
    assert enumerate_diagrams(2, 0) == ()
    assert enumerate_diagrams(1, 0) == (LEG,)
