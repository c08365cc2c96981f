"""The paper's experiment: S-wave scattering lengths of shallow step potentials, 16 cells.

An ensemble of eight networks in each regime. `signed` has the expansion point inside the sampled
region, `attractive` at its corner, as in the paper's first version. `signed_0.01` and so on
show, across shallowness, that one network is right to the leading order and wrong in the next;
`one_network` is the baseline of one larger network instead of three iterations.
"""

from born_mlp.fit import MUON, ResidualFit
from born_mlp.physics.samplers import AttractiveRays, SignedRays
from born_mlp.samples import ScatteringSamples
from born_mlp.study import Regime, Study
from common import CheckpointConfig, Experiment, LogConfig, StepConfig


def runs(
    source: ScatteringSamples, *, orders: int, steps: int, batch_size: int = 256, **task: object
) -> tuple[Experiment[ResidualFit], ...]:
    """Return the training runs of the iterations 1 .. `orders`."""
    return tuple(
        Experiment(
            task=ResidualFit(source=source, order=n, eval_every=steps // 5, **task),  # type: ignore[arg-type]
            steps=steps,
            batch_size=batch_size,
            optim=MUON,
            step=StepConfig(per_call=100),
            checkpoint=CheckpointConfig(every=2000),
            log=LogConfig(every=500, tensorboard=False),
        )
        for n in range(1, orders + 1)
    )


def signed(amplitude: float, *, cells: int = 16, count: int = 65_536) -> ScatteringSamples:
    """Return potentials of both signs around the expansion point."""
    return ScatteringSamples(sampler=SignedRays(cells=cells, amplitude=amplitude), count=count)


def attractive(amplitude: float, *, cells: int = 16, count: int = 65_536) -> ScatteringSamples:
    """Return attractive potentials, of all strengths down to zero."""
    sampler = AttractiveRays(cells=cells, amplitude=amplitude)
    return ScatteringSamples(sampler=sampler, count=count, mirrored=False)


def config() -> Study:
    """Return the study."""
    return Study(
        title="Born-series perturbation theory, 16 cells",
        regimes={
            "signed": Regime(
                iterations=runs(signed(0.2), orders=3, steps=20_000, floor=0.3),
                read_order=3,
                polynomial_degree=3,
            ),
            "attractive": Regime(
                iterations=runs(attractive(0.2), orders=3, steps=16_000),
                read_order=3,
                polynomial_degree=3,
            ),
            **{
                f"signed_{amplitude}": Regime(
                    iterations=runs(signed(amplitude), orders=1, steps=10_000, members=4, floor=0.3)
                )
                for amplitude in (0.01, 0.05, 0.5)
            },
            "one_network": Regime(
                iterations=runs(
                    signed(0.2), orders=1, steps=20_000, members=4, hidden=(128, 128), floor=0.3
                ),
                read_order=3,
            ),
        },
    )
