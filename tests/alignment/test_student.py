"""The student under the core: batches, loss, optimizer, start, resume, evaluation."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.images import loading
from alignment.student import JudgedImages, TripletAccuracy, read_backbone
from alignment.vit.config import preset
from alignment.vit.model import init
from alignment.vit.pretrained import save_pretrained
from common import MeshConfig, Preempted, cli, train
from common.data import stack_steps
from common.mesh import make_mesh
from common.optim import make_optimizer, make_schedule
from common.rng import Rngs
from common.setup import prepare
from tests.alignment.student_toy import MODEL, POOL, experiment, student, write_data
from tests.common.test_resume import stop_at

PUBLISHED = pathlib.Path(__file__).parents[2] / "configs" / "alignment" / "siglip_b16.py"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Triplets drawn one by one."""
    return write_data(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """Triplets in groups of 16 that share 6 images."""
    return write_data(tmp_path_factory.mktemp("pooled"), pool=POOL)


@pytest.fixture(scope="module")
def trained(plain):
    return train(experiment(student(plain)))


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


# --- Optimizer --------------------------------------------------------------------------------


def test_published_schedule():
    config = cli.resolve(PUBLISHED, [])
    schedule = make_schedule(config.optim, steps=config.steps)
    found = [float(schedule(step)) for step in (0, 2500, 5000, 52500, 99_999)]
    np.testing.assert_allclose(found, [0, 1.5e-5, 3e-5, 1.5e-5, 0], rtol=1e-4, atol=1e-12)


def test_decay_goes_towards_the_start_after_adam():
    published = cli.resolve(PUBLISHED, []).optim
    config = dataclasses.replace(published, learning_rate=0.1, schedule="constant", warmup_steps=0)
    params = {"w": jnp.ones(3)}
    optimizer = make_optimizer(config, params, steps=3)
    state = optimizer.init(params)
    for expected in (0.9, 0.81, 0.729):
        updates, state = optimizer.update({"w": jnp.full(3, 0.5)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(params["w"], expected, atol=3e-6)


# --- Batches ----------------------------------------------------------------------------------


def test_distinct_images_are_listed_once_and_give_the_same_loss_and_gradient(pooled):
    alone = dataclasses.replace(pooled, group_triplets=1, group_images=3)
    shared, single = student(pooled), student(alone)
    data = [task.data(batch_size=32, seed=0) for task in (shared, single)]
    shared_batch = data[0].batch(3)
    assert shared_batch["images"].shape[:2] == (2, 6)
    assert shared_batch["triplets"].max() < 6
    for group, triplets in zip(shared_batch["images"], shared_batch["triplets"], strict=True):
        assert len(np.unique(group.reshape(6, -1), axis=0)) == len(np.unique(triplets))
    # The same triplets one by one, with all three images each.
    images = np.stack(
        [g[t] for g, t in zip(shared_batch["images"], shared_batch["triplets"], strict=True)]
    ).reshape(32, 3, 16, 16, 3)
    single_batch = {
        "images": images,
        "triplets": np.tile(np.arange(3, dtype=np.int32), (32, 1, 1)),
        "similarities": shared_batch["similarities"].reshape(32, 1, 3),
    }
    spec = {k: (v.shape, v.dtype) for k, v in single_batch.items()}
    assert spec == {k: (v.shape, v.dtype) for k, v in data[1].spec().items()}
    params = shared.init(jax.random.key(0))
    rngs = Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))

    def loss(task, batch):
        batch = jax.tree.map(jnp.asarray, batch)

        def total(params):
            found = task.loss(params, batch, rngs)["loss"]
            return found.total, found.weight

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    (a, weight_a), grad_a = loss(shared, shared_batch)
    (b, weight_b), grad_b = loss(single, single_batch)
    assert (weight_a, weight_b) == (32, 32)
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), grad_a, grad_b
    )


def test_batches_are_a_function_of_seed_and_step(plain):
    first, again = (student(plain).data(batch_size=32, seed=5) for _ in range(2))
    same(first.batch(7), again.batch(7))
    other = student(plain).data(batch_size=32, seed=6).batch(7)
    assert (other["triplets"].shape, (other["images"] != first.batch(7)["images"]).any()) == (
        (32, 1, 3),
        True,
    )
    # Each epoch shows every triplet once.
    epoch = np.concatenate([first.batch(step)["similarities"] for step in range(8)]).reshape(-1, 3)
    assert len(np.unique(epoch, axis=0)) == 256


@pytest.mark.parametrize("fixture", ["plain", "pooled"])
def test_only_the_images_of_a_part_of_a_batch_are_read(fixture, request, monkeypatch):
    data = student(request.getfixturevalue(fixture)).data(batch_size=32, seed=5)
    whole, read, original = data.batch(3), [], loading.load_batches

    def counted(source, rows, *args, **options):
        read.extend(rows)
        return original(source, rows, *args, **options)

    monkeypatch.setattr(loading, "load_batches", counted)
    half = slice(len(whole["images"]) // 2, None)
    part = data.batch(3, half)
    same(part, {name: array[half] for name, array in whole.items()})
    assert len(read) <= part["images"].shape[0] * part["images"].shape[1]


@pytest.mark.parametrize("fixture", ["plain", "pooled"])
def test_spec_is_the_batch(fixture, request):
    data = student(request.getfixturevalue(fixture)).data(batch_size=32, seed=0)
    batch, spec = data.batch(0), data.spec()
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }


