"""The paper's experiment: perturbation theory of the scattering length in several regimes.

Each regime is one run of the theory. Its result is judged against exact Born terms, which never
enter training, and kept as plain numbers that the tables and figures are made of.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from born_mlp import baselines, nnpt
from born_mlp.coefficients import relative_error
from born_mlp.fit import ResidualFit
from born_mlp.nnpt import Iteration, Perturbation
from born_mlp.physics.shallowness import shallowness
from born_mlp.samples import ScatteringSamples, exact_approximation, exact_tensor
from common import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regime:
    """One run of the theory on one distribution of potentials."""

    iterations: tuple[Experiment[ResidualFit], ...]
    """The training run of each iteration 1..N."""
    correct: bool = True
    """Let later iterations correct the lower terms before the next elimination."""
    read_order: int = 2
    """Highest order of Taylor terms to read off each network (at least N)."""
    test_count: int = 4096
    """Test potentials."""
    polynomial_degree: int | None = None
    """Degree of the polynomial least squares on the same samples; None leaves the baseline out."""

    @property
    def source(self) -> ScatteringSamples:
        """The samples that all iterations share."""
        source = self.iterations[0].task.source
        assert isinstance(source, ScatteringSamples)
        return source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Several regimes, with one table and one set of figures."""

    regimes: Mapping[str, Regime]
    """The regimes by name."""
    title: str = "Born-series perturbation theory"
    """Heading of the report."""
    workdir: str | None = None
    """Folder of everything that the study writes."""

    def runs(self, name: str) -> list[Experiment[ResidualFit]]:
        """Return the training runs of a regime, each with its work folder."""
        folder = f"{self.workdir or '.'}/{name}"
        return [
            dataclasses.replace(run, workdir=f"{folder}/iteration_{run.task.order}")
            for run in self.regimes[name].iterations
        ]

    def experiments(self) -> dict[str, Experiment[Any]]:
        """Return every training run by name."""
        return {
            f"{name}/iteration_{run.task.order}": run
            for name in self.regimes
            for run in self.runs(name)
        }


def run_regime(study: Study, name: str) -> tuple[Perturbation, dict[str, Any]]:
    """Train (or resume) the iterations of one regime, and judge them."""
    regime = study.regimes[name]
    found = nnpt.run(
        study.runs(name), correct=regime.correct, read_order=regime.read_order, description=name
    )
    result = {
        "coefficients": coefficient_errors(found, regime.source.features),
        "test": proxy_errors(found, regime),
    }
    if regime.polynomial_degree is not None:
        result["polynomial"] = baselines.polynomial_errors(
            regime.source, degree=regime.polynomial_degree
        )
    return found, result


def coefficient_errors(found: Perturbation, cells: int) -> list[dict[str, Any]]:
    """Compare the Taylor terms with the exact Born tensors, iteration by iteration.

    Returns:
      One entry for each iteration n: the relative L2 errors, by member and of the ensemble's mean,
      of the terms known after it ("known", corrected or "uncorrected") and of what its own networks
      say of the orders beyond n ("beyond": the first network's second order is the paper's
      example of an order that is not learned).
    """

    def errors(term: np.ndarray, order: int) -> dict[str, Any]:
        exact = exact_tensor(cells, order)
        return {
            "members": [relative_error(t, exact) for t in term],
            "mean": relative_error(term.mean(0), exact),
        }

    entries = []
    for n, iteration in enumerate(found.iterations, 1):
        entries.append(
            {
                "iteration": n,
                "known": {str(m): errors(term, m) for m, term in enumerate(found.terms(n), 1)},
                "uncorrected": {
                    str(m): errors(term, m)
                    for m, term in enumerate(found.terms(n, corrected=False), 1)
                },
                "beyond": {
                    str(m): errors(iteration.terms[m], m)
                    for m in range(n + 1, len(iteration.terms))
                },
            }
        )
    return entries


def proxy_errors(found: Perturbation, regime: Regime, *, bins: int = 10) -> dict[str, Any]:
    """Judge the learned Born approximations on test potentials, over all and by strength.

    Returns:
      "order": for each order n, relative L2 errors over the test set of the proxy against the exact
      n-th Born approximation and the exact scattering length, and of the exact Born approximation
      against the latter. "strength": the same against the scattering length in bins of equal
      counts of the shallowness lambda. "network": the sum of eliminated terms and last network.
    """
    test = regime.source.draw_test(regime.test_count)
    orders = range(1, len(found.iterations) + 1)
    exact = {n: exact_approximation(test.x, n) for n in orders}
    proxy = {n: found.proxy(test.x, n) for n in orders}
    raw = {n: found.proxy(test.x, n, corrected=False) for n in orders}
    last: Iteration = found.iterations[-1]
    lower = Perturbation(iterations=found.iterations[:-1]).terms(corrected=regime.correct)
    network = last.predict(test.x) + nnpt.evaluate(lower, test.x, members=len(last.y_scale))

    strength = np.asarray(shallowness(np.abs(test.x)))
    groups = np.array_split(np.argsort(strength), bins)

    def over_members(values: np.ndarray, against: np.ndarray) -> list[float]:
        return [relative_error(v, against) for v in values]

    return {
        "order": {
            str(n): {
                "proxy_vs_born": over_members(proxy[n], exact[n]),
                "uncorrected_proxy_vs_born": over_members(raw[n], exact[n]),
                "proxy_vs_a0": over_members(proxy[n], test.y),
                "born_vs_a0": relative_error(exact[n], test.y),
            }
            for n in orders
        },
        "network_vs_a0": over_members(network, test.y),
        "strength": [
            {
                "lambda": float(np.median(strength[rows])),
                "proxy_vs_a0": {
                    str(n): over_members(proxy[n][:, rows], test.y[rows]) for n in orders
                },
                "born_vs_a0": {
                    str(n): relative_error(exact[n][rows], test.y[rows]) for n in orders
                },
                "network_vs_a0": over_members(network[:, rows], test.y[rows]),
            }
            for rows in groups
        ],
    }
