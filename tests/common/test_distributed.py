"""When a process joins others, and when it stays alone; several at once are in `tests/mp`."""

import contextlib

import jax
import pytest
from jax._src import xla_bridge

from common import cli, distributed

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "1",
}


@pytest.fixture
def joins(monkeypatch):
    """The arguments of each start of JAX's service, which is not started."""
    found = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: found.append(args))
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    for variable in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(variable, raising=False)
    return found


@pytest.mark.parametrize("tasks", [None, 1, 2])
def test_a_single_process_starts_no_service(tasks, joins, monkeypatch):
    """Within one SLURM step, its port would be that of another command, which it would end."""
    if tasks is not None:
        for variable, value in (STEP | {"SLURM_NTASKS": str(tasks)}).items():
            monkeypatch.setenv(variable, value)
    distributed.start()
    assert [args[1:] for args in joins] == ([(2, 0)] if tasks == 2 else [])


def test_half_of_what_is_needed_is_refused(monkeypatch):
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    with pytest.raises(ValueError, match="Several processes need JAX_COORDINATOR_ADDRESS"):
        distributed.start(processes=2)


@pytest.mark.parametrize(
    "args", [["--help"], ["CONFIG", "--help"], ["show", "CONFIG"], ["compare", "."], ["aot", "-h"]]
)
def test_what_does_not_train_joins_nobody(args, monkeypatch, tmp_path):
    config = tmp_path / "toy.py"
    config.write_text("from tests.common.toy import experiment\nconfig = experiment\n")
    monkeypatch.setattr(distributed, "start", lambda: pytest.fail("joined"))
    with pytest.raises(SystemExit) if args[0] != "show" else contextlib.nullcontext():
        cli.main(lambda _: None, [str(config) if arg == "CONFIG" else arg for arg in args])


def test_training_joins(monkeypatch, tmp_path):
    config = tmp_path / "toy.py"
    config.write_text("from tests.common.toy import experiment\nconfig = experiment\n")
    joined = []
    monkeypatch.setattr(distributed, "start", lambda: joined.append(1))
    cli.main(lambda _: None, [str(config)])
    assert joined
