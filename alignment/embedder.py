"""A vision transformer that computes features of resized images, batch after batch."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from alignment.images.preprocess import Preprocessing
from alignment.vit.config import ViTConfig
from alignment.vit.model import bind
from common.data import prefetch
from common.mesh import (
    BATCH_AXES,
    MeshConfig,
    make_mesh,
    parameter_shardings,
    place,
    round_up,
)
from common.task import Params


class Embedder:
    """A model on the devices, for batches of one size."""

    def __init__(
        self,
        config: ViTConfig,
        params: Params,
        preprocessing: Preprocessing,
        *,
        batch_size: int = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
        mesh: Mesh | None = None,
    ) -> None:
        """Send the parameters to the devices.

        Args:
          config: architecture.
          params: parameters.
          preprocessing: how pixels are normalised.
          batch_size: images of a batch; filled up to a multiple of the devices.
          dtype: type to compute in.
          mesh: the devices; the first one by default.
        """
        self.batch_size, self.config = batch_size, config
        self._mesh = make_mesh(MeshConfig(), jax.local_devices()[:1]) if mesh is None else mesh
        shardings = parameter_shardings(config.sharding_rules(), params, self._mesh)
        cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        self._params = jax.device_put(cast, shardings)
        split = jax.NamedSharding(self._mesh, jax.P(BATCH_AXES))

        # GPUs round the factors of float32 products to 11 bits unless told otherwise.
        precision = "highest" if dtype == "float32" else "default"

        @jax.jit(out_shardings=split)
        def features(params: Params, images: Array) -> Array:
            with jax.default_matmul_precision(precision):
                found = bind(config, params)(preprocessing.normalise(images))
            return found.astype(jnp.float32)

        self._features = features

    def __call__(self, images: UInt8[np.ndarray, "n S S 3"]) -> Float[np.ndarray, "n f"]:
        """Return the features of resized images."""
        pieces = [
            images[start : start + self.batch_size]
            for start in range(0, len(images), self.batch_size)
        ]
        return np.concatenate([features for _, features in self.stream((p, p) for p in pieces)])

    def stream(
        self, batches: Iterable[tuple[Any, UInt8[np.ndarray, "B S S 3"]]]
    ) -> Iterator[tuple[Any, Float[np.ndarray, "B f"]]]:
        """Yield the features of batches of resized images, each with what came along with it.

        The next batches are made, and the devices busy, while one is fetched.
        """

        def send(item: tuple[Any, np.ndarray]) -> tuple[Any, int, Array]:
            what, images = item
            # One shape, so that one program is compiled.
            missing = round_up(self.batch_size, self._mesh) - len(images)
            padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
            return what, len(images), place(padded, self._mesh)

        last: tuple[Any, int, Array] | None = None
        with prefetch(batches, send) as placed:
            for what, count, images in placed:
                computed = self._features(self._params, images)
                if last is not None:
                    yield last[0], np.asarray(last[2])[: last[1]]
                last = what, count, computed
        if last is not None:
            yield last[0], np.asarray(last[2])[: last[1]]
