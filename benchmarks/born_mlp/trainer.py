"""Steps per second of the trainer on the paper's network, against a bare `lax.scan` loop.

    python benchmarks/born_mlp/trainer.py

The run is iteration 1 of the quickstart: an ensemble of MLPs 16-64-64-1 at batch 256, trained by
Muon. The trainer is all of `common.train`: data made and sent by its background thread, 100 steps
in each compiled call, gradient norm, skipping of non-finite steps, metrics, log, progress bar. The
peer is what one would write by hand and nothing else: the same loss, optimizer and order of the
batches, which all lie on the device before the clock starts, and one jitted scan over the run.

Both are timed without start-up, compilation (shown beside the rates) and the final checkpoint; their
runs alternate within one process. Before that both take 100 steps from the same start, and the
parameters are compared.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from born_mlp import report
from born_mlp.fit import ResidualFit
from common import CheckpointConfig, Experiment, OptimConfig, train
from common.data import stack_steps
from common.setup import prepare
from configs.born_mlp import quickstart


def run_trainer(experiment: Experiment[Any]) -> tuple[float, float]:
    """Run `common.train`; return steps per second, and seconds of compilation.

    The rate is from its log, without the first window, in which it compiles.
    """
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
        result = train(dataclasses.replace(experiment, workdir=workdir))
        log = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in log]
    rates = [row["perf/steps_per_second"] for row in rows if "perf/steps_per_second" in row][1:]
    return statistics.harmonic_mean(rates), result.metrics["perf/seconds_compile"]


class BareLoop:
    """The peer: a jitted scan over batches that are already on the device."""

    def __init__(self, experiment: Experiment[Any]) -> None:
        setup = prepare(experiment)
        task, optimizer = experiment.task, setup.state_maker.optimizer
        self._start = jax.device_get(setup.state_maker.make(setup.mesh).params)
        self._init = optimizer.init
        self._steps = experiment.steps
        self._batches = jax.device_put(dict(stack_steps(setup.data, 0, experiment.steps)))

        def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
            error = (task.predict(params, batch["x"]).T - batch["y"]) * batch["weight"]
            return jnp.sum(error**2) / len(error)

        def step(carry: Any, batch: dict[str, jax.Array]) -> tuple[Any, None]:
            params, opt_state = carry
            grads = jax.grad(loss)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        loop = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[0])
        begin = time.perf_counter()
        self._loop = loop.lower(self._carry(), self._batches).compile()
        self.compile_seconds = time.perf_counter() - begin

    def _carry(self) -> Any:
        params = jax.tree.map(jnp.asarray, self._start)
        return params, self._init(params)

    def run(self) -> tuple[float, Any]:
        """Run all steps from the start; return the steps per second and the parameters."""
        carry = jax.block_until_ready(self._carry())
        begin = time.perf_counter()
        params, _ = jax.block_until_ready(self._loop(carry, self._batches))
        return self._steps / (time.perf_counter() - begin), jax.device_get(params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(ResidualFit):
    """The task without its evaluators, which would only lengthen the benchmark."""

    def evaluators(self) -> tuple[()]:
        """Return none."""
        return ()


def case(*, members: int, optimizer: str, steps: int) -> Experiment[Any]:
    """Return the run of the paper's network with some other ensemble or optimizer."""
    base = quickstart.config().regimes["signed"].iterations[0]
    fields = {f.name: getattr(base.task, f.name) for f in dataclasses.fields(base.task)}
    return dataclasses.replace(
        base,
        task=Fit(**(fields | {"members": members})),
        optim=base.optim if optimizer == "muon" else OptimConfig(name="adam", warmup_steps=400),
        steps=steps,
        checkpoint=CheckpointConfig(every=steps),
    )


def difference(a: Any, b: Any) -> float:
    """Return the relative L2 distance of two trees of arrays."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def same_numerics(experiment: Experiment[Any]) -> float:
    """Return the difference of the parameters after 100 steps."""
    per_call = experiment.step.per_call
    short = dataclasses.replace(
        experiment,
        steps=per_call,
        checkpoint=CheckpointConfig(every=per_call),
        log=dataclasses.replace(experiment.log, every=per_call),
        optim=dataclasses.replace(experiment.optim, warmup_steps=0),
    )
    setup = prepare(short)
    state = setup.state_maker.make(setup.mesh)
    batches = jax.device_put(dict(stack_steps(setup.data, 0, per_call)))
    state, _ = setup.train_step(state, batches)
    return difference(jax.device_get(state.params), BareLoop(short).run()[1])


def measure(experiment: Experiment[Any], *, repeats: int) -> dict[str, Any]:
    """Time trainer and peer in turn; return every rate, and medians."""
    distance = same_numerics(experiment)
    bare = BareLoop(experiment)
    runs = [(*run_trainer(experiment), bare.run()[0]) for _ in range(repeats)]
    trainer, compiling, peer = zip(*runs, strict=True)
    return {
        "members": experiment.task.members,
        "optimizer": experiment.optim.name,
        "trainer": statistics.median(trainer),
        "bare": statistics.median(peer),
        "overhead": statistics.median(peer) / statistics.median(trainer) - 1,
        "trainer_rates": trainer,
        "bare_rates": peer,
        "trainer_compile": statistics.median(compiling),
        "bare_compile": bare.compile_seconds,
        "difference": distance,
    }


def as_row(found: dict[str, Any]) -> tuple[str, ...]:
    """Write one case as a row of the table."""
    return (
        str(found["members"]),
        found["optimizer"],
        f"{found['trainer']:.0f}",
        f"{found['bare']:.0f}",
        f"{found['overhead']:+.1%}",
        f"[{min(found['trainer_rates']):.0f}, {max(found['trainer_rates']):.0f}]",
        f"[{min(found['bare_rates']):.0f}, {max(found['bare_rates']):.0f}]",
        f"{found['trainer_compile']:.1f} / {found['bare_compile']:.1f}",
        f"{found['difference']:.0e}",
    )


HEADER = (
    "members",
    "optimizer",
    "trainer, steps/s",
    "bare scan, steps/s",
    "overhead",
    "trainer, range",
    "bare, range",
    "compile, s",
    "parameters differ by",
)


def main(steps: int = 2500, repeats: int = 5) -> None:
    """Measure and write `trainer.json` and `trainer.md` beside this file."""
    cases = [(4, "muon"), (1, "muon"), (8, "muon"), (1, "adam"), (4, "adam")]
    results = []
    for members, optimizer in cases:
        experiment = case(members=members, optimizer=optimizer, steps=steps)
        results.append(measure(experiment, repeats=repeats))
        print(*as_row(results[-1]), flush=True)
    origin = report.provenance()
    document = {**origin, "steps": steps, "repeats": repeats, "cases": results}
    here = pathlib.Path(__file__)
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    text = "\n\n".join(
        (
            "# The trainer against a bare `lax.scan` loop",
            f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
            f"Network 16-64-64-1, batch 256, {steps} steps; medians and ranges of {repeats} runs "
            "of each, in turn. Compile times are those of trainer / bare loop. The last column is "
            "the relative L2 distance of the parameters after 100 steps from the same start.",
            report.table(HEADER, [as_row(found) for found in results]),
        )
    )
    here.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    tyro.cli(main)
