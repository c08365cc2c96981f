"""Every shipped config parses, shape-checks without compute, and is rehearsed on many devices."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from common import cli
from common.show import describe
from tests.common.test_resume import lines, saved_steps
from tests.configs.rehearsal import CALLS, evaluated

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(p for p in ROOT.glob("configs/*/*.py") if p.name != "__init__.py")
READERS = (
    "born_mlp.samples.labels",
    "alignment.student.open_images",
    "alignment.triplets.batches.open_images",
    "alignment.files.read_arrays",
    "molt5_multitask.corpus.SyntheticCorpus.make",
    "molt5_multitask.data.files.FileCorpus.make",
)

# As the documents start them on pods; batches that are meant for one device, made for 64.
FLAGS = {
    "alignment/quickstart": "--student.batch_size 1024 --start.batch_size 192 "
    "--teacher_network.batch_size 192",
    "alignment/vit_l16": "--mesh.fsdp 8",
    "molt5_multitask/base_packed": "--mesh.fsdp 16 --batch_size 256",
    "molt5_multitask/public": "--batch_size 64",
    "molt5_multitask/quickstart": "--batch_size 64",
    "molt5_multitask/text_chem_t5_base": "--batch_size 2048",  # 32 on each device, as published
    "molt5_multitask/text_chem_t5_small": "--batch_size 2048",
    "molt5_multitask/xl_packed": "--mesh.fsdp 64",
}
DEFAULT = ("alignment/siglip_b16", "born_mlp/quickstart", "molt5_multitask/base_packed")
"""Those of the default suite, where they run on 16 devices; all run on 64 in the slow one."""
README = ("molt5_multitask/base_packed", "--mesh.fsdp 16 --batch_size 2048")
EXPORTS = {
    "born_mlp": "**/networks.safetensors",
    "alignment": "**/export/model.safetensors",
    "molt5_multitask": "export/model.safetensors",
}


def name_of(path: pathlib.Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_is_shape_checked_without_reading_data(path, monkeypatch):
    config = cli.resolve(path, [])
    assert config.workdir == f"runs/{name_of(path)}"
    for reader in READERS:
        monkeypatch.setattr(reader, lambda *_, **__: pytest.fail("data was read"))
    runs = cli.experiments(config)
    assert runs
    with jax.enable_x64(path.parent.name == "born_mlp"):
        for text in {describe(run) for run in runs.values()}:
            assert "parameters: " in text


def rehearsals():
    for path in CONFIGS:
        name = name_of(path)
        flags = FLAGS.get(name, "")
        if name in DEFAULT:
            yield pytest.param(path, flags, 16, id=f"{name}-16")
        yield pytest.param(path, flags, 64, id=name, marks=pytest.mark.slow)
    name, flags = README
    yield pytest.param(ROOT / f"configs/{name}.py", flags, 64, id="README", marks=pytest.mark.slow)


@pytest.mark.parametrize(("path", "flags", "devices"), list(rehearsals()))
def test_a_config_is_rehearsed(path, flags, devices, tmp_path):
    """Started, evaluated, saved, killed, resumed, evaluated and exported."""
    killed = start(path, flags, devices, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    (first,) = tmp_path.rglob("metrics.jsonl")
    before = lines(first.parent)
    ended = start(path, flags, devices, tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert lines(first.parent)[: len(before)] == before
    for log in tmp_path.rglob("metrics.jsonl"):
        folder = log.parent
        if not (folder / "checkpoints").exists():
            continue
        config = json.loads((folder / "config.json").read_text())
        steps = config["steps"]
        if steps != CALLS * config["step"]["per_call"]:
            continue  # a stage that is fitted by the loop, and no run of the config
        starts = json.loads((folder / "manifest.json").read_text())["starts"]
        assert len(starts) == (2 if log == first else 1)
        assert saved_steps(folder)[-1] == steps
        assert evaluated(folder).keys() == {steps // 2, steps}
        losses = [row["train/loss"] for row in lines(folder) if "train/loss" in row]
        assert len(losses) == CALLS
        assert np.isfinite(losses).all()
    assert list((tmp_path / "run").glob(EXPORTS[path.parent.name]))


def start(
    path: pathlib.Path, flags: str, devices: int, folder: pathlib.Path
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "tests.configs.rehearsal", str(path), *flags.split()],
        cwd=folder,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
