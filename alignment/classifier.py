"""A vision transformer trained on class labels: where a student starts that nobody else trained."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from alignment.files import read_arrays
from alignment.images.preprocess import Preprocessing, named
from alignment.vit.config import ViTConfig
from alignment.vit.model import bind, init
from common import ArrayData, Data, Evaluator, Mean, MetricsEvaluator, OnePass, Task
from common.data.arrays import WHOLE, Arrays, Part
from common.metrics import Metrics
from common.rng import Rngs
from common.task import Batch, Params, ShardingRules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Task):
    """Supervised training of a small vision transformer on images that fit into memory."""

    model: ViTConfig
    """Architecture of the backbone."""
    images: str
    """`.npz` file of the training images: `images` uint8 (n, s, s, 3), and `labels`."""
    classes: int
    """Number of classes."""
    test_images: str | None = None
    """Such a file of held-out images."""
    shift: int = 4
    """Largest shift of a training image in each direction, pixels; beyond its edge it is grey."""
    flip: bool = True
    """Mirror every other training image."""
    label_smoothing: float = 0.0
    """Probability mass of a target that is spread over all classes."""
    eval_every: int = 500
    """Cadence in steps of the accuracy on held-out images."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to the images: only their scale changes."""
        return named("alignet", self.model.image_size)

    def init(self, key: Array) -> Params:
        """Draw the parameters: `backbone`, and the linear `classifier`, which starts at zero."""
        return {
            "backbone": init(self.model, key),
            "classifier": {
                "kernel": jnp.zeros((self.model.features, self.classes), jnp.float32),
                "bias": jnp.zeros((self.classes,), jnp.float32),
            },
        }

    def logits(self, params: Params, images: UInt8[Array, "B s s 3"]) -> Float[Array, "B classes"]:
        """Return the logits of the classes."""
        features = bind(self.model, params["backbone"])(self.preprocessing.normalise(images))
        return features @ params["classifier"]["kernel"] + params["classifier"]["bias"]

    def loss(self, params: Params, batch: Batch, rngs: Rngs) -> Metrics:
        """Return cross-entropy and accuracy on augmented images."""
        images = augment(batch["images"], rngs("augment"), shift=self.shift, flip=self.flip)
        return self._metrics(params, {**batch, "images": images}, self.label_smoothing)

    def _metrics(self, params: Params, batch: Batch, smoothing: float = 0.0) -> Metrics:
        logits = self.logits(params, batch["images"])
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        own = jnp.take_along_axis(log_p, batch["labels"][:, None], 1)[:, 0]
        losses = -(1 - smoothing) * own - smoothing * jnp.mean(log_p, -1)
        hits = jnp.argmax(logits, -1) == batch["labels"]
        weight = batch.get("weight")
        return {
            "loss": Mean.of(losses, weight),
            "accuracy": Mean.of(hits.astype(jnp.float32), weight),
        }

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Make the training data; the file is read when the first batch is."""
        return _ImagesInMemory(self, batch_size=batch_size, seed=seed)

    def read(self, path: str) -> Arrays:
        """Read images and labels.

        Raises:
          FileNotFoundError, ValueError: naming the file, if it does not fit the task.
        """
        found = read_arrays(path, required=("images", "labels"))
        images, labels = found["images"], found["labels"].astype(np.int32)
        side = self.model.image_size
        if images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"{path}: images are {images.dtype} of shape {images.shape[1:]}, the model takes "
                f"uint8 of shape {(side, side, 3)}"
            )
        if labels.shape != (len(images),) or not ((labels >= 0) & (labels < self.classes)).all():
            raise ValueError(
                f"{path}: labels must be {len(images)} integers from 0 to {self.classes - 1}"
            )
        return {"images": images, "labels": labels}

    def row_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of an image and its label."""
        side = self.model.image_size
        return {
            "images": jax.ShapeDtypeStruct((side, side, 3), np.uint8),
            "labels": jax.ShapeDtypeStruct((), np.int32),
        }

    def evaluators(self) -> Sequence[Evaluator]:
        """Return loss and accuracy on held-out images."""
        if self.test_images is None:
            return []
        return [
            MetricsEvaluator(
                name="test",
                every=self.eval_every,
                data=_TestImages(self, self.test_images),
                metrics=self._metrics,
            )
        ]

    def sharding_rules(self) -> ShardingRules:
        """Lay the parameters out over `fsdp` and `tensor`."""
        return [
            *((f"backbone/{pattern}", axes) for pattern, axes in self.model.sharding_rules()),
            ("classifier/.*", ()),
        ]


class _ImagesInMemory(Data):
    def __init__(self, task: Classifier, *, batch_size: int, seed: int) -> None:
        self._task, self._batch_size, self._seed = task, batch_size, seed

    @functools.cached_property
    def _rows(self) -> ArrayData:
        arrays = self._task.read(self._task.images)
        return ArrayData(arrays, batch_size=self._batch_size, seed=self._seed)

    def batch(self, step: int, part: Part = WHOLE) -> Arrays:
        return self._rows.batch(step, part)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct((self._batch_size, *row.shape), row.dtype)
            for name, row in self._task.row_spec().items()
        }


class _TestImages:
    """Held-out images, which are read at the first evaluation."""

    batch_size = 256

    def __init__(self, task: Classifier, path: str) -> None:
        self._task, self._path = task, path

    @functools.cached_property
    def _rows(self) -> OnePass:
        return OnePass(self._task.read(self._path), batch_size=self.batch_size)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: np.ndarray) -> Arrays:
        return self._rows.take(rows)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self._task.row_spec()


def augment(
    images: UInt8[Array, "B s s 3"], key: Array, *, shift: int, flip: bool
) -> UInt8[Array, "B s s 3"]:
    """Shift each image by up to `shift` pixels in both directions, and mirror every other one."""
    side = images.shape[1]
    shifts, mirror = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), constant_values=128)
    corners = jax.random.randint(shifts, (len(images), 2), 0, 2 * shift + 1)

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (side, side, 3))

    moved = jax.vmap(crop)(padded, corners)
    if not flip:
        return moved
    turn = jax.random.bernoulli(mirror, shape=(len(images), 1, 1, 1))
    return jnp.where(turn, moved[:, :, ::-1], moved)
