"""Seekable data and its background transfer."""

import functools
import itertools
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from common.data import ArrayData, EpochOrder, OnePass, prefetch, stack_steps


def test_each_epoch_holds_every_row_once_and_in_another_order():
    order = EpochOrder(10, seed=3)
    first, second = order.rows(0, 10), order.rows(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def test_a_batch_depends_on_seed_and_step_alone():
    arrays = {"x": np.arange(10)}
    forward = ArrayData(arrays, batch_size=4, seed=0)
    batches = [forward.batch(step)["x"] for step in range(10)]
    assert sorted(np.concatenate(batches)) == sorted(list(range(10)) * 4)
    shuffled = ArrayData(arrays, batch_size=4, seed=0)
    for step in (7, 2, 9, 0, 2):
        np.testing.assert_array_equal(shuffled.batch(step)["x"], batches[step])
    other = ArrayData(arrays, batch_size=4, seed=1)
    assert any((other.batch(s)["x"] != batches[s]).any() for s in range(3))


def test_a_batch_may_span_several_epochs():
    rows = ArrayData({"x": np.arange(3)}, batch_size=7, seed=0).batch(0)["x"]
    assert np.bincount(rows).tolist() in ([2, 2, 3], [2, 3, 2], [3, 2, 2])


def test_spec_is_the_shape_of_a_batch():
    data = ArrayData({"x": np.zeros((9, 2), np.float32)}, batch_size=4, seed=0)
    assert data.spec()["x"].shape == data.batch(0)["x"].shape == (4, 2)
    assert stack_steps(data, 0, 3)["x"].shape == (3, 4, 2)


def test_a_part_of_a_batch_is_a_slice_of_it():
    data = ArrayData({"x": np.arange(9)}, batch_size=4, seed=0)
    whole = stack_steps(data, 3, 2)["x"]
    np.testing.assert_array_equal(stack_steps(data, 3, 2, slice(1, 3))["x"], whole[:, 1:3])


@pytest.mark.parametrize("kind", [functools.partial(ArrayData, seed=0), OnePass])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3), "y": np.zeros(4)}, r"same number of rows.*'x': 3, 'y': 4"),
        ({"x": np.zeros((0, 3))}, r"at least one array and one row.*'x': 0"),
        ({}, "at least one array"),
        ({"x": np.zeros(3), "y": 2.0}, r"'y' must hold rows of numbers.* got 2\.0"),
        ({"x": None}, "'x' must hold rows of numbers.* got None"),
        ({"x": [[1], [2, 3]]}, r"'x' must hold rows of numbers, all of one shape; got \[\[1\]"),
        ({"x": ["a", "b"]}, "'x' must hold rows of numbers"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(kind, arrays, message):
    with pytest.raises(ValueError, match=message):
        kind(arrays, batch_size=2)


def test_lists_and_half_precision_are_rows_too():
    data = ArrayData({"x": [1, 2], "y": jnp.ones(2, jnp.bfloat16)}, batch_size=2, seed=0)
    assert sorted(data.batch(0)["x"].tolist()) == [1, 2]


def test_prefetch_keeps_the_order_and_works_ahead():
    made = []

    def source():
        for i in range(6):
            made.append(i)
            yield i

    with prefetch(source(), lambda i: i * i, depth=2) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(made) >= 3
        assert list(items) == [1, 4, 9, 16, 25]


def test_prefetch_raises_the_errors_of_its_thread():
    def source():
        yield 1
        raise OSError("row 2 is unreadable")

    with prefetch(source(), lambda i: i) as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="row 2 is unreadable"):
            next(items)


def test_prefetch_ends_its_thread_with_the_block():
    with prefetch(itertools.count(), lambda i: i) as items:
        next(items)
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
