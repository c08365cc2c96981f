"""What is done to images: OpenCV's cubic resize, and what transformers does for each family."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image

from alignment.images.preprocess import PREPROCESSINGS, named, preprocess
from alignment.images.processor import render_processor


def picture(height, width, seed=0):
    """Draw an image with smooth parts, edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 10
    smooth = 127 + 100 * np.sin(np.stack([x + y, x - y, 2 * x], -1))
    smooth[: height // 3, width // 2 :] = 255
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def keys(old, new):
    """The matrix of Keys' cubic interpolation, a = -0.75, one point after the other."""
    weights = np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            x, a = abs(at - tap), -0.75
            if x <= 1:
                value = (a + 2) * x**3 - (a + 3) * x**2 + 1
            else:
                value = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            weights[i, min(max(tap, 0), old - 1)] += value
    return weights


@pytest.mark.parametrize(("height", "width"), [(64, 64), (375, 500), (97, 31)])
def test_alignet_is_cubic_without_antialiasing(height, width):
    image = picture(height, width)
    found = preprocess("alignet", image, 48)
    assert found.dtype == np.float32
    exact = np.einsum("ia,jb,abc->ijc", keys(height, 48), keys(width, 48), image, optimize=True)
    # Rounded to 8 bits and cut to 0..255; OpenCV's weights have 11 bits.
    difference = found * 255 - np.clip(np.rint(exact), 0, 255)
    assert np.abs(difference).max() < 1.5
    assert (np.abs(difference) < 0.5).mean() > 0.97
    np.testing.assert_allclose(found * 255, np.rint(found * 255), atol=1e-4)


def test_alignet_skips_pixels_of_large_images():
    """Only two of ten columns are looked at, which antialiasing would not do."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, ::10] = 255  # columns 0, 10, 20, 30; the centres lie between 4 and 5, ...
    assert not named("alignet", 4).resize(image).any()
    assert named("siglip", 4).resize(image).all()


def test_an_image_of_the_right_size_stays():
    image = picture(32, 32)
    for name in PREPROCESSINGS:
        if named(name).shortest_edge in (None, 224):
            np.testing.assert_array_equal(named(name, 32).resize(image), image)


def test_a_cut_out_keeps_the_shape_of_things():
    """A disc stays round; stretching makes an ellipse of it."""
    y, x = np.mgrid[:100, :200]
    image = ((y - 50) ** 2 + (x - 100) ** 2 < 30**2)[..., None].repeat(3, -1).astype(np.uint8) * 255
    cut, stretched = (named(name, 100).resize(image)[..., 0] > 127 for name in ("clip", "siglip"))
    assert abs(cut.any(0).sum() - cut.any(1).sum()) <= 1
    assert abs(stretched.any(0).sum() * 2 - stretched.any(1).sum()) <= 2


@pytest.mark.parametrize("name", sorted(PREPROCESSINGS.keys() - {"alignet"}))
@pytest.mark.parametrize(("height", "width"), [(53, 80), (80, 53), (61, 61)])
def test_transformers_does_the_same(name, height, width):
    """By its Pillow backend; for OpenCV's filter it has none."""
    preprocessing = named(name, 40)
    raw = render_processor(preprocessing)
    processor = getattr(transformers, f"{raw.pop('image_processor_type')}Pil")(**raw)
    image = picture(height, width)
    found = preprocessing.normalise(preprocessing.resize(image))
    expected = processor(Image.fromarray(image), return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(found, expected.transpose(1, 2, 0), atol=2e-6)


def test_sizes_keep_the_margin():
    assert (named("dino").size, named("dino").shortest_edge) == (224, 256)
    assert (named("dino", 112).size, named("dino", 112).shortest_edge) == (112, 128)
    assert named("dino", 224).at(112).at(224) == named("dino")


def test_the_description_is_complete():
    described = json.loads(str(named("clip", 64)))
    assert described["name"] == "clip"
    assert (described["size"], described["shortest_edge"]) == (64, 64)
    assert described["filter"] == "bicubic"
    assert described["mean"][0] == pytest.approx(0.48145466)


def test_an_unknown_name_helps():
    with pytest.raises(ValueError, match="no preprocessing 'alignt'; did you mean 'alignet'"):
        named("alignt")
