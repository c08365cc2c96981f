"""The vision transformer on a GPU: float32 is meant as such, and half precision is near."""

import jax
import numpy as np
import pytest

from alignment.embedder import Embedder
from alignment.images.preprocess import named
from alignment.vit.model import bind, preset
from tests.alignment.test_vit import lively

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU: make gpu"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("name", ["clip-tiny", "siglip-tiny"])
def test_features_equal_those_of_the_cpu(name, dtype, tolerance):
    config, preprocessing = preset(name), named("siglip", 32)
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    embedder = Embedder(config, lively(config), preprocessing, batch_size=8, dtype=dtype)
    with jax.default_device(jax.devices("cpu")[0]):
        expected = bind(config, lively(config))(preprocessing.normalise(images))
    assert np.abs(embedder(images) - expected).max() < tolerance * np.abs(expected).max()
