"""What matters: effects of width, depth, activation, loss, optimizer, precision and sampler.

Two iterations each, on the paper's signed potentials unless the name says otherwise.
"""

import dataclasses
from typing import Any

from born_mlp.physics.samplers import AttractiveRays, Boxes, CosineSeries, Gaussians
from born_mlp.samples import ScatteringSamples
from born_mlp.study import Regime, Study
from common import OptimConfig
from configs.born_mlp.paper import runs, signed

TASKS: dict[str, dict[str, Any]] = {
    "reference": {},
    "width_16": {"hidden": (16, 16)},
    "width_32": {"hidden": (32, 32)},
    "width_128": {"hidden": (128, 128)},
    "one_layer": {"hidden": (128,)},
    "three_layers": {"hidden": (64, 64, 64)},
    "tanh": {"activation": "tanh"},
    "silu": {"activation": "silu"},
    "softplus": {"activation": "softplus"},
    "loss_mse": {"loss_name": "mse"},
    "loss_mape": {"loss_name": "mape"},
    "float64": {"dtype": "float64"},
}
SAMPLERS: dict[str, Any] = {
    "attractive_rays": AttractiveRays(amplitude=0.2),
    "boxes": Boxes(high=0.4),
    "smooth_cosines": CosineSeries(amplitude=0.2),
    "gaussians": Gaussians(amplitude=0.2),
}


def config() -> Study:
    """Return the study."""
    settings = {"orders": 2, "steps": 5_000, "members": 4}
    regimes = {
        name: Regime(iterations=runs(signed(0.2), **(settings | {"floor": 0.3} | task)))
        for name, task in TASKS.items()
    }
    adam = OptimConfig(name="adam", learning_rate=3e-3, warmup_steps=500, final_fraction=1e-4)
    regimes["adam"] = Regime(
        iterations=tuple(
            dataclasses.replace(run, optim=adam) for run in regimes["reference"].iterations
        )
    )
    regimes |= {
        name: Regime(
            iterations=runs(ScatteringSamples(sampler=sampler, mirrored=False), **settings)
        )
        for name, sampler in SAMPLERS.items()
    }
    return Study(title="Born-series perturbation theory: what matters", regimes=regimes)
