"""The theory in 64 cells: 64 first-order and 2,080 second-order coefficients."""

from born_mlp.study import Regime, Study
from configs.born_mlp.paper import runs, signed


def config() -> Study:
    """Return the study."""
    source = signed(0.2, cells=64, count=262_144)
    return Study(
        title="Born-series perturbation theory, 64 cells",
        regimes={
            "signed": Regime(
                iterations=runs(source, orders=3, steps=20_000, members=4, floor=0.3),
                read_order=2,
                polynomial_degree=2,
            ),
        },
    )
