"""The launchers: checked by shellcheck, and run with fakes of the programs that they call."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# A task of a job step, as srun starts it: SLURM's variables, and SIGTERM handed on to the command.
SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
export SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_STEP_NODELIST=localhost
exec "$@"
"""
RECORD = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $*" >> "$RECORD"
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Return how to run a script with programs of our own on the path, and what they were told."""
    folder, record = tmp_path / "bin", tmp_path / "record"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": RECORD, "gcloud": RECORD, "xpk": RECORD}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(script: str, *arguments: str, **kwargs) -> subprocess.Popen[str]:
        command = ["bash", str(LAUNCH / script), *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
        )

    def told() -> list[str]:
        return record.read_text().splitlines() if record.exists() else []

    return start, told


def shellcheck() -> str | None:
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.exists() else shutil.which("shellcheck")


@pytest.mark.skipif(shellcheck() is None, reason="needs shellcheck, of the extra [dev]")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    found = subprocess.run([shellcheck(), script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("status", "requeued"), [(0, []), (1, []), (143, ["scontrol requeue 4711"])]
)
def test_a_slurm_job_is_requeued_when_the_run_was_stopped_and_only_then(
    status, requeued, fakes, tmp_path
):
    start, told = fakes
    (tmp_path / "stand_in.py").write_text(
        "import os, sys\n"
        "assert os.environ['SLURM_PROCID'] == '0' and sys.argv[1:] == ['a.py', '--steps', '3']\n"
        f"sys.exit({status})\n"
    )
    job = start("slurm.sbatch", "stand_in", "a.py", "--steps", "3")
    _, errors = job.communicate()
    assert job.returncode == status, errors
    assert told() == requeued


def test_a_slurm_job_outlives_its_signal(fakes, tmp_path):
    start, told = fakes
    (tmp_path / "stand_in.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(143)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    job = start("slurm.sbatch", "stand_in", "a.py", start_new_session=True)
    assert job.stdout.readline() == "ready\n"
    os.killpg(job.pid, signal.SIGTERM)  # as SLURM signals all of a job
    job.communicate(timeout=20)
    assert job.returncode == 143
    assert told() == ["scontrol requeue 4711"]


def test_a_tpu_vm_is_told_the_command_with_its_quotes(fakes, monkeypatch):
    start, told = fakes
    monkeypatch.setenv("TPU_NAME", "pod")
    monkeypatch.setenv("ZONE", "zone")
    run = start("tpu_vm.sh", "start", "born_mlp.train", "a b.py", "--workdir", "gs://b/run")
    run.communicate(timeout=20)
    text = "\n".join(told())
    assert "gcloud compute tpus tpu-vm ssh pod --zone=zone --worker=all" in text
    assert r"python -m born_mlp.train a\ b.py --workdir gs://b/run" in text
    run = start("tpu_vm.sh", "dance")
    run.communicate(timeout=20)
    assert run.returncode == 2


def test_xpk_is_told_the_command(fakes, monkeypatch):
    start, told = fakes
    for name, value in {
        "CLUSTER": "c", "ZONE": "z", "IMAGE": "i", "TPU_TYPE": "v5litepod-256", "SLICES": "2"
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    run = start("gke_xpk.sh", "name", "born_mlp.train", "a.py")
    run.communicate(timeout=20)
    (line,) = told()
    assert line.startswith("xpk workload create --cluster=c --zone=z --workload=name ")
    assert "--num-slices=2" in shlex.split(line)
    assert line.rstrip().endswith("--command=python -m born_mlp.train a.py")
