"""The paper's three claims on signed and attractive potentials, in a few minutes on two cores."""

import dataclasses

from born_mlp.study import Regime, Study
from configs.born_mlp import paper


def config() -> Study:
    """Return the paper's study with fewer members and steps."""
    study = paper.config()
    return dataclasses.replace(
        study,
        title="Quickstart: " + study.title,
        regimes={name: _shorter(study.regimes[name]) for name in ("signed", "attractive")},
    )


def _shorter(regime: Regime) -> Regime:
    return dataclasses.replace(
        regime,
        iterations=tuple(
            dataclasses.replace(
                run,
                steps=6000,
                task=dataclasses.replace(run.task, members=4, eval_every=2000),
                checkpoint=dataclasses.replace(run.checkpoint, every=2000),
            )
            for run in regime.iterations
        ),
    )
