"""VICE as a training task: a variational posterior over embeddings, many seeds at once.

Muttenthaler, Zheng, McClure, Vandermeulen, Hebart and Pereira, "VICE: Variational interpretable
concept embeddings" (NeurIPS 2022). With y = relu(x) and x ~ q = N(mean, scale^2), coordinate by
coordinate, the negative evidence bound for n triplets is, divided by n,

    -1/n sum_s log p({a_s, b_s} | {i_s, j_s, k_s}, y) + 1/n (log q(x) - log p(x)),

with the softmax likelihood of `alignment.judgments.pair_logits` and, as prior p, a mixture of a
narrow Gaussian (the spike) and a wide one (the slab) for each coordinate, which empties the
dimensions that the choices do not need. Both parts are estimated with one sample of x at each step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.random import threefry_2x32
from jax.sharding import Mesh
from jaxtyping import Float

from alignment import judgments
from alignment.judgments import Triplets
from alignment.vice.embedding import Embedding, dimensions_kept
from common import ArrayData, Data, Evaluator, Mean, Task
from common.metrics import Metrics
from common.rng import Rngs
from common.xla import written_to_memory

Params = Mapping[str, Array]
"""`mean` and `log_scale`, each (objects, seeds, dimensions): one look-up of an object gives its
coordinates in all seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """Spike-and-slab mixture of two Gaussians around zero, for each coordinate."""

    spike_weight: float = 0.5
    """Share of the spike."""
    spike_scale: float = 0.125
    """Standard deviation of the spike."""
    slab_scale: float = 0.5
    """Standard deviation of the slab."""

    def __post_init__(self) -> None:
        if not 0 < self.spike_weight < 1:
            raise ValueError(f"prior.spike_weight must lie in (0, 1), got {self.spike_weight}")
        if not 0 < self.spike_scale < self.slab_scale:
            raise ValueError(
                "prior.spike_scale must be positive and below prior.slab_scale; got "
                f"{self.spike_scale} and {self.slab_scale}"
            )

    def log_density(self, x: Array) -> Array:
        """Return `log p(x)` of each coordinate, without the constant `-log(2 pi) / 2`."""
        log_slab = math.log((1 - self.spike_weight) / self.slab_scale)
        log_spike = math.log(self.spike_weight / self.spike_scale)
        wide, narrow = self.slab_scale**-2, self.spike_scale**-2
        # The spike beside the slab: bounded, as it is narrower. One exponential serves the
        # gradient, too.
        odds = jnp.exp(log_spike - log_slab - (narrow - wide) / 2 * x**2)
        return log_slab - wide / 2 * x**2 + jnp.log1p(odds)