def test_groups_that_do_not_fit_are_refused(pooled, plain):
    with pytest.raises(ValueError, match=r"no multiple of data_set\.group_triplets = 16"):
        student(pooled).data(batch_size=24, seed=0)
    tight = dataclasses.replace(pooled, group_images=5)
    with pytest.raises(ValueError, match=r"show 6 images, but data_set\.group_images is 5"):
        student(tight).data(batch_size=256, seed=0).batch(0)
    with pytest.raises(ValueError, match="a batch takes 512"):
        student(plain).data(batch_size=512, seed=0).batch(0)
    missing = dataclasses.replace(plain, sampling="cluster_border_7")
    with pytest.raises(FileNotFoundError, match=r"train_cluster_border_7\.npz"):
        student(missing).data(batch_size=32, seed=0).batch(0)


# --- Training ---------------------------------------------------------------------------------


def test_training_learns_what_the_labels_say(plain, trained):
    later = train(experiment(student(plain), steps=80)).metrics
    loss = "synthetic/class_border/loss"
    assert later[loss] < 0.7 * trained.metrics[loss]
    assert later["synthetic/between_class/accuracy"] > 0.6


def test_scores_on_human_choices(plain, trained, tmp_path):
    triplets = np.array([[0, 12, 5], [1, 13, 7], [2, 14, 9]])
    np.savez(tmp_path / "human.npz", triplets=triplets)
    judged = JudgedImages(images=plain.images, triplets=str(tmp_path / "human.npz"))
    task = student(plain, eval_samplings=(), judged=judged)
    (evaluator,) = task.evaluators()
    found = evaluator(trained.params, make_mesh(MeshConfig()))
    features = task.outputs(trained.params, jnp.asarray(plain.source.images))["pre_logits"]
    unit = np.asarray(features) / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = [[unit[t[a]] @ unit[t[b]] for a, b in ((0, 1), (0, 2), (1, 2))] for t in triplets]
    assert found["accuracy_cosine"] == pytest.approx(np.mean(np.argmax(cosines, 1) == 0))


def test_validation_counts_each_triplet_once_on_any_mesh(plain, trained):
    """64 triplets: in one batch, in batches that eight devices do not divide, and in 36 and 28."""
    found = [
        TripletAccuracy(
            task=student(plain, eval_samplings=("class_border",), eval_batch=size, eval_batches=16)
        )(trained.params, make_mesh(MeshConfig(), jax.devices()[:devices]))
        for size, devices in ((64, 1), (4, 8), (36, 1), (36, 8))
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)


def test_the_control_reads_other_labels_and_is_judged_by_the_same(plain, trained):
    control = dataclasses.replace(plain, labels="untransformed")
    found = train(experiment(student(control)))
    a, b = (student(d).data(batch_size=32, seed=0).batch(0) for d in (plain, control))
    assert (a["similarities"] != b["similarities"]).all()
    assert control.validation("class_border") == plain.validation("class_border")
    assert found.metrics["train/loss"] != trained.metrics["train/loss"]


def test_resume_is_bitwise(plain, trained, tmp_path, monkeypatch):
    task = student(plain)
    with monkeypatch.context() as patch:
        stop_at(patch, 5, type(task))
        with pytest.raises(Preempted):
            train(experiment(task, workdir=str(tmp_path)))
    resumed = train(experiment(task, workdir=str(tmp_path)))
    same(resumed.state, trained.state)


def test_one_compilation_and_any_mesh(pooled):
    config = experiment(student(pooled, eval_samplings=()), batch_size=128)
    losses = []
    for mesh in (MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)):
        setup = prepare(dataclasses.replace(config, mesh=mesh))
        state = setup.init_state()
        for step in range(2):
            state, window = setup.train_step(state, stack_steps(setup.data, step, 1))
            losses.append(float(window["loss"].compute()))
        assert setup.train_step._cache_size() == 1
    np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-5)


# --- Start ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A pretrained backbone for images of 32 pixels."""
    task = student(None)
    model = dataclasses.replace(MODEL, image_size=32)
    params = init(model, jax.random.key(9))
    preprocessing = dataclasses.replace(task, model=model, data_set=_Alignet()).preprocessing
    save_pretrained(tmp_path / "start", model, params, preprocessing=preprocessing)
    return tmp_path / "start", params


@dataclasses.dataclass(frozen=True)
class _Alignet:
    preprocessing: str = "alignet"


def test_the_start_is_read_resampled_and_decayed_to(plain, folder):
    path, params = folder
    task = student(plain, start_from=str(path))
    state = prepare(experiment(task)).init_state()
    same(state.params["backbone"]["blocks"], params["blocks"])
    assert state.params["backbone"]["positions"].shape == (1 + 16, 32)
    assert np.std(state.params["triplet_head"]["kernel"]) == pytest.approx(32**-0.5, rel=0.1)
    anchors = [
        leaf.initial
        for leaf in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "initial"))
        if hasattr(leaf, "initial")
    ]
    same(anchors[0], state.params)


def test_another_architecture_is_refused(folder):
    with pytest.raises(ValueError, match=r"(?s)does not fit task.model.*heads: 2 .* 4 "):
        read_backbone(str(folder[0]), dataclasses.replace(MODEL, heads=4))
    with pytest.raises(ValueError, match="pool"):
        read_backbone(str(folder[0]), preset("siglip-tiny"))
