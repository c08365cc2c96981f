"""The neural-network perturbation theory: order by order, learn, read off, eliminate.

Iteration n fits an ensemble to the residual `y_n = y - sum_{m<n} T_m[x^m]`, reads its Taylor
coefficients at the origin, `T_n = D^n f_n(0) / n!`, and goes on. Optionally (and not in the paper)
the networks of later iterations correct the lower terms: what they still see at order m < n,
`D^m f_n(0) / m!`, is the error that iteration m made, and is added to T_m.

Not to be confused with other methods called NNPT, such as residual learning on top of exact
solutions (arXiv 2512.01558).
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from born_mlp.coefficients import Term
from born_mlp.fit import MUON, ResidualFit
from born_mlp.mlp import MLP, Params, load_network, save_network
from born_mlp.samples import GivenSamples, Samples, contract
from common import CheckpointConfig, Experiment, LogConfig, StepConfig, train
from common.distributed import barrier, to_host
from common.files import local_copy, local_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iteration:
    """The networks of one iteration, and their Taylor terms at the origin."""

    order: int
    """Iteration n, counted from 1."""
    mlp: MLP
    """Architecture of a member."""
    params: Params
    """Parameters, float64, every array with a leading axis of members."""
    x_scale: float
    """The networks take `x / x_scale`."""
    y_scale: Float[np.ndarray, "members"]
    """The networks give the residual in units of this."""
    terms: tuple[Term, ...]
    """`D^m f_n(0) / m!` for m = 0, 1, ... in the units of the function."""
    metrics: dict[str, float]
    """Final metrics of the training run."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `networks.safetensors` (see `mlp.load_network`) and `terms.npz`.

        The archive holds `term_0`, `term_1`, ... with a leading axis of members, and the scales.
        """
        terms = {f"term_{m}": term for m, term in enumerate(self.terms)}
        with local_folder(folder) as root:
            save_network(root / "networks.safetensors", self.mlp, self.params)
            np.savez(root / "terms.npz", x_scale=self.x_scale, y_scale=self.y_scale, **terms)  # type: ignore[arg-type]

    def predict(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "members n"]:
        """Evaluate the networks' residual at points, float64."""
        scaled = jnp.asarray(x / self.x_scale)
        values = jax.vmap(self.mlp.apply, in_axes=(0, None))(self.params, scaled)
        return np.asarray(values) * self.y_scale[:, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perturbation:
    """The result of the theory: iterations 1 to N."""

    iterations: tuple[Iteration, ...]
    """The iterations in order."""

    def terms(self, through: int | None = None, *, corrected: bool = True) -> tuple[Term, ...]:
        """Return the Taylor terms T_1 .. T_n known after iteration `through` (all by default).

        Args:
          through: iteration n up to which to count.
          corrected: add what later iterations still see of the lower orders.
        """
        known = self.iterations[: len(self.iterations) if through is None else through]
        return tuple(
            np.sum([it.terms[n] for it in known[n - 1 : None if corrected else n]], axis=0)
            for n in range(1, len(known) + 1)
        )

    def proxy(
        self, x: Float[np.ndarray, "n d"], order: int | None = None, *, corrected: bool = True
    ) -> Float[np.ndarray, "members n"]:
        """Evaluate the learned Taylor polynomial through `order` (all iterations by default)."""
        return evaluate(self.terms(corrected=corrected)[:order], x)


def evaluate(
    terms: Sequence[Term], x: Float[np.ndarray, "n d"], *, members: int | None = None
) -> Float[np.ndarray, "members n"]:
    """Evaluate the polynomial with these terms, by members (needed where there are no terms)."""
    members = len(terms[0]) if members is None else members
    values = np.zeros((members, len(x)))
    for member in range(members):
        for term in terms:
            values[member] += contract(term[member], x)
    return values


def require_double_precision() -> None:
    """Refuse to read Taylor coefficients in single precision, which destroys orders above one."""
    if jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise RuntimeError(
            "labels and Taylor coefficients need double precision: call "
            'jax.config.update("jax_enable_x64", True) first (training itself stays in '
            "the type that the task names)"
        )


def run(
    experiments: Sequence[Experiment[ResidualFit]],
    *,
    correct: bool = True,
    read_order: int | None = None,
    description: str = "",
) -> Perturbation:
    """Run the iterations one after the other, each resumable like any run of the core.

    Args:
      experiments: one training run for each iteration 1..N; the terms to eliminate are filled in.
      correct: let each iteration correct the lower terms before the next elimination.
      read_order: highest order of the Taylor terms to read off each network; N by default.
      description: what the progress bar says before the number of the iteration.

    Raises:
      ValueError: if the experiments are not iterations 1..N on the same samples.
      RuntimeError: if double precision is off.
    """
    require_double_precision()
    orders = [e.task.order for e in experiments]
    if orders != list(range(1, len(experiments) + 1)):
        raise ValueError(f"the iterations must have the orders 1, 2, ... in turn; got {orders}")
    if any(e.task.source != experiments[0].task.source for e in experiments):
        raise ValueError("all iterations must use the same samples")
    if len({e.task.members for e in experiments}) != 1:
        raise ValueError("all iterations need the same number of members")
    read_order = max(len(experiments), read_order or 0)
    done: tuple[Iteration, ...] = ()
    for experiment in experiments:
        lower = Perturbation(iterations=done).terms(corrected=correct)
        task = dataclasses.replace(experiment.task, lower=lower)
        name = f"{description}: " if description else ""
        result = train(
            dataclasses.replace(experiment, task=task),
            description=f"{name}iteration {task.order}",
        )
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), to_host(result.params))
        residual = task.residual
        iteration = Iteration(
            order=task.order,
            mlp=task.mlp,
            params=params,
            x_scale=residual.x_scale,
            y_scale=residual.y_scale,
            terms=_read_terms(task, params, read_order, experiment.workdir),
            metrics=result.metrics,
        )
        barrier("terms read")  # no process writes over what another may still read
        if experiment.workdir is not None and jax.process_index() == 0:
            iteration.save(experiment.workdir)
        done += (iteration,)
    return Perturbation(iterations=done)


