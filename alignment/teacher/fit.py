"""Fitting many affine maps at once: every regularisation strength on every set of objects.

The maps of one set of objects see the same batches and differ in lambda alone. So their products
with the batch's features are one matrix product, `x @ [W_1 W_2 ...]`, which runs at full speed
where one small product after the other does not.

A batch is a set of objects and many triplets among them, and costs a product with as many rows as
there are objects. Triplets drawn independently, as in the predecessor, share next to no objects:
512 of them need 1,536 rows, and hold no more pairs than 56 objects do.

This is a loop of its own, and not `common.train`: a fit takes seconds to minutes, so that its
result is what is kept, and each member needs a gradient clipped by its own norm.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int

from alignment.judgments import PAIRS, AnyArray, pair_products
from alignment.teacher.choices import Choices
from alignment.teacher.objective import cross_entropy, distance_to_scaled_identity, local_loss
from common.optim import OptimConfig, make_optimizer
from common.progress import Progress

CHUNK = 50
"""Steps of one compiled call; the progress bar moves after each."""

Params = Mapping[str, Array]
"""`weights` (groups, p, lambdas, p), `bias` (groups, lambdas, p). The lambdas lie inside, so that
the maps of a group are one matrix as they are stored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """The term of gLocal that keeps the neighbourhoods of other images."""

    alpha: float = 0.1
    """Share of the term."""
    temperature: float = 0.1
    """Temperature of the cosines."""
    images: int = 1024
    """Images in a batch."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.temperature <= 0 or self.images < 2:
            raise ValueError(
                f"local: alpha {self.alpha} must lie in (0, 1), temperature {self.temperature} be "
                f"positive, and images {self.images} at least 2"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How maps are fitted."""

    steps: int = 2000
    """Optimizer steps."""
    objects_per_step: int | None = 128
    """Objects of a batch, whose triplets are drawn among them; None draws independent triplets."""
    triplets_per_step: int = 1024
    """Triplets of a batch."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate, which falls to 0 with half a cosine."""
    clip_norm: float = 1.0
    """Largest norm of a map's gradient."""
    initial_scale: float = 1e-3
    """The weights start as this times the identity, the bias as this."""
    seed: int = 0
    """Seed of the batches."""
    local: LocalConfig | None = None
    """gLocal's term; it needs the features of other images."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.triplets_per_step < 1:
            raise ValueError(
                f"steps and triplets_per_step must be positive: {self.steps}, "
                f"{self.triplets_per_step}"
            )
        if self.objects_per_step is not None and self.objects_per_step < 3:
            raise ValueError(f"objects_per_step {self.objects_per_step} must be at least 3")


class Group(NamedTuple):
    """Objects that maps are fitted on."""

    choices: Choices
    """Choices among them."""
    objects: Int[np.ndarray, "m"]
    """Rows of the features."""


class Maps(NamedTuple):
    """Fitted maps, float32 on the host."""

    weights: Float[np.ndarray, "groups lambdas p p"]
    """Of `x @ weights + bias`, x standardised."""
    bias: Float[np.ndarray, "groups lambdas p"]
    """The same."""


class Batch(NamedTuple):
    """One step's choices, by group."""

    rows: Int[AnyArray, "groups m"]
    """Rows of the features."""
    triplets: Int[AnyArray, "groups t 3"]
    """Triplets, as numbers of those rows."""
    targets: Float[AnyArray, "groups t 3"]
    """Their target probabilities."""
    images: Int[AnyArray, "i"]
    """Rows of the other images' features."""


def fit(
    features: Float[np.ndarray, "n p"],
    groups: Sequence[Group],
    lambdas: Sequence[float],
    config: FitConfig,
    *,
    images: Float[np.ndarray, "i p"] | None = None,
    description: str = "",
    progress: bool = True,
) -> Maps:
    """Fit a map to every group of objects with every lambda, all at once.

    Args:
      features: standardised features of all objects.
      groups: what each set of maps is fitted on.
      lambdas: strengths of the regulariser.
      config: how maps are fitted.
      images: standardised features of other images, for `config.local`.
      description: what the progress bar says.
      progress: whether to show one.

    Raises:
      ValueError: if there are no images for `config.local`, or too few.
      FloatingPointError: if a loss is not finite.
    """
    params: Params = {}
    with Progress(config.steps, description=description, enabled=progress) as bar:
        for step, loss, latest in iterate(features, groups, lambdas, config, images=images):
            bar.update(step, {"train/loss": loss})
            params = latest
    weights, bias = jax.device_get((params["weights"], params["bias"]))
    return Maps(weights=weights.swapaxes(1, 2), bias=bias)


