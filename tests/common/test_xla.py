"""XLA's sums on a CPU, of which one version of jaxlib computes some wrongly, and its flags."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import xla


@pytest.mark.parametrize("rows", [32_769, 50_000])
def test_sums_of_squares_of_products_are_right(rows):
    x = np.zeros((rows, 3), np.float32)
    x[:, 0] = np.arange(rows)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
    np.testing.assert_allclose(found, x[:, 0].astype(np.float64) ** 2, rtol=1e-6)


def test_flags_of_the_user_stay_and_win(monkeypatch):
    monkeypatch.setattr(xla.jaxlib, "__version__", xla.WRONG)
    monkeypatch.setattr(xla.internals, "backends_are_initialized", lambda: False)
    for before, after in (
        ("", f"{xla.FLAG}=-reduce"),
        ("--xla_cpu_use_xnnpack=false", f"--xla_cpu_use_xnnpack=false {xla.FLAG}=-reduce"),
        (f"{xla.FLAG}=individual_dot", f"{xla.FLAG}=individual_dot"),
    ):
        monkeypatch.setenv("XLA_FLAGS", before)
        xla.set_cpu_flags()
        assert os.environ["XLA_FLAGS"] == after


def test_flags_in_a_file_stay_and_win(monkeypatch, tmp_path):
    monkeypatch.setattr(xla.jaxlib, "__version__", xla.WRONG)
    monkeypatch.setattr(xla.internals, "backends_are_initialized", lambda: False)
    file = tmp_path / "flags"
    file.write_text("--xla_cpu_use_xnnpack=false\n--xla_dump_to=x\n")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    xla.set_cpu_flags()
    after = f"--xla_cpu_use_xnnpack=false --xla_dump_to=x {xla.FLAG}=-reduce"
    assert os.environ["XLA_FLAGS"] == after

    file.write_text(f"{xla.FLAG}=individual_dot")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    xla.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == str(file)


def test_other_versions_are_left_alone(monkeypatch):
    monkeypatch.setattr(xla.jaxlib, "__version__", "0.12.0.1")
    monkeypatch.setenv("XLA_FLAGS", "")
    xla.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == ""


def test_simulated_devices_start_collectives_in_one_order(monkeypatch):
    """Without it, the T5's training step hangs on eight devices in some runs."""
    monkeypatch.setattr(xla.jaxlib, "__version__", "0.12.0.1")
    monkeypatch.setattr(xla.internals, "backends_are_initialized", lambda: False)
    for before, after in (
        (f"{xla.SIMULATED}=8", f"{xla.SIMULATED}=8 {xla.SCHEDULER}=false"),
        (f"{xla.SIMULATED}=8 {xla.SCHEDULER}=true",) * 2,
    ):
        monkeypatch.setenv("XLA_FLAGS", before)
        xla.set_cpu_flags()
        assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize("package", ["common", "alignment", "born_mlp", "molt5_multitask"])
def test_every_package_sets_them(package):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    code = f"import jaxlib; jaxlib.__version__ = {xla.WRONG!r}; import os, {package}"
    code += "; print(os.environ['XLA_FLAGS'])"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == f"{xla.FLAG}=-reduce"


def test_a_warning_when_it_is_too_late(monkeypatch):
    monkeypatch.setattr(xla.jaxlib, "__version__", xla.WRONG)
    monkeypatch.setattr(xla.internals, "backends_are_initialized", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.warns(UserWarning, match="import common before JAX is used"):
        xla.set_cpu_flags()
