"""The perturbation driver: elimination, scaling, correction, ensembles, resuming."""

import dataclasses

import jax
import numpy as np
import pytest

from born_mlp import nnpt
from born_mlp.coefficients import relative_error, taylor_terms
from born_mlp.fit import MUON, ResidualFit, make_residual
from born_mlp.mlp import MLP, load_network
from born_mlp.physics.samplers import AttractiveRays, SignedRays
from born_mlp.samples import (
    GivenSamples,
    Samples,
    ScatteringSamples,
    contract,
    exact_approximation,
    exact_tensor,
)
from common import CheckpointConfig, Experiment, LogConfig, StepConfig, train

RNG = np.random.default_rng(0)


def symmetric(d: int, order: int) -> np.ndarray:
    """A random symmetric tensor."""
    v = RNG.normal(size=(3, d))
    subscripts = ",".join("ni"[0] + "abcd"[k] for k in range(order))
    return np.einsum(f"{subscripts}->{'abcd'[:order]}", *[v] * order)


def polynomial_samples(d: int = 3, n: int = 2048) -> tuple[Samples, list[np.ndarray]]:
    x = RNG.uniform(-1, 1, (n, d))
    terms = [symmetric(d, m) / 2**m for m in (1, 2)]
    return Samples(x=x, y=sum(contract(t, x) for t in terms)), terms


def experiments(source, orders=2, steps=1500, members=2, **task) -> list[Experiment[ResidualFit]]:
    return [
        Experiment(
            task=ResidualFit(
                source=source, order=n, members=members, hidden=(32, 32), eval_every=steps, **task
            ),
            steps=steps,
            batch_size=128,
            optim=dataclasses.replace(MUON, learning_rate=0.02, warmup_steps=50),
            step=StepConfig(per_call=50),
            log=LogConfig(every=500, tensorboard=False, progress=False),
            checkpoint=CheckpointConfig(every=500),
        )
        for n in range(1, orders + 1)
    ]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_contract_is_the_homogeneous_polynomial(order):
    x = RNG.normal(size=(5, 4))
    tensor = np.asarray(1.5) if order == 0 else symmetric(4, order)
    expected = np.full(5, 1.5)
    if order:
        letters = "abc"[:order]
        operands = ",".join(f"n{a}" for a in letters)
        expected = np.einsum(f"{letters},{operands}->n", tensor, *[x] * order)
    np.testing.assert_allclose(contract(tensor, x), expected, rtol=1e-12)


def test_the_residual_is_what_the_lower_terms_leave_in_scaled_units():
    samples, terms = polynomial_samples()
    lower = (np.stack([terms[0], 0 * terms[0]]),)
    residual = make_residual(samples, lower, order=2, members=2, loss="relative", floor=0.3)
    back = residual.y * residual.y_scale
    np.testing.assert_allclose(back[:, 0], contract(terms[1], samples.x), atol=1e-12)
    np.testing.assert_allclose(back[:, 1], samples.y, atol=1e-12)
    np.testing.assert_allclose(np.mean((residual.weight * residual.y) ** 2, 0), 1, rtol=1e-12)
    np.testing.assert_allclose(residual.x * residual.x_scale, samples.x, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_terms_carry_the_scales(order):
    mlp = MLP(in_features=3, hidden=(5, 4), activation="tanh")
    params = jax.vmap(lambda k: mlp.init(k, dtype=np.float64))(jax.random.split(jax.random.key(0)))
    scale = np.array([2.0, 5.0])
    terms = taylor_terms(mlp, params, order, x_scale=0.3, y_scale=scale)
    for i in range(2):
        one = jax.tree.map(lambda p, i=i: p[i], params)

        def f(t, v, one=one, i=i):
            return scale[i] * mlp.apply(one, t * v / 0.3)

        v = RNG.normal(size=3)
        derivative = f
        for _ in range(order):
            derivative = jax.jacfwd(derivative)
        expected = derivative(0.0, v) / [1, 1, 2, 6][order]
        np.testing.assert_allclose(contract(terms[order][i], v[None]), expected, rtol=1e-10)


def test_two_iterations_learn_two_orders_and_correct_the_first():
    samples, terms = polynomial_samples()
    found = nnpt.run(experiments(GivenSamples(samples)))
    first, second = found.terms()
    raw = found.terms(corrected=False)[0]
    for member in range(2):
        assert relative_error(first[member], terms[0]) < 5e-3
        assert relative_error(second[member], terms[1]) < 5e-2
        assert relative_error(first[member], terms[0]) < relative_error(raw[member], terms[0])
    # What is known after an iteration does not depend on later ones, unless they correct it.
    np.testing.assert_array_equal(found.terms(1)[0], raw)
    x = samples.x[:10]
    np.testing.assert_allclose(
        found.proxy(x)[0], contract(first[0], x) + contract(second[0], x), rtol=1e-12
    )


def test_a_member_does_not_depend_on_the_size_of_the_ensemble():
    samples, _ = polynomial_samples(n=512)
    alone = experiments(GivenSamples(samples), orders=1, steps=100, members=1)[0]
    among = experiments(GivenSamples(samples), orders=1, steps=100, members=3)[0]
    a, b = train(alone).params, train(among).params
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x[0], y[0], rtol=1e-3, atol=1e-5)


