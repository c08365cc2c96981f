"""What cannot be trained is refused in a line, before compute is spent."""

import dataclasses

import numpy as np
import pytest

from common import Data
from common.data.arrays import WHOLE
from common.setup import prepare
from tests.common.toy import Toy, experiment


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "needs at least one array"),
        ({"x": np.float32(1)}, r"examples along the first axis.*\{'x': 0\}"),
        ({"x": np.zeros((0, 8))}, r"examples along the first axis.*\{'x': 0\}"),
        ({"x": [1.0, 2.0]}, r"must be arrays; got \{'x': 'list'\}"),
        ({"x": np.zeros(4), "y": None}, r"must be arrays; got \{'y': 'NoneType'\}"),
        ({"x": np.zeros(4), "y": np.zeros(3)}, r"\{'x': 4, 'y': 3\}"),
    ],
)
def test_batches_without_examples(entries, message):
    class Odd(Data):
        def batch(self, step, part=WHOLE):
            return entries

    class OddToy(Toy):
        def data(self, *, batch_size, seed):
            return Odd()

    with pytest.raises(ValueError, match=message):
        prepare(experiment(OddToy()))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "returns no parameters"),
        ({"a": np.zeros((0, 3)), "b": np.zeros(2)}, r"without elements .*: a \(0, 3\)"),
    ],
)
def test_parameters_that_cannot_be_kept(params, message):
    class OddToy(Toy):
        def init(self, key):
            return params

    with pytest.raises(ValueError, match=message):
        prepare(experiment(OddToy()))


def test_two_evaluators_of_one_name():
    class Twice(Toy):
        def evaluators(self):
            return (*super().evaluators(), *super().evaluators())

    with pytest.raises(ValueError, match="two evaluators are called test"):
        prepare(experiment(Twice()))


def test_seeds_and_empty_data():
    with pytest.raises(ValueError, match="seed must be at least 0"):
        dataclasses.replace(experiment(), seed=-1)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        dataclasses.replace(experiment(), seed=2**32)
