"""The mixed order: shares, epochs, and that any part of it can be had by itself."""

import collections

import numpy as np
import pytest

from molt5_multitask.data.mixing import BLOCK, Mixing, Mixture

COUNTS = {"large": 6_000, "middle": 1_000, "small": 50}


def test_shares_of_each_strategy() -> None:
    def shares(**kwargs: object) -> list[float]:
        return list(Mixing(**kwargs).shares({"a": 900, "b": 100}).values())  # type: ignore[arg-type]

    assert shares() == pytest.approx([0.9, 0.1])
    assert shares(strategy="equal") == pytest.approx([0.5, 0.5])
    # Square roots: 30 to 10.
    assert shares(strategy="temperature", temperature=2.0) == pytest.approx([0.75, 0.25])
    assert shares(strategy="temperature", temperature=1.0) == pytest.approx([0.9, 0.1])
    assert shares(weights={"b": 3, "a": 1}) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        (Mixing(weights={"a": 1}), r"name the tasks \['a'\], the data has \['a', 'b'\]"),
        (Mixing(weights={"a": 1, "b": 0}), "weight of b is 0.0; it must be positive"),
        (Mixing(weights={"a": 1, "b": float("inf")}), "weight of b is inf"),
        (Mixing(strategy="temperature", temperature=0), "temperature must be positive, got 0"),
        (Mixing(strategy="equl"), "strategy = 'equl' is unknown; did you mean 'equal'"),  # type: ignore[arg-type]
    ],
)
def test_impossible_shares_are_refused(mixing: Mixing, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixing.shares({"a": 2, "b": 3})


def test_a_task_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="task b has no examples"):
        Mixing().shares({"a": 2, "b": 0})


def test_each_block_has_the_shares() -> None:
    mixture = Mixture(COUNTS, Mixing(strategy="equal"), seed=0)
    for block in range(2):
        counts = np.bincount(mixture.positions(block * BLOCK, BLOCK).task)
        assert sorted(counts) == [BLOCK // 3, BLOCK // 3, BLOCK // 3 + 1]
    # Within a block, tasks are mixed: no stretch of it is far from the shares.
    stretch = np.bincount(mixture.positions(5_000, 3_000).task)
    assert np.abs(stretch - 1_000).max() < 5 * np.sqrt(3_000 * 2 / 9)


def test_proportional_mixing_repeats_all_examples_alike() -> None:
    mixture = Mixture(COUNTS, Mixing(), seed=0)
    passes = mixture.passes(BLOCK)
    assert passes == pytest.approx(dict.fromkeys(COUNTS, BLOCK / 7_050), rel=0.002)


def test_each_epoch_of_a_task_is_a_fresh_permutation() -> None:
    mixture = Mixture(COUNTS, Mixing(), seed=0)
    found = mixture.positions(0, 3 * BLOCK)
    for number, count in enumerate(COUNTS.values()):
        rows = found.row[found.task == number]
        epochs = rows[: len(rows) // count * count].reshape(-1, count)
        assert len(epochs) > 20
        np.testing.assert_array_equal(
            np.sort(epochs, 1), np.tile(np.arange(count), (len(epochs), 1))
        )
        assert len({epoch.tobytes() for epoch in epochs}) == len(epochs)


def test_passes_are_what_was_drawn() -> None:
    mixture = Mixture(COUNTS, Mixing(strategy="temperature"), seed=0)
    drawn = collections.Counter(mixture.positions(0, 2 * BLOCK).task.tolist())
    expected = {name: drawn[i] / count for i, (name, count) in enumerate(COUNTS.items())}
    assert mixture.passes(2 * BLOCK) == pytest.approx(expected)


def test_the_order_can_be_had_from_anywhere() -> None:
    whole = Mixture(COUNTS, Mixing(), seed=3).positions(0, 3 * BLOCK)
    for start, count in ((0, 10), (BLOCK - 3, 7), (2 * BLOCK - 1, BLOCK), (123, 2 * BLOCK)):
        # A new one each time: nothing depends on what was read before.
        part = Mixture(COUNTS, Mixing(), seed=3).positions(start, count)
        np.testing.assert_array_equal(part.task, whole.task[start : start + count])
        np.testing.assert_array_equal(part.row, whole.row[start : start + count])


def test_seeds_give_other_orders() -> None:
    a, b = (Mixture(COUNTS, Mixing(), seed=seed).positions(0, 1_000) for seed in (0, 1))
    assert (a.task != b.task).any()
    assert (a.row[a.task == 0][:400] != b.row[b.task == 0][:400]).mean() > 0.9


def test_tasks_of_one_size_have_orders_of_their_own() -> None:
    found = Mixture({"a": 500, "b": 500}, Mixing(), seed=0).positions(0, 900)
    a, b = (found.row[found.task == i][:400] for i in (0, 1))
    assert (a != b).mean() > 0.9


def test_a_further_task_does_not_change_the_order_within_the_others() -> None:
    def rows_of_a(counts: dict[str, int]) -> np.ndarray:
        mixture = Mixture(counts, Mixing(strategy="equal"), seed=0)
        found = mixture.positions(0, BLOCK)
        return found.row[found.task == list(counts).index("a")][:1_000]

    np.testing.assert_array_equal(rows_of_a({"a": 400}), rows_of_a({"b": 300, "a": 400}))


def test_a_vanishing_share_is_still_drawn() -> None:
    mixture = Mixture({"a": 10, "b": 10}, Mixing(weights={"a": 1, "b": 1e-9}), seed=0)
    assert np.bincount(mixture.positions(0, BLOCK).task).tolist() == [BLOCK - 1, 1]