def _normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw standard normal numbers from both words of each hash.

    `jax.random.normal` makes one word of the two, and takes twice the hashes: half the time of the
    noise on CPUs.
    """
    counts = jax.lax.iota(jnp.uint32, math.prod(shape))
    bits = threefry_2x32(jax.random.bits(key, (2,)), counts) >> 8
    # Odd multiples of 2^-24 between -1 and 1: neither end, and symmetric.
    uniform = (2 * bits.astype(jnp.int32) + (1 - 2**24)).astype(jnp.float32) * 2.0**-24
    return (math.sqrt(2) * jax.lax.erf_inv(uniform)).reshape(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vice(Task):
    """Fits the posterior to odd-one-out choices."""

    triplets: str
    """File of the choices, see `alignment.judgments.read_triplets`."""
    names: str
    """File of the objects' names, one a line; row = number of the object."""
    leave_out: tuple[str, ...] = ()
    """Files of triplets that must stay unseen: choices among the same three objects are dropped."""
    held_out: float = 0.1
    """Share of the triplets, by sets of objects, that is kept for measuring accuracy."""
    seeds: int = 8
    """Independent embeddings that are fitted at once."""
    dimensions: int = 50
    """Dimensions before pruning."""
    prior: Prior = Prior()
    """Prior of each coordinate."""
    initial_scale: float = 0.1
    """Standard deviation of the posterior at the start."""
    eval_every: int = 100
    """Cadence of the evaluator."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.dimensions < 1:
            raise ValueError(
                f"seeds and dimensions must be positive: {self.seeds}, {self.dimensions}"
            )
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), got {self.held_out}")

    @functools.cached_property
    def objects(self) -> np.ndarray:
        """Names of the objects, str (n,)."""
        return judgments.read_names(self.names)

    @functools.cached_property
    def split(self) -> tuple[Triplets, Triplets]:
        """The triplets to train on and those held out; no three objects occur in both."""
        count = len(self.objects)
        found = judgments.read_triplets(self.triplets, count)
        for path in self.leave_out:
            found = judgments.leave_out(found, judgments.read_triplets(path, count))
        sets, row = np.unique(judgments.unordered(found), return_inverse=True)
        held_out = np.random.default_rng(0).random(len(sets))[row] < self.held_out
        if held_out.all() or not held_out.any():
            raise ValueError(f"{self.triplets}: {len(found)} triplets are too few to hold some out")
        return found[~held_out], found[held_out]

    def _by_seed(
        self, draw: Callable[..., Array], key: Array, objects: int
    ) -> Float[Array, "objects seeds d"]:
        """Draw numbers with a key for each seed, so that it does not depend on the others."""
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(self.seeds))
        return jax.vmap(lambda k: draw(k, (objects, self.dimensions)), out_axes=1)(keys)

    def _noise(self, key: Array) -> Float[Array, "n seeds d"]:
        """Draw standard normal numbers."""
        return written_to_memory(self._by_seed(_normal, key, len(self.objects)))

    def init(self, key: Array) -> Params:
        """Draw the means uniformly from 0 to 1, and give all coordinates the same scale."""
        mean = self._by_seed(jax.random.uniform, key, len(self.objects))
        return {"mean": mean, "log_scale": jnp.full_like(mean, math.log(self.initial_scale))}

    def loss(self, params: Params, batch: Any, rngs: Rngs) -> Metrics:
        """Negative evidence bound a triplet, at one sample of the posterior; sum over the seeds."""
        noise = self._noise(rngs("posterior"))
        x = params["mean"] + jnp.exp(params["log_scale"]) * noise
        logits = judgments.pair_logits(jax.nn.relu(x), batch["triplets"])
        nll = -jax.nn.log_softmax(logits)[..., 0].sum(0)
        # log p(x) - log q(x), without the constant that both share. In memory, as a fusion with the
        # sum takes twice the time on CPUs.
        gap = written_to_memory(params["log_scale"] + noise**2 / 2 + self.prior.log_density(x))
        excess = -gap.sum((0, 2))
        rows = jnp.asarray(len(batch["triplets"]), jnp.float32)
        bound = nll + excess * rows / len(self.split[0])
        return {"loss": Mean(bound.sum(), rows), "bound": Mean(bound, rows), "nll": Mean(nll, rows)}

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Return the training triplets, shuffled in each epoch."""
        return ArrayData({"triplets": self.split[0]}, batch_size=batch_size, seed=seed)

    def evaluators(self) -> Sequence[Evaluator]:
        """Return the count of dimensions and the accuracy on the held-out triplets."""
        return (HeldOut(task=self, every=self.eval_every),)

    def sharding_rules(self) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
        """Spread the seeds over the axis `tensor`."""
        return ((".*", (None, "tensor")),)

    def embeddings(self, params: Params) -> list[Embedding]:
        """Return the posterior of each seed, dimensions unpruned."""
        host = jax.device_get(dict(params))
        return [
            Embedding(
                mean=host["mean"][:, seed],
                scale=np.exp(host["log_scale"][:, seed]),
                names=self.objects,
            )
            for seed in range(self.seeds)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """An evaluator: dimensions left after pruning, and how well the mean embedding predicts."""

    task: Vice
    """The task."""
    every: int
    """Cadence in steps."""
    name: str = "held_out"
    """Prefix of the numbers."""

    def __call__(self, params: Params, mesh: Mesh) -> dict[str, float]:  # noqa: ARG002
        """Return by seed the accuracy, the mean of -log p (nats) and the dimensions."""
        found = {}
        for i, embedding in enumerate(self.task.embeddings(params)):
            logits = judgments.pair_logits(embedding.values, self.task.split[1])
            found[f"accuracy/{i}"] = float(judgments.correct(logits).mean())
            found[f"nll/{i}"] = float(-jax.nn.log_softmax(logits)[:, 0].mean())
            kept = dimensions_kept(embedding.mean, embedding.scale)
            found[f"dimensions/{i}"] = float(kept.sum())
        return found
