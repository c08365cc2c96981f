"""The student: a whole vision transformer, fine-tuned on triplets with a teacher's soft labels.

On top of the backbone's features h (`pre_logits`) lies the triplet head, a dense layer z = h W + b
(`triplet_logits`), whose dot products make the student's choice probabilities (`losses`). Every
parameter trains, and is pulled to where it started: `OptimConfig(decay_to_init=True)`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from alignment.evaluation.during_training import FeatureScores
from alignment.evaluation.odd_one_out import odd_one_out
from alignment.images.loading import load_rows
from alignment.images.preprocess import Preprocessing, named
from alignment.images.sources import ImageSource, open_images
from alignment.judgments import correct, read_triplets
from alignment.losses import LossConfig, student_logits, triplet_loss
from alignment.triplets.batches import TripletBatches, TripletGroups, TripletImages
from alignment.vit.config import ViTConfig
from alignment.vit.model import bind, init
from alignment.vit.positions import resize_model
from alignment.vit.pretrained import from_pretrained
from common import Data, Evaluator, Mean, Task
from common.data.arrays import Arrays
from common.evaluate import Step, check, evaluate
from common.metrics import Metrics
from common.rng import Rngs
from common.task import Batch, Params, ShardingRules


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedImages:
    """Images that people have judged, to be scored on while the student trains."""

    images: str
    """The images: a folder, `.npz` file or data set."""
    triplets: str
    """Odd-one-out choices between them, see `alignment.judgments.read_triplets`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student(Task):
    """Fine-tuning of a vision transformer on labelled triplets."""

    model: ViTConfig
    """Architecture of the backbone."""
    data_set: TripletImages
    """The triplets, whose labels they are (the student's or the control's), and their images."""
    start_from: str | None = None
    """Folder or name on the hub of the backbone to start from; None draws random weights."""
    head: int = 1024
    """Outputs of the triplet head."""
    head_seed: int = 0
    """Seed of the triplet head where the backbone is read from `start_from`."""
    loss_config: LossConfig = LossConfig()
    """The loss."""
    eval_samplings: tuple[str, ...] = ("class_border", "within_class", "between_class")
    """Samplings whose validation triplets are evaluated, always with the human-aligned labels."""
    eval_every: int = 5000
    """Cadence in steps of the evaluation."""
    eval_batches: int = 2
    """Batches of each sampling that are evaluated, the first ones."""
    eval_batch: int = 512
    """Triplets, or judged images, of an evaluation batch."""
    judged: JudgedImages | None = None
    """Score the backbone's features on people's choices, too."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to the images."""
        return named(self.data_set.preprocessing, self.model.image_size)

    def init(self, key: Array) -> Params:
        """Draw the parameters: `backbone`, and `triplet_head` (LeCun-normal kernel, zero bias)."""
        backbone, head = jax.random.split(key)
        return {"backbone": init(self.model, backbone), "triplet_head": self._draw_head(head)}

    def _draw_head(self, key: Array) -> Params:
        kernel = jax.nn.initializers.lecun_normal()(key, (self.model.features, self.head))
        return {"kernel": kernel, "bias": jnp.zeros((self.head,), jnp.float32)}

    def pretrained(self) -> Params | None:
        """Read the backbone to start from, with its positions resampled to `model.image_size`.

        Raises:
          ValueError: if its architecture is not that of `model`, naming the fields.
        """
        if self.start_from is None:
            return None
        head = jax.device_get(self._draw_head(jax.random.key(self.head_seed)))
        return {"backbone": read_backbone(self.start_from, self.model), "triplet_head": head}

    def outputs(
        self, params: Params, images: UInt8[Array, "B H W 3"]
    ) -> Mapping[str, Float[Array, "B d"]]:
        """Return `pre_logits` and `triplet_logits` of resized images."""
        pixels = self.preprocessing.normalise(images)
        features = bind(self.model, params["backbone"])(pixels)
        head = params["triplet_head"]
        return {
            "pre_logits": features,
            "triplet_logits": features @ head["kernel"] + head["bias"],
        }

    def loss(self, params: Params, batch: Batch, rngs: Rngs) -> Metrics:  # noqa: ARG002
        """Return the loss and the share of triplets whose odd one is found."""
        return self.metrics(params, batch)

    def metrics(self, params: Params, batch: Batch) -> Metrics:
        """Return the sums over a batch of groups of triplets, see `TripletGroups`.

        In evaluation the batch has an entry "weight", of each group.
        """
        groups, images = batch["images"].shape[:2]
        flat = batch["images"].reshape(groups * images, *batch["images"].shape[2:])
        z = self.outputs(params, flat)["triplet_logits"].reshape(groups, images, -1)
        # By groups, so that a device that holds a group needs no other's images.
        logits = jax.vmap(functools.partial(student_logits, config=self.loss_config))(
            z, batch["triplets"]
        )
        losses = triplet_loss(logits, batch["similarities"], self.loss_config)
        weight = batch["weight"][:, None] if "weight" in batch else None
        return {
            "loss": Mean.of(losses, weight),
            "accuracy": Mean.of(correct(logits).astype(jnp.float32), weight),
        }

    def data(self, *, batch_size: int, seed: int) -> Data:
        """Make the training data, `batch_size` triplets a step; files are read at the first."""
        groups = TripletGroups(
            self.data_set, self.data_set.train, self.preprocessing, batch_size=batch_size
        )
        return TripletBatches(groups, seed=seed)

    def evaluators(self) -> Sequence[Evaluator]:
        """Return the accuracy on synthetic validation triplets, and on people's choices."""
        found: list[Evaluator] = []
        if self.eval_samplings:
            found.append(TripletAccuracy(task=self))
        if self.judged is not None:
            judged = self.judged
            found.append(
                FeatureScores(
                    name="human",
                    every=self.eval_every,
                    images=_JudgedRows(self, judged.images),
                    embed=lambda params, batch: self.outputs(params, batch["images"])["pre_logits"],
                    scores=lambda features: odd_one_out(
                        features, read_triplets(judged.triplets, len(features))
                    ),
                )
            )
        return found

    def sharding_rules(self) -> ShardingRules:
        """Lay the parameters out over `fsdp` and `tensor`."""
        return [
            *((f"backbone/{pattern}", axes) for pattern, axes in self.model.sharding_rules()),
            ("triplet_head/kernel", ("fsdp", "tensor")),
            ("triplet_head/bias", ()),
        ]


