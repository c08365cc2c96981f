import importlib.util

import numpy as np
import pytest
import scipy.linalg

from molt5_multitask.metrics import fcd
from molt5_multitask.metrics.scores import UnavailableError


def test_trace_of_the_root_of_a_product_equals_scipys():
    rng = np.random.default_rng(0)
    for rank in (12, 5):  # positive definite, and singular as of few molecules
        a, b = (np.cov(rng.normal(size=(rank + 1, 8)), rowvar=False) for _ in range(2))
        expected = np.trace(scipy.linalg.sqrtm(a @ b + 1e-15 * np.eye(8))).real
        assert fcd.trace_of_root(a, b) == pytest.approx(expected, rel=1e-5)
    assert fcd.trace_of_root(a, a) == pytest.approx(np.trace(a))


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"torch.*\[fcd\]"):
        fcd.fcd_scores(["CCO", "CC"], ["CCO", "CC"])


def test_distance_is_that_of_the_activations_of_valid_canonical_smiles(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)

    def made_up(smiles, split, *, progress):
        assert smiles == ["CCO", "CC", "CN", "CCN", "CCO", "CO"]
        made = np.array([[1, 0], [3, 0], [2, 3], [4, 1], [8, 1], [6, 1]], np.float64)
        return [made[:split], made[split:]]

    monkeypatch.setattr(fcd, "activations", made_up)
    scores = fcd.fcd_scores(["OCC", "CC", "CN"], ["C1CC", "CCN", "OCC", "CO", ""])
    # means (2, 1) and (6, 1); covariances diag(1, 3) and diag(4, 0)
    assert scores.values["FCD"] == pytest.approx(16 + (1 + 3) + (4 + 0) - 2 * 2)


def test_too_few_molecules_are_no_distribution(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UnavailableError, match="two valid molecules"):
        fcd.fcd_scores(["CCO", "CC"], ["CCO", "C1CC"])


@pytest.mark.parity
@pytest.mark.slow
def test_reference_value_of_the_shared_molecules(shared_data):
    pytest.importorskip("fcd_torch", reason="needs the extra [fcd]")
    file = shared_data / "predictions" / "molt5-base-caption2smiles.txt"
    rows = [line.split("\t") for line in file.read_text("utf-8").split("\n")[1:-1]]
    _, references, outputs = zip(*rows, strict=True)
    assert fcd.fcd_scores(references, outputs).values["FCD"] == pytest.approx(1.16612, abs=0.002)


@pytest.mark.parity
def test_long_smiles_are_cut_at_the_length_that_chemnet_knows():
    pytest.importorskip("fcd_torch", reason="needs the extra [fcd]")
    long, longer = "C" * 349, "C" * 400
    found, _ = fcd.activations([long, longer, "CCO", "CCC"], 3, progress=False)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 0.01
