"""Batches of labelled triplets with their images, each distinct image once.

A batch is made of groups of triplets that are read together; a group's distinct images are listed
once, and its triplets point into that list. Published files have groups of one triplet and three
images; files made with `--pool` (`alignment.triplets.shared_images`) have large ones.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
from jaxtyping import Int

from alignment.images.loading import load_rows
from alignment.images.preprocess import Preprocessing
from alignment.images.sources import ImageSource, open_images
from alignment.triplets.files import LabelledTriplets, Labels, triplet_path
from common import Data
from common.data import EpochOrder
from common.data.arrays import WHOLE, Arrays, Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class TripletImages:
    """Where the triplets are, whose labels they have, and where their images come from."""

    root: str
    """Folder of the triplets, as `alignment.triplets` writes it or as it was published."""
    images: str
    """Images that the triplets' file names refer to: a folder, `.npz` file or data set."""
    labels: Labels = "uncertainty_distillation"
    """Train on the human-aligned teacher's labels, or, for the control, on those of the
    untransformed teacher."""
    sampling: str = "cluster_border_500"
    """Sampling of the training triplets, as in the file's name."""
    preprocessing: str = "alignet"
    """What is done to the images, see `alignment.images.preprocess`."""
    group_triplets: int = 1
    """Consecutive triplets that are read together; those of the pools where the file has them."""
    group_images: int = 3
    """Distinct images of such a group at most."""
    workers: int | None = None
    """Threads that read and resize images; by default as many as there are processors. What they
    give does not depend on their number."""

    def __post_init__(self) -> None:
        if self.group_triplets < 1 or self.group_images < 3:
            raise ValueError(
                f"group_triplets = {self.group_triplets} must be at least 1, and group_images = "
                f"{self.group_images} at least 3"
            )

    @functools.cached_property
    def source(self) -> ImageSource:
        """The images."""
        return open_images(self.images)

    @property
    def train(self) -> pathlib.Path:
        """File of the training triplets."""
        return triplet_path(self.root, self.labels, "train", self.sampling)

    def validation(self, sampling: str) -> pathlib.Path:
        """Return the file of the validation triplets of a sampling, human-aligned labels always."""
        return triplet_path(self.root, "uncertainty_distillation", "val", sampling)

    def images_per_batch(self, batch_size: int) -> int:
        """Return the images that a step on `batch_size` triplets embeds."""
        return batch_size // self.group_triplets * self.group_images


class TripletGroups:
    """The groups of triplets of one file, by their numbers; the rows of an evaluation.

    `images` uint8 (groups, images, s, s, 3): the distinct images of each group, resized, the last
    one repeated to fill up; `triplets` int32 (groups, triplets, 3): rows of these images, the odd
    one last; `similarities` float32 (groups, triplets, 3): the labels.
    """

    def __init__(
        self,
        data_set: TripletImages,
        path: pathlib.Path,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        first: int | None = None,
    ) -> None:
        """Prepare; nothing is read before the first group is.

        Args:
          data_set: images and grouping.
          path: the triplets.
          preprocessing: what is done to the images.
          batch_size: triplets of a batch.
          first: triplets to keep, the first ones; None keeps all. Whole groups are kept in any
            case.

        Raises:
          ValueError: if the batch is no whole number of groups.
        """
        if batch_size % data_set.group_triplets:
            raise ValueError(
                f"a batch of {batch_size} triplets is no multiple of data_set.group_triplets = "
                f"{data_set.group_triplets}"
            )
        self.path, self._data_set, self._first = path, data_set, first
        self._preprocessing = preprocessing
        self.batch_size = batch_size // data_set.group_triplets
        """Groups of a batch."""

    @functools.cached_property
    def _file(self) -> LabelledTriplets:
        return LabelledTriplets.read(self.path, self._data_set.source.names)

    @property
    def triplets(self) -> int:
        """Number of triplets in the file."""
        return len(self._file.indices)

    def __len__(self) -> int:
        """Return the number of groups."""
        count = self.triplets if self._first is None else min(self._first, self.triplets)
        return count // self._data_set.group_triplets

    def take(self, groups: Int[np.ndarray, "g"]) -> Arrays:
        """Return groups; only their images are read."""
        rows = groups[:, None] * self._data_set.group_triplets
        rows = rows + np.arange(self._data_set.group_triplets)
        distinct, triplets = self._distinct(self._file.indices[rows], groups)
        source, workers = self._data_set.source, self._data_set.workers
        try:
            images = load_rows(source, distinct, self._preprocessing, workers=workers)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return {
            "images": images,
            "triplets": triplets,
            "similarities": self._file.similarities[rows],
        }

    def _distinct(
        self, indices: Int[np.ndarray, "g t 3"], groups: Int[np.ndarray, "g"]
    ) -> tuple[Int[np.ndarray, "g images"], Int[np.ndarray, "g t 3"]]:
        """List the distinct images of each group, and point the triplets into the list."""
        most = self._data_set.group_images
        distinct = np.empty((len(indices), most), np.int64)
        triplets = np.empty(indices.shape, np.int32)
        for g, group in enumerate(indices):
            found, inverse = np.unique(group, return_inverse=True)
            if len(found) > most:
                raise ValueError(
                    f"{self.path}: the triplets of group {groups[g]} (rows from "
                    f"{groups[g] * self._data_set.group_triplets}) show {len(found)} images, but "
                    f"data_set.group_images is {most}"
                )
            distinct[g] = np.pad(found, (0, most - len(found)), mode="edge")
            triplets[g] = inverse.reshape(group.shape)
        return distinct, triplets

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a group without reading anything."""
        t, n = self._data_set.group_triplets, self._data_set.group_images
        side = self._preprocessing.size
        return {
            "images": jax.ShapeDtypeStruct((n, side, side, 3), np.uint8),
            "triplets": jax.ShapeDtypeStruct((t, 3), np.int32),
            "similarities": jax.ShapeDtypeStruct((t, 3), np.float32),
        }


class TripletBatches(Data):
    """Batches of groups of triplets, shuffled anew in each epoch."""

    def __init__(self, groups: TripletGroups, *, seed: int) -> None:
        self._groups, self._seed = groups, seed

    @functools.cached_property
    def _order(self) -> EpochOrder:
        found, needed = len(self._groups), self._groups.batch_size
        if found < needed:
            raise ValueError(
                f"{self._groups.path} holds {self._groups.triplets} triplets, that is {found} "
                f"groups; a batch takes {needed}"
            )
        return EpochOrder(found, seed=self._seed)

    def batch(self, step: int, part: Part = WHOLE) -> Arrays:
        """Return groups of the batch of a step."""
        size = self._groups.batch_size
        return self._groups.take(self._order.rows(step * size, size)[part])

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch without reading anything."""
        return {
            name: jax.ShapeDtypeStruct((self._groups.batch_size, *group.shape), group.dtype)
            for name, group in self._groups.spec().items()
        }
