"""What a train step needs of devices, compiled for simulated ones; for TPUs see `tests/aot`."""

import dataclasses

import pytest

from common import OptimConfig, cli
from common.aot import compile_step, describe, find_devices
from common.show import bytes_per_device
from tests.common.toy import Toy, experiment


def test_a_replica_on_each_device_sums_one_gradient():
    found = compile_step(experiment(Toy(width=64)), find_devices("cpu:8"))
    parameters = 4 * (8 * 64 + 64 + 1)
    assert found.sent("all-reduce") >= 2 * parameters * 7 / 8
    assert found.sent("all-reduce") == found.sent() == found.sent(between_slices=False)
    assert found.arguments >= bytes_per_device(found.setup.abstract_state) >= 3 * parameters
    assert found.memory == found.arguments + found.outputs + found.temporaries + found.code
    text = describe(found)
    assert "{'data': 8, 'fsdp': 1, 'tensor': 1} of cpu, 1 slice(s)" in text
    assert "| all-reduce | 8 | in a slice |" in text
    assert "whether it fits is not known" in text


def test_what_does_not_fit_is_told_with_what_helps(monkeypatch):
    found = compile_step(
        experiment(Toy(width=64), optim=OptimConfig(name="adam")), find_devices("cpu:8")
    )
    chip = type("Tiny", (), {"memory": 5000, "flops": 1e12, "network": 1e9, "between_slices": None})
    monkeypatch.setattr("common.aot.find_chip", lambda kind: chip)
    assert not found.fits
    text = describe(found)
    assert "IT DOES NOT FIT" in text
    assert "--mesh.fsdp 2" in text
    assert "--step.accumulate 2" in text
    assert "each has 2 example(s) now" in text
    stopped = dataclasses.replace(found, out_of_memory="Ran out of memory", collectives=())
    assert "IT DOES NOT FIT. Ran out of memory" in describe(stopped)


@pytest.mark.parametrize("topology", ["cpu:99", "v5e"])
def test_a_topology_that_is_not_there_is_refused(topology, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not 99: set XLA_FLAGS|compiler for TPUs is not inst"):
        find_devices(topology)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    config = tmp_path / "toy.py"
    config.write_text("from tests.common.toy import experiment as config\n")
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    cli.main(lambda _: None, ["aot", str(config), "--topology", "cpu:8", "--mesh.fsdp", "2"])
    assert "{'data': 4, 'fsdp': 2, 'tensor': 1} of cpu" in capsys.readouterr().out
