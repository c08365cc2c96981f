"""The supervised start: augmentation, loss, training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.classifier import Classifier, augment
from common import CheckpointConfig, Experiment, LogConfig, OptimConfig, train
from common.rng import Rngs
from tests.alignment.student_toy import MODEL, WORLD


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    for split, count in (("train", 24), ("test", 8)):
        np.savez(folder / f"{split}.npz", **WORLD.images(split, count))
    return Classifier(
        model=dataclasses.replace(MODEL, patch=4, width=48, mlp=96),
        images=str(folder / "train.npz"),
        test_images=str(folder / "test.npz"),
        classes=WORLD.classes,
        shift=1,
        eval_every=50,
    )


def test_augmentation_shifts_and_mirrors():
    image = np.arange(25, dtype=np.uint8).reshape(1, 5, 5, 1).repeat(3, -1)
    images = np.repeat(image, 400, 0)
    found = np.asarray(augment(jnp.asarray(images), jax.random.key(0), shift=1, flip=True))
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)), constant_values=128)
    expected = {}
    for y in range(3):
        for x in range(3):
            crop = padded[y : y + 5, x : x + 5]
            expected[crop.tobytes()] = (y, x, 0)
            expected[crop[:, ::-1].tobytes()] = (y, x, 1)
    counts = np.zeros((3, 3, 2), int)
    for one in found:
        counts[expected[one.tobytes()]] += 1
    assert (counts > 4).all()  # 22 on average: 4 deviations
    still = augment(jnp.asarray(images), jax.random.key(0), shift=0, flip=False)
    np.testing.assert_array_equal(still, images)


def test_loss_is_smoothed_cross_entropy(task):
    task = dataclasses.replace(task, label_smoothing=0.3, shift=0, flip=False)
    params = task.init(jax.random.key(0))
    kernel = params["classifier"]["kernel"]
    params["classifier"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), kernel.shape)
    batch = task.data(batch_size=16, seed=0).batch(0)
    found = task.loss(
        params, jax.tree.map(jnp.asarray, batch), Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))
    )
    logits = np.asarray(task.logits(params, jnp.asarray(batch["images"])), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = 0.7 * np.eye(task.classes)[batch["labels"]] + 0.3 / task.classes
    expected = -(target * np.log(p)).sum(1).mean()
    assert float(found["loss"].compute()) == pytest.approx(expected, rel=1e-5)
    hits = (p.argmax(1) == batch["labels"]).mean()
    assert float(found["accuracy"].compute()) == pytest.approx(hits)


def test_training_learns_to_tell_classes(task):
    result = train(
        Experiment(
            task=task,
            steps=100,
            batch_size=32,
            optim=OptimConfig(learning_rate=3e-3, clip_norm=1.0),
            checkpoint=CheckpointConfig(every=100),
            log=LogConfig(every=50, tensorboard=False, progress=False),
        )
    )
    assert result.metrics["test/accuracy"] > 3 / task.classes


def test_files_that_do_not_fit_are_refused(task, tmp_path):
    data = WORLD.images("train", 1)
    for name, changes, message in (
        ("large", {"images": np.zeros((12, 24, 24, 3), np.uint8)}, r"uint8 of shape \(24, 24, 3\)"),
        ("label", {"labels": data["labels"] + 1}, "from 0 to 11"),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{**data, **changes})
        with pytest.raises(ValueError, match=message):
            task.read(str(path))
    with pytest.raises(FileNotFoundError, match="nothing"):
        task.read(str(tmp_path / "nothing.npz"))