def iterate(
    features: Float[np.ndarray, "n p"],
    groups: Sequence[Group],
    lambdas: Sequence[float],
    config: FitConfig,
    *,
    images: Float[np.ndarray, "i p"] | None = None,
) -> Iterator[tuple[int, float, Params]]:
    """Do what `fit` does, and yield after every `CHUNK` steps.

    Yields:
      Steps done, the mean loss since the last time, and the parameters, whose memory the next
      steps take over.
    """
    if (images is None) != (config.local is None):
        raise ValueError("features of other images and the config `local` go together")
    if config.local is not None and images is not None and len(images) < config.local.images:
        raise ValueError(f"{len(images)} images are less than a batch of {config.local.images}")
    p, scale = features.shape[1], config.initial_scale
    shape = (len(groups), p, len(lambdas), p)
    params = {
        "weights": jnp.broadcast_to(scale * jnp.eye(p)[:, None], shape),
        "bias": jnp.full((shape[0], *shape[2:]), scale),
    }
    # Adam works by element, so that one optimizer serves all maps; the clipping does not.
    optimizer = make_optimizer(
        OptimConfig(name="adam", learning_rate=config.learning_rate), params, steps=config.steps
    )
    step = functools.partial(
        _step,
        features=jnp.asarray(features),
        images=None if images is None else jnp.asarray(images),
        lambdas=jnp.asarray(lambdas, jnp.float32),
        config=config,
        optimizer=optimizer,
    )
    run = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)
    state = (params, optimizer.init(params))
    for first in range(0, config.steps, CHUNK):
        steps = range(first, min(first + CHUNK, config.steps))
        drawn = [draw(groups, config, step, images) for step in steps]
        state, losses = run(state, jax.tree.map(lambda *leaves: np.stack(leaves), *drawn))
        mean = float(losses.mean())
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"the loss of some map is not finite before step {steps.stop}: lower the learning "
                "rate"
            )
        yield steps.stop, mean, state[0]


def draw(
    groups: Sequence[Group], config: FitConfig, step: int, images: np.ndarray | None = None
) -> Batch:
    """Draw the batch of a step: a function of the seed and the step."""
    parts = [
        _draw_choices(group, config, np.random.default_rng((config.seed, step, i)))
        for i, group in enumerate(groups)
    ]
    rows = np.zeros(0, np.int32)
    if config.local is not None and images is not None:
        rng = np.random.default_rng((config.seed, step))
        rows = rng.choice(len(images), config.local.images, replace=False).astype(np.int32)
    numbers, triplets, targets = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    return Batch(rows=numbers, triplets=triplets, targets=targets, images=rows)


def _draw_choices(
    group: Group, config: FitConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count, size = config.triplets_per_step, config.objects_per_step
    if size is None:
        triplets, targets = group.choices.draw(rng, count, group.objects)
        return triplets.ravel(), np.arange(3 * count, dtype=np.int32).reshape(-1, 3), targets
    rows = rng.choice(group.objects, min(size, len(group.objects)), replace=False)
    triplets, targets = group.choices.draw(rng, count, rows)
    number = np.zeros(group.objects.max() + 1, np.int32)
    number[rows] = np.arange(len(rows))
    return rows.astype(np.int32), number[triplets], targets


def _step(
    state: Any,
    batch: Batch,
    *,
    features: Float[Array, "n p"],
    images: Float[Array, "i p"] | None,
    lambdas: Float[Array, "lambdas"],
    config: FitConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[Any, Float[Array, "groups lambdas"]]:
    """Take one step with every map."""
    params, opt_state = state
    others = None if images is None else images[batch.images]

    one = functools.partial(_loss, others=others, config=config)

    def total(params: Params) -> tuple[Array, Array]:
        by_lambda = jax.vmap(one, in_axes=(1, 0, 0, None, None, None))
        losses = jax.vmap(by_lambda, in_axes=(0, 0, None, 0, 0, 0))(
            params["weights"],
            params["bias"],
            lambdas,
            features[batch.rows],
            batch.triplets,
            batch.targets,
        )
        return losses.sum(), losses

    grads, losses = jax.grad(total, has_aux=True)(params)
    updates, opt_state = optimizer.update(_clip(grads, config.clip_norm), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), losses


def _loss(
    weights: Float[Array, "p q"],
    bias: Float[Array, "q"],
    strength: Float[Array, ""],
    x: Float[Array, "m p"],
    triplets: Int[AnyArray, "t 3"],
    targets: Float[AnyArray, "t 3"],
    *,
    others: Float[Array, "i p"] | None,
    config: FitConfig,
) -> Float[Array, ""]:
    z = x @ weights + bias
    if config.objects_per_step is None:  # the rows are those of the triplets, one after the other
        logits = pair_products(z[0::3], z[1::3], z[2::3])
    else:
        logits = block_logits(z, triplets)
    loss = cross_entropy(logits, targets).mean()
    if config.local is not None and others is not None:
        local = local_loss(others, others @ weights + bias, config.local.temperature)
        loss = (1 - config.local.alpha) * loss + config.local.alpha * local
    return loss + strength * distance_to_scaled_identity(weights)


def block_logits(z: Float[Array, "m q"], triplets: Int[AnyArray, "t 3"]) -> Float[Array, "t 3"]:
    """The values of `pair_logits`, through the products of all pairs of the batch's objects.

    Single numbers are gathered, not rows. The gradient of S = z z^T takes two matrix products; as S
    is symmetric, one is enough: hold one factor fixed, and let each pair count in both places.
    """
    s = z @ jax.lax.stop_gradient(z).T
    a, b = (triplets[:, np.array(column)] for column in zip(*PAIRS, strict=True))
    return s[a, b] + (s[b, a] - jax.lax.stop_gradient(s[b, a]))


def _clip(grads: Params, norm: float) -> Params:
    """Scale the gradient of each map down to `norm`."""
    squares = jnp.sum(grads["weights"] ** 2, (1, 3)) + jnp.sum(grads["bias"] ** 2, 2)
    scale = norm / jnp.maximum(jnp.sqrt(squares), norm)
    return {
        "weights": grads["weights"] * scale[:, None, :, None],
        "bias": grads["bias"] * scale[..., None],
    }