def read_backbone(name: str, model: ViTConfig) -> Params:
    """Read the weights of a backbone from a folder or the hub, for images of `model.image_size`.

    Positions are resampled linearly. A last projection that `model` does not have is left out.

    Raises:
      ValueError: if its architecture is not that of `model`, naming the fields.
    """
    found = from_pretrained(name)
    config, params = resize_model(found.config, found.params, model.image_size, method="linear")
    if model.projection is None:
        config = dataclasses.replace(config, projection=None)
        params = {part: leaf for part, leaf in params.items() if part != "projection"}
    config = dataclasses.replace(config, scan=model.scan, remat=model.remat)
    wrong = [
        f"{field.name}: {getattr(config, field.name)} in the checkpoint, "
        f"{getattr(model, field.name)} in the config"
        for field in dataclasses.fields(ViTConfig)
        if getattr(config, field.name) != getattr(model, field.name)
    ]
    if wrong:
        raise ValueError(f"{name} does not fit task.model:\n  " + "\n  ".join(wrong))
    return params


@dataclasses.dataclass(frozen=True, kw_only=True)
class TripletAccuracy:
    """Share of validation triplets whose odd one the student finds, by sampling.

    High values are no proof of alignment: the labels are the teacher's, not people's.
    """

    task: Student
    """The training task."""
    name: str = "synthetic"
    """Prefix of the numbers."""

    @property
    def every(self) -> int:
        """Cadence in steps."""
        return self.task.eval_every

    @functools.cached_property
    def _data(self) -> Mapping[str, TripletGroups]:
        task = self.task
        return {
            sampling: TripletGroups(
                task.data_set,
                task.data_set.validation(sampling),
                task.preprocessing,
                batch_size=task.eval_batch,
                first=task.eval_batches * task.eval_batch,
            )
            for sampling in task.eval_samplings
        }

    @functools.cached_property
    def _step(self) -> Step:
        return jax.jit(self.task.metrics)

    def check(self, params: Params, mesh: Mesh) -> None:
        """Trace the metrics; nothing is read."""
        for data in self._data.values():
            check(self._step, params, data, mesh)

    def __call__(self, params: Params, mesh: Mesh) -> Mapping[str, float]:
        """Return the accuracy and the loss of each sampling."""
        return {
            f"{sampling}/{key}": value
            for sampling, data in self._data.items()
            for key, value in evaluate(self._step, params, data, mesh).items()
        }


class _JudgedRows:
    """Judged images, read and resized when they are evaluated."""

    def __init__(self, task: Student, images: str) -> None:
        self._preprocessing, self._images = task.preprocessing, images
        self._workers = task.data_set.workers
        self.batch_size = task.eval_batch

    @functools.cached_property
    def _source(self) -> ImageSource:
        return open_images(self._images)

    def __len__(self) -> int:
        return len(self._source)

    def take(self, rows: Int[np.ndarray, "b"]) -> Arrays:
        return {"images": load_rows(self._source, rows, self._preprocessing, workers=self._workers)}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        side = self._preprocessing.size
        return {"images": jax.ShapeDtypeStruct((side, side, 3), np.uint8)}
