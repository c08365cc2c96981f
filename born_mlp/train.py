"""Train one network ensemble, or run a whole study: `python -m born_mlp.train CONFIG.py`."""

from typing import Any

import jax

from born_mlp import figures, report, study
from born_mlp.baselines import autodiff_errors
from common import Experiment, cli, train


def run(config: Experiment[Any] | study.Study) -> Any:
    """Run one experiment, or a study with its tables and figures."""
    if isinstance(config, Experiment):
        return train(config)
    assert config.workdir is not None
    found, results = {}, {}
    for name in config.regimes:
        found[name], results[name] = study.run_regime(config, name)
    cells = {regime.source.features for regime in config.regimes.values()}
    extra = {"autodiff of the solver": {str(d): autodiff_errors(d) for d in sorted(cells)}}
    if jax.process_index() != 0:  # all know the results, one writes them
        return summary(results)
    paths = figures.write(config, found, results)
    print(report.write(config.workdir, config.title, results, extra, paths))
    print(f"results: {config.workdir}/results.json, {config.workdir}/results.md")
    print("figures: " + ", ".join(f"{config.workdir}/{path}" for path in paths))
    return summary(results)


def summary(results: dict[str, Any]) -> dict[str, float]:
    """Return the median coefficient errors after the last iteration, for sweeps."""
    return {
        f"{name}/order_{order}": sorted(errors["members"])[len(errors["members"]) // 2]
        for name, result in results.items()
        for order, errors in result["coefficients"][-1]["known"].items()
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    cli.main(run)
