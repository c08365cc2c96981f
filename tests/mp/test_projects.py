"""The three projects' train commands on two processes: the files and numbers of one process."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from tests.alignment import student_toy
from tests.mp import launch

BORN = """
import dataclasses
from born_mlp.study import Regime, Study
from common import LogConfig, MeshConfig
from configs.born_mlp.paper import runs, signed

def config():
    plan = runs(
        signed(0.2, cells=4, count=256), orders=2, steps=1000, batch_size=64, members=2,
        hidden=(8, 8),
    )
    log = LogConfig(every=100, progress=False)
    # The members lie on different processes.
    plan = tuple(dataclasses.replace(run, log=log, mesh=MeshConfig(tensor=2)) for run in plan)
    return Study(title="Tiny", regimes={"one": Regime(iterations=plan, test_count=64)})
"""
T5 = """
from common import CheckpointConfig, Experiment, LogConfig, MeshConfig, OptimConfig
from molt5_multitask.corpus import SyntheticCorpus
from molt5_multitask.model import preset
from molt5_multitask.training import MultitaskT5

def config():
    return Experiment(
        task=MultitaskT5(
            model=preset("t5-tiny", vocab_size=300, d_model=16, d_ff=16, heads=2),
            corpus=SyntheticCorpus(molecules=40, reactions=40, procedures=40, vocabulary=300),
            input_length=128, target_length=128, eval_every=2, eval_rows=6, eval_batch=8,
            test_rows=2, generate_every=4, generate_rows=2,
        ),
        steps=4, batch_size=8, optim=OptimConfig(learning_rate=1e-2, schedule="constant"),
        mesh=MeshConfig(data=1, fsdp=-FSDP), checkpoint=CheckpointConfig(every=2),
        log=LogConfig(every=1, progress=False),
    )
"""
STUDENT = """
import dataclasses
from common import MeshConfig
from alignment.student import JudgedImages
from tests.alignment.student_toy import experiment, student
from alignment.triplets.batches import TripletImages

def config():
    data = TripletImages(
        root={root!r}, images={images!r}, sampling="coarse",
    )
    judged = JudgedImages(images={images!r}, triplets={judged!r})
    return experiment(student(data, judged=judged), mesh=MeshConfig(data=2, fsdp=2))
"""


def born(folder: pathlib.Path) -> str:
    return BORN


def t5(folder: pathlib.Path) -> str:
    return T5.replace("-FSDP", "4")


def alignment(folder: pathlib.Path) -> str:
    data = student_toy.write_data(folder, train=64)
    rows = len(np.load(data.images)["labels"])
    judged = np.random.default_rng(0).permuted(np.tile(np.arange(rows), (20, 1)), axis=1)[:, :3]
    np.savetxt(folder / "judged.txt", judged, fmt="%d")
    return STUDENT.format(root=data.root, images=data.images, judged=str(folder / "judged.txt"))


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {
        f"{path.relative_to(folder)}/{name}": array
        for path in sorted(folder.rglob("*.safetensors"))
        for name, array in safetensors.numpy.load_file(path).items()
    }


def metrics(folder: pathlib.Path) -> dict[str, float]:
    return {
        f"{path.parent.relative_to(folder)}/{row['step']}/{name}": float(value)  # "NaN" is one
        for path in sorted(folder.rglob("metrics.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
        for name, value in row.items()
        if not name.startswith("perf/")
    }


def files(folder: pathlib.Path) -> list[str]:
    """Everything but checkpoints, whose files depend on the processes, and dated event files."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    kept = (p for p in found if "checkpoints" not in p.parts and "tensorboard" not in p.parts)
    return sorted(map(str, kept))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "write"),
    [("born_mlp.train", born), ("molt5_multitask.train", t5), ("alignment.train", alignment)],
    ids=["born_mlp", "molt5_multitask", "alignment"],
)
def test_a_project_on_two_processes(module, write, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(write(tmp_path))
    runs = {}
    for processes in (1, 2):
        folder = tmp_path / f"run_{processes}"
        ends = launch.run(
            ["-m", module, config, "--workdir", folder],
            tmp_path,
            processes=processes,
            devices=4 // processes,
            timeout=600,
        )
        assert [e.status for e in ends] == [0] * processes, "\n".join(e.output for e in ends)
        runs[processes] = folder
    assert files(runs[2]) == files(runs[1])
    one, two = tensors(runs[1]), tensors(runs[2])
    assert one.keys() == two.keys()
    assert one
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
    one, two = metrics(runs[1]), metrics(runs[2])
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
