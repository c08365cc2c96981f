"""The quickstart reaches the accuracy that the README promises."""

import json
import pathlib
import statistics

import pytest

from born_mlp import train
from common import cli

pytestmark = pytest.mark.slow


def test_the_claims_come_out(tmp_path):
    config = pathlib.Path(__file__).parents[2] / "configs" / "born_mlp" / "quickstart.py"
    cli.main(train.run, [str(config), "--workdir", str(tmp_path)])
    regimes = json.loads((tmp_path / "results.json").read_text())["regimes"]

    def error(name: str, iteration: int, order: int, kind: str = "known") -> float:
        entry = regimes[name]["coefficients"][iteration - 1]
        return statistics.median(entry[kind][str(order)]["members"])

    for name in ("signed", "attractive"):
        # One network: right to the leading order, wrong in the next.
        assert error(name, 1, 2, "beyond") > 20 * error(name, 1, 1)
        # Later iterations learn the second order, and correct the first.
        assert error(name, 3, 1) < 0.1 * error(name, 1, 1)
        assert error(name, 3, 2) < 0.1 * error(name, 1, 2, "beyond")
    assert error("signed", 3, 1) < 5e-5
    assert error("signed", 3, 2) < 3e-3
    assert error("attractive", 3, 1) < 1e-3
    assert error("attractive", 3, 2) < 5e-2
    proxy = regimes["signed"]["test"]["order"]["2"]
    assert statistics.median(proxy["proxy_vs_born"]) < 1e-3
    assert (tmp_path / "figures" / "errors_by_iteration.png").stat().st_size > 10_000
