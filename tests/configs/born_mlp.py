"""Born studies, shrunk."""

import dataclasses
import pathlib

from born_mlp.study import Study
from born_mlp.train import run as run
from common import Experiment
from tests.configs.rehearsal import in_calls


def write_data(folder: pathlib.Path) -> None:
    """Nothing: the samples are drawn."""


def shrink(study: Study) -> Study:
    """Return the study with narrow networks on few samples."""
    regimes = {
        name: dataclasses.replace(
            regime, iterations=tuple(map(_shrink, regime.iterations)), test_count=64
        )
        for name, regime in study.regimes.items()
    }
    return dataclasses.replace(study, regimes=regimes)


def _shrink(run: Experiment) -> Experiment:
    source = run.task.source
    sampler = dataclasses.replace(source.sampler, cells=4)
    task = dataclasses.replace(
        run.task,
        source=dataclasses.replace(source, sampler=sampler, count=512),
        hidden=(8,) * len(run.task.hidden),
        members=2,
    )
    return in_calls(dataclasses.replace(run, task=task))
