"""Checkpoints of vision transformers, without torch: there and back, and what is refused."""

import dataclasses
import json

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers

from alignment.images.preprocess import named
from alignment.vit.hf_format import architecture, render_config
from alignment.vit.model import bind, preset
from alignment.vit.pretrained import from_pretrained, save_pretrained
from common.perf import param_count
from tests.alignment.test_vit import TINY, draw, lively

ALL = (*TINY, "dinov2-tiny")


def save(folder, config, preprocessing="alignet"):
    save_pretrained(
        folder, config, lively(config), preprocessing=named(preprocessing, config.image_size)
    )
    return folder


def edit(folder, file="config.json", **changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.parametrize("name", ALL)
def test_a_model_comes_back(name, tmp_path):
    config = preset(name)
    found = from_pretrained(save(tmp_path, config))
    assert found.config == config
    assert found.preprocessing == named("alignet", 32)
    assert found.folder == tmp_path
    jax.tree.map(np.testing.assert_array_equal, found.params, lively(config))
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    surplus = 64 if name.startswith("dinov2") else 0  # the mask token of its training
    assert sum(tensor.size for tensor in stored.values()) == param_count(found.params) + surplus


def test_keys_are_those_of_published_checkpoints(tmp_path):
    some = {
        "vit-tiny": ("encoder.layer.1.attention.attention.query.weight", (64, 64)),
        "dinov2-reg-tiny": ("embeddings.register_tokens", (1, 4, 64)),
        "clip-tiny": ("vision_model.embeddings.patch_embedding.weight", (64, 3, 8, 8)),
        "siglip-tiny": ("vision_model.head.attention.in_proj_weight", (192, 64)),
    }
    for name, (key, shape) in some.items():
        stored = safetensors.numpy.load_file(save(tmp_path, preset(name)) / "model.safetensors")
        assert stored[key].shape == shape


def test_mean_pooling_comes_back(tmp_path):
    config = preset("dinov2-tiny", pool="mean")
    assert from_pretrained(save(tmp_path, config)).config == config


@pytest.mark.parametrize("name", ["clip", "siglip2", "dino", "vit"])
def test_a_native_preprocessing_comes_back(name, tmp_path):
    found = from_pretrained(save(tmp_path, preset("vit-tiny"), name))
    assert found.preprocessing == named(name, 32)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_transformers_reads_the_preprocessing(name, tmp_path):
    save(tmp_path, preset("vit-tiny"), name)
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    preprocessing = named(name, 32)
    found = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="np")
    expected = preprocessing.normalise(preprocessing.resize(image)).transpose(2, 0, 1)
    np.testing.assert_allclose(found.pixel_values[0], expected, atol=2e-6)


def test_the_family_says_what_a_missing_processor_would(tmp_path):
    save(tmp_path, preset("clip-tiny"))
    (tmp_path / "preprocessor_config.json").unlink()
    assert from_pretrained(tmp_path).preprocessing == named("clip", 32)


def test_images_are_of_the_size_that_the_processor_gives(tmp_path):
    """DINOv2 is stored for 518 pixels, and used with 224."""
    config = preset("dinov2-tiny")
    save(tmp_path, config)
    edit(tmp_path, "preprocessor_config.json", size={"height": 24, "width": 24})
    found = from_pretrained(tmp_path)
    assert found.config == dataclasses.replace(config, image_size=24)
    assert bind(found.config, found.params)(draw(found.config)).shape == (4, 64)
    larger = from_pretrained(tmp_path, image_size=48)
    assert larger.preprocessing.size == larger.config.image_size == 48
    assert larger.params["positions"].shape == (37, 64)


def test_published_configs_are_read_with_their_gaps(tmp_path):
    """google/siglip-base-patch16-224 says of its tower no more than this."""
    save(tmp_path, preset("siglip-tiny"))
    raw = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="lacks 160 key"):  # of the other ten layers
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "swin"}, "model_type = 'swin'; the vision models known are vit"),
        ({"hidden_act": "silu"}, "hidden_act = 'silu'; known are relu"),
        ({"num_channels": 1}, "num_channels = 1; only 3 is supported"),
        ({"qkv_bias": False}, "qkv_bias = False"),
        ({"image_size": [32, 64]}, "only squares"),
        ({"num_attention_heads": 7}, "no multiple of model.heads = 7"),
        ({"hidden_size": 128}, r"key\.bias has shape \(64,\), but blocks/attention"),
        ({"num_hidden_layers": 3}, "lacks 16 key.*encoder.layer.2"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message, tmp_path):
    save(tmp_path, preset("vit-tiny"))
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save(tmp_path, preset("vit-tiny"))
    edit_weights(tmp_path, lambda t: t.update({"decoder.weight": np.zeros(3, np.float32)}))
    with pytest.raises(ValueError, match=r"has unknown 1 key\(s\): decoder.weight"):
        from_pretrained(tmp_path)


def test_heads_of_classifiers_are_left_out(tmp_path):
    config = preset("vit-tiny")
    save(tmp_path, config)

    def as_classifier(tensors):
        for key in list(tensors):
            tensors[f"vit.{key}"] = tensors.pop(key)
        tensors["classifier.weight"] = np.zeros((10, 64), np.float32)
        tensors["vit.pooler.dense.bias"] = np.zeros(64, np.float32)

    edit_weights(tmp_path, as_classifier)
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(tmp_path).params, lively(config))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        from_pretrained(tmp_path)
    save(tmp_path, preset("vit-tiny"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights: neither"):
        from_pretrained(tmp_path)


def test_a_damaged_processor_is_named(tmp_path):
    save(tmp_path, preset("vit-tiny"))
    edit(tmp_path, "preprocessor_config.json", resample=4, filter=None)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: 4 is missing or not supp"):
        from_pretrained(tmp_path)
    edit(tmp_path, "preprocessor_config.json", resample=3, rescale_factor=1.0)
    with pytest.raises(ValueError, match=r"rescale_factor = 1\.0"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": False, "pool": "mean"},
        {"registers": 2},
        {"patch_bias": False},
        {"projection": 5},
        {"pre_norm": True},
    ],
)
def test_what_transformers_has_no_model_for_is_refused(changes):
    with pytest.raises(ValueError, match="transformers has no model with model"):
        architecture(preset("vit-tiny", **changes))


def test_dinov2_needs_a_whole_ratio():
    with pytest.raises(ValueError, match=r"as a multiple of model\.width"):
        render_config(preset("dinov2-tiny", mlp=100))


def test_a_preprocessing_of_another_size_is_not_written(tmp_path):
    config = preset("vit-tiny")
    with pytest.raises(ValueError, match="gives images of 224 pixels, the model takes 32"):
        save_pretrained(tmp_path / "x", config, lively(config), preprocessing=named("alignet"))
    assert not (tmp_path / "x").exists()


def test_a_name_is_looked_up_on_the_hub(tmp_path, monkeypatch):
    save(tmp_path, preset("vit-tiny"))
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert from_pretrained("someone/tiny-vit", revision="v2").folder == tmp_path
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("someone/tiny-vit", "v2")
    assert not any(pattern.endswith((".bin", ".h5")) for pattern in patterns)
    with pytest.raises(FileNotFoundError, match="the Hugging Face hub has no such names"):
        from_pretrained("no folder/of/this")
