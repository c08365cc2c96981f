"""A small task with everything that the core's tests need: a matrix, a bias, dropout, weights."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from common import (
    ArrayData,
    CheckpointConfig,
    Evaluator,
    Experiment,
    LogConfig,
    Mean,
    MetricsEvaluator,
    OnePass,
    OptimConfig,
    StepConfig,
    Task,
)


def rows(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 8)).astype(np.float32)
    return {"x": x, "y": np.sin(x).sum(1).astype(np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Task):
    """Regression on a sum of sines."""

    width: int = 16
    """Hidden width."""
    dropout: float = 0.0
    """Share of the hidden units dropped."""
    eval_every: int = 4
    """Cadence of the evaluator."""
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ((".*", ()),)
    """Sharding rules."""
    nan_at: int | None = None
    """Step whose loss is not a number."""

    def init(self, key):
        a, b = jax.random.split(key)
        return {
            "in": {"kernel": 0.3 * jax.random.normal(a, (8, self.width), jnp.float32)},
            "out": {
                "kernel": 0.3 * jax.random.normal(b, (self.width, 1), jnp.float32),
                "bias": jnp.zeros((1,), jnp.float32),
            },
        }

    def predict(self, params, x, rngs=None):
        hidden = jnp.tanh(x.astype(params["in"]["kernel"].dtype) @ params["in"]["kernel"])
        if rngs is not None and self.dropout:
            keep = jax.random.bernoulli(rngs("dropout"), 1 - self.dropout, hidden.shape)
            hidden = jnp.where(keep, hidden / (1 - self.dropout), 0)
        return (hidden @ params["out"]["kernel"] + params["out"]["bias"])[:, 0]

    def metrics(self, params, batch, rngs=None):
        error = (self.predict(params, batch["x"], rngs) - batch["y"]).astype(jnp.float32)
        return {"loss": Mean.of(error**2, batch.get("weight"))}

    def loss(self, params, batch, rngs):
        out = self.metrics(params, batch, rngs)
        if self.nan_at is not None:
            bad = jnp.where(rngs.step == self.nan_at, jnp.nan, 1)
            out["loss"] = Mean(out["loss"].total * bad, out["loss"].weight)
        return out

    def data(self, *, batch_size, seed):
        return ArrayData(rows(100, 0), batch_size=batch_size, seed=seed)

    def evaluators(self) -> Sequence[Evaluator]:
        held_out = OnePass(rows(50, 1), batch_size=16)
        return (
            MetricsEvaluator(
                name="test", every=self.eval_every, data=held_out, metrics=self.metrics
            ),
        )

    def sharding_rules(self):
        return self.rules


def experiment(task: Toy | None = None, **changes) -> Experiment[Toy]:
    """A run of 12 steps that logs every 2 and saves every 4."""
    settings = {
        "steps": 12,
        "batch_size": 16,
        "optim": OptimConfig(name="adam", learning_rate=1e-2),
        "checkpoint": CheckpointConfig(every=4, keep=3),
        "log": LogConfig(every=2, tensorboard=False, progress=False),
        "step": StepConfig(),
    }
    return Experiment(task=task or Toy(), **(settings | changes))
