"""A study from the command line to its tables and figures, on a tiny problem."""

import json

import numpy as np
import pytest

from born_mlp import baselines, train
from born_mlp.physics.samplers import SignedRays
from born_mlp.samples import ScatteringSamples
from common import cli

CONFIG = """
import dataclasses
from born_mlp.study import Regime, Study
from common import LogConfig
from configs.born_mlp.paper import runs, signed

def config():
    plan = runs(
        signed(0.2, cells=4, count=512), orders=2, steps=1000, batch_size=64, members=2,
        hidden=(8, 8),
    )
    plan = tuple(dataclasses.replace(run, log=LogConfig(every=100, progress=False)) for run in plan)
    return Study(
        title="Tiny",
        regimes={
            "two": Regime(iterations=plan, test_count=64, polynomial_degree=2),
            "one": Regime(iterations=plan[:1], test_count=64),
        },
    )
"""


def test_a_study_writes_numbers_tables_and_figures(tmp_path, capsys):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    cli.main(train.run, [str(path), "--workdir", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "## Claims" in out
    assert "errors_by_iteration.png" in out

    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"machine", "date", "command"} <= set(document)
    two = document["regimes"]["two"]
    first, second = two["coefficients"]
    assert list(first["known"]) == ["1"]
    assert list(first["beyond"]) == ["2"]
    assert list(second["known"]) == ["1", "2"]
    assert len(second["known"]["2"]["members"]) == 2
    assert np.median(second["known"]["1"]["members"]) < 0.2
    # Without correction, order 1 stays what the first iteration said.
    assert second["uncorrected"]["1"] == first["known"]["1"]
    assert set(two["polynomial"]["errors"]) == {"1", "2"}
    assert set(document["autodiff of the solver"]["4"]["errors"]) == {"1", "2"}
    for name in ("one_network", "errors_by_iteration", "coefficients_two", "diagrams_two"):
        for suffix in ("png", "svg"):
            assert (tmp_path / "run" / "figures" / f"{name}.{suffix}").stat().st_size > 5000
    text = (tmp_path / "run" / "results.md").read_text()
    assert all(f"](figures/{p.name})" in text for p in (tmp_path / "run" / "figures").glob("*.png"))


def test_least_squares_recovers_shallow_coefficients():
    source = ScatteringSamples(sampler=SignedRays(cells=4, amplitude=0.01), count=4096)
    errors = baselines.polynomial_errors(source, degree=3)["errors"]
    # What a cubic leaves out is of order 4: relative to order m it is (2 * amplitude)^(4 - m).
    for order in (1, 2, 3):
        assert errors[str(order)] < 0.02 ** (4 - order)


def test_autodiff_of_the_solver_is_exact():
    errors = baselines.autodiff_errors(5)["errors"]
    assert max(errors.values()) < 1e-13


def test_a_polynomial_that_is_too_large_is_refused():
    source = ScatteringSamples(sampler=SignedRays(cells=64))
    with pytest.raises(ValueError, match="has 47905 monomials, over 4000"):
        baselines.polynomial_errors(source, degree=3)
