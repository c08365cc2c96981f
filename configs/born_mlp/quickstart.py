"""The paper's three claims in a few minutes on two cores."""

from born_mlp.fit import ResidualFit
from born_mlp.physics.samplers import SignedRays
from born_mlp.samples import ScatteringSamples
from born_mlp.study import Regime, Study
from common import CheckpointConfig, Experiment, LogConfig, OptimConfig, StepConfig


def iteration(order: int, **changes: object) -> Experiment[ResidualFit]:
    """Return the training run of one iteration."""
    task = {
        "source": ScatteringSamples(sampler=SignedRays(cells=16, amplitude=0.2)),
        "order": order,
        "members": 4,
        "floor": 0.3,
        "eval_every": 2000,
    }
    return Experiment(
        task=ResidualFit(**(task | changes)),  # type: ignore[arg-type]
        steps=8000,
        batch_size=256,
        optim=OptimConfig(
            name="muon", learning_rate=0.01, momentum=0.95, nesterov=True, warmup_steps=400
        ),
        step=StepConfig(per_call=100),
        checkpoint=CheckpointConfig(every=2000),
        log=LogConfig(every=500, tensorboard=False),
    )


def config() -> Study:
    """Return the study."""
    signed = Regime(iterations=(iteration(1), iteration(2)), polynomial_degree=2)
    return Study(title="Quickstart: signed potentials, d = 16", regimes={"signed": signed})