def test_finished_iterations_are_not_trained_again(tmp_path, monkeypatch):
    samples, _ = polynomial_samples(n=512)
    plan = [
        dataclasses.replace(e, workdir=str(tmp_path / str(e.task.order)))
        for e in experiments(GivenSamples(samples), steps=100)
    ]
    first = nnpt.run(plan)
    monkeypatch.setattr(
        "common.loop.stack_steps", lambda *a: pytest.fail("a finished run was trained again")
    )
    monkeypatch.setattr(
        ResidualFit, "terms", lambda *a: pytest.fail("kept terms were read off again")
    )
    again = nnpt.run(plan)
    for a, b in zip(first.terms(), again.terms(), strict=True):
        np.testing.assert_array_equal(a, b)
    mlp, params = load_network(tmp_path / "2" / "networks.safetensors")
    assert mlp == first.iterations[1].mlp
    for x, y in zip(
        jax.tree.leaves(params), jax.tree.leaves(first.iterations[1].params), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    with np.load(tmp_path / "2" / "terms.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["term_2"], first.terms()[1])


def test_kept_terms_of_other_networks_are_not_taken(tmp_path):
    samples, _ = polynomial_samples(n=512)
    plan = experiments(GivenSamples(samples), orders=1, steps=100)
    plan = [dataclasses.replace(plan[0], workdir=str(tmp_path))]
    first = nnpt.run(plan)
    dataclasses.replace(
        first.iterations[0],
        params=jax.tree.map(lambda p: 2 * p, first.iterations[0].params),
        terms=tuple(0 * term for term in first.iterations[0].terms),
    ).save(tmp_path)
    np.testing.assert_array_equal(nnpt.run(plan).terms()[0], first.terms()[0])


def test_the_coefficients_that_are_watched_are_the_corrected_ones():
    exact = exact_tensor(3, 1)
    source = ScatteringSamples(sampler=SignedRays(cells=3), count=64)
    task = dataclasses.replace(
        experiments(source, members=1)[1].task, lower=(exact[None] * np.array([[0.9, 1.0, 1.1]]),)
    )
    params = task.init(jax.random.key(0))
    watched = task.evaluators()[0](params, None)
    corrected = task.lower[0] + task.terms(params, 2)[1]
    assert watched["order_1/0"] == pytest.approx(relative_error(corrected[0], exact), rel=1e-6)


def test_perturb_is_a_function_of_samples_alone():
    samples, terms = polynomial_samples(d=2, n=1024)
    found = nnpt.perturb(samples, 2, members=2, steps=1000, hidden=(16, 16))
    assert relative_error(found.terms()[0].mean(0), terms[0]) < 1e-2


def test_mirrored_samples_come_in_pairs_in_every_batch():
    source = ScatteringSamples(sampler=SignedRays(cells=4), count=64)
    data = experiments(source)[0].task.data(batch_size=16, seed=0)
    x = data.batch(3)["x"]
    np.testing.assert_array_equal(x[:8], -x[8:])
    np.testing.assert_array_equal(data.batch(3, slice(4, 12))["x"], x[4:12])
    assert data.spec()["y"].shape == data.batch(0)["y"].shape == (16, 2)


def test_test_potentials_are_not_training_potentials():
    source = ScatteringSamples(sampler=AttractiveRays(cells=4), count=64, mirrored=False)
    train_x, test_x = source.draw().x, source.draw_test(64).x
    assert not set(map(tuple, train_x)) & set(map(tuple, test_x))


def test_exact_terms_sum_to_the_exact_approximation():
    x = SignedRays(cells=5).sample(0, 20)
    total = sum(contract(exact_tensor(5, m), x) for m in (1, 2, 3))
    np.testing.assert_allclose(exact_approximation(x, 3), total, rtol=1e-11)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Samples(x=np.zeros((3, 2)), y=np.zeros(4)), r"got \(3, 2\) and \(4,\)"),
        (lambda: Samples(x=np.zeros((3, 2), np.float32), y=np.zeros(3)), "x is float32"),
        (lambda: Samples(x=np.zeros((3, 2)), y=np.array([0, np.nan, 0])), "first in row 1"),
        (lambda: ScatteringSamples(sampler=AttractiveRays()), "set mirrored to False"),
        (
            lambda: ScatteringSamples(sampler=SignedRays(amplitude=9.0), count=512).draw(),
            "lambda",
        ),
        (lambda: experiments(None, loss_name="relativ"), "did you mean 'relative'"),
        (lambda: experiments(None, orders=2, activation="relu"), "no derivative of order 2"),
        (lambda: nnpt.run(experiments(None)[1:]), "orders 1, 2, ... in turn"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_single_precision_is_refused():
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="double precision"):
        nnpt.run(experiments(None))