def _read_terms(
    task: ResidualFit, params: Params, order: int, folder: str | None
) -> tuple[Term, ...]:
    """Read the Taylor terms off the networks, or take those that `Iteration.save` kept of them.

    Another processor may read other last bits. The next iteration's target, and with it the config
    that its checkpoints belong to, must not change when a study moves.
    """
    if folder is not None and (epath.Path(folder) / "terms.npz").exists():
        with local_copy(f"{folder}/networks.safetensors") as path:
            _, kept_params = load_network(path)
        with local_copy(f"{folder}/terms.npz") as path, np.load(path, allow_pickle=False) as file:
            kept = tuple(file[f"term_{m}"] for m in range(len(file) - 2))
        same = jax.tree.map(np.array_equal, kept_params, params)
        if len(kept) > order and jax.tree.all(same):
            return kept[: order + 1]
    return task.terms(params, order)


def perturb(
    samples: Samples,
    order: int,
    *,
    members: int = 4,
    steps: int = 10_000,
    workdir: str | None = None,
    seed: int = 0,
    hidden: tuple[int, ...] = (64, 64),
) -> Perturbation:
    """Learn the Taylor terms of any scalar function at the origin from its values alone.

        x = np.random.default_rng(0).uniform(-1, 1, (20_000, 3))
        found = perturb(Samples(x=x, y=np.cos(x.sum(1)) * np.exp(x[:, 0])), order=2)
        found.terms()[1].mean(0)  # half the Hessian at the origin

    The origin should lie inside the sampled region, and the strengths |x| should reach down
    to it; move the expansion point there by a change of variables.

    Args:
      samples: points and values.
      order: number of iterations N.
      members: networks in the ensemble, whose spread gives error bars.
      steps: training steps of each iteration.
      workdir: folder for logs and checkpoints; None keeps nothing.
      seed: seed of parameters and data order.
      hidden: widths of the networks.

    Returns:
      The iterations; their `terms()` are T_1 .. T_N.
    """
    base = Experiment(
        task=ResidualFit(
            source=GivenSamples(samples), members=members, hidden=hidden, eval_every=steps
        ),
        steps=steps,
        seed=seed,
        optim=dataclasses.replace(MUON, warmup_steps=steps // 20),
        step=StepConfig(per_call=math.gcd(steps, 100)),
        log=LogConfig(every=math.gcd(steps, 1000), tensorboard=False),
        checkpoint=CheckpointConfig(every=math.gcd(steps, 1000)),
    )
    experiments = [
        dataclasses.replace(
            base,
            task=dataclasses.replace(base.task, order=n),
            workdir=None if workdir is None else f"{workdir}/iteration_{n}",
        )
        for n in range(1, order + 1)
    ]
    return run(experiments)
