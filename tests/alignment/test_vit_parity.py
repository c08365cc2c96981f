"""The vision transformer and its files against transformers' torch models, on random weights."""

import copy
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from alignment.images.preprocess import named
from alignment.vit.hf_format import render_config
from alignment.vit.model import PRESETS, bind, init, preset
from alignment.vit.positions import resample
from alignment.vit.pretrained import from_pretrained, save_pretrained
from common.perf import param_count
from common.tree import named_leaves

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 4,
}
MLP = {"intermediate_size": 80}
SIDE = 22  # five patches and two pixels that are not seen


def make(family):
    """Make a small torch model of a family, in which every weight matters."""
    kind, switches = {
        "vit": ("ViT", MLP | {"image_size": SIDE}),
        "dino": ("ViT", MLP | {"image_size": SIDE, "layer_norm_eps": 1e-6}),
        "dinov2": ("Dinov2", {"mlp_ratio": 2, "image_size": SIDE}),
        "dinov2-reg": ("Dinov2WithRegisters", {"mlp_ratio": 2, "image_size": SIDE}),
        "clip": ("CLIPVision", MLP | {"image_size": SIDE, "projection_dim": 24}),
        "clip-unprojected": ("CLIPVision", MLP | {"image_size": SIDE}),
        "siglip": ("SiglipVision", MLP | {"image_size": SIDE}),
        "siglip2": ("Siglip2Vision", MLP | {"num_patches": 25}),
    }[family]
    config = getattr(transformers, f"{kind}Config")(**SIZES, **switches)
    name = "CLIPVisionModelWithProjection" if family == "clip" else f"{kind}Model"
    torch.manual_seed(0)
    extra = {"add_pooling_layer": False} if kind == "ViT" else {}
    model = getattr(transformers, name)(config, **extra).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


FAMILIES = (
    "vit",
    "dino",
    "dinov2",
    "dinov2-reg",
    "clip",
    "clip-unprojected",
    "siglip",
    "siglip2",
)


def run_torch(model, images):
    """Return features and normalised patch tokens for NHWC images of any side."""
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    kind = type(model).__name__
    if kind == "Siglip2VisionModel":
        grid = images.shape[1] // 4
        cut = images[:, : grid * 4, : grid * 4].reshape(len(images), grid, 4, grid, 4, 3)
        patches = cut.swapaxes(2, 3).reshape(len(images), grid**2, -1)
        found = model(
            pixel_values=torch.tensor(patches),
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32),
            spatial_shapes=torch.tensor([[grid, grid]] * len(images)),
        )
        return found.pooler_output, found.last_hidden_state
    flexible = {} if kind.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    if images.shape[1] == SIDE:
        flexible = {}
    found = model(pixel_values=pixels, **flexible)
    tokens = found.last_hidden_state
    if kind == "CLIPVisionModelWithProjection":
        return found.image_embeds, model.vision_model.post_layernorm(tokens)[:, 1:]
    if kind == "CLIPVisionModel":
        return found.pooler_output, model.post_layernorm(tokens)[:, 1:]
    if kind == "SiglipVisionModel":
        return found.pooler_output, tokens
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    return tokens[:, 0], tokens[:, prefix:]


def draw(side, count=3):
    return np.random.default_rng(1).normal(size=(count, side, side, 3)).astype(np.float32)


def relative(found, expected):
    """Return the largest difference, relative to the largest expected entry."""
    expected = expected.detach().numpy() if hasattr(expected, "detach") else np.asarray(expected)
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """The same weights in torch and here, through a folder that transformers has written."""
    model = make(request.param)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return SimpleNamespace(
        model=model, ours=from_pretrained(folder), folder=folder, family=request.param
    )


def test_features_tokens_and_gradients_are_equal(pair, tmp_path):
    config, params = pair.ours.config, pair.ours.params
    images = draw(config.image_size)
    theirs, their_tokens = run_torch(pair.model, images)

    @jax.jit
    def forward(params):
        model = bind(config, params)
        return model(images), model.tokens(images)

    features, tokens = forward(params)
    assert features.shape == (3, config.features)
    assert relative(features, theirs) < 1e-5
    assert relative(tokens, their_tokens) < 1e-5

    weight = np.random.default_rng(2).normal(size=theirs.shape).astype(np.float32)
    found = jax.jit(jax.grad(lambda p: jnp.sum(bind(config, p)(images) * weight)))(params)
    # The gradient as the weights of a model, which is read as every other.
    model = copy.deepcopy(pair.model)
    (run_torch(model, images)[0] * torch.tensor(weight)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    model.save_pretrained(tmp_path)
    expected = dict(named_leaves(from_pretrained(tmp_path).params))
    # Softmax does not see the key's bias: its gradient is a sum of terms that cancel, as large as
    # those of the key's kernel, and what is left of them is rounding, here and in torch.
    found = dict(named_leaves(found))
    bias, kernel = (f"blocks/attention/key/{name}" for name in ("bias", "kernel"))
    cancelling = np.abs(expected[kernel]).max()
    assert max(np.abs(g.pop(bias)).max() for g in (found, expected)) < 1e-5 * cancelling
    largest = max(np.abs(value).max() for value in expected.values())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = max(np.abs(expected[name]).max(), 1e-3 * largest)
        assert np.abs(value - expected[name]).max() < 1e-4 * scale, name


@pytest.mark.parametrize("grid", [3, 5, 9])
def test_other_sizes_are_resampled_as_transformers_does(pair, grid):
    size = 4 * grid
    images = draw(size)
    expected, _ = run_torch(pair.model, images)
    found = from_pretrained(pair.folder, image_size=size)
    features = bind(found.config, found.params)(images)
    assert relative(features, expected) < 1e-5


@pytest.mark.parametrize(
    ("method", "mode", "antialias"),
    [
        ("bicubic", "bicubic", False),
        ("bicubic_antialias", "bicubic", True),
        ("bilinear_antialias", "bilinear", True),
    ],
)
@pytest.mark.parametrize("grid", [1, 4, 7, 16, 37])
def test_resampling_is_that_of_torch(method, mode, antialias, grid):
    table = np.random.default_rng(0).normal(size=(16, 16, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(table).permute(2, 0, 1)[None],
        size=(grid, grid),
        mode=mode,
        align_corners=False,
        antialias=antialias,
    )[0].permute(1, 2, 0)
    assert relative(resample(table, grid, method), expected) < 2e-6


def test_what_we_write_is_loaded_and_gives_the_same_features(pair, tmp_path):
    config, params = pair.ours.config, pair.ours.params
    save_pretrained(tmp_path, config, params, preprocessing=named("alignet", config.image_size))
    name = render_config(config)["architectures"][0]
    extra = {"add_pooling_layer": False} if name == "ViTModel" else {}
    loaded, info = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True, **extra
    )
    assert not any(info.values())
    images = draw(config.image_size)
    if pair.family == "siglip2":
        images = images[:, :20, :20]
    expected, _ = run_torch(pair.model, images)
    assert relative(run_torch(loaded.eval(), images)[0].detach(), expected) < 1e-6
    # And back again, through a folder that transformers has written.
    loaded.save_pretrained(tmp_path / "again")
    again = from_pretrained(tmp_path / "again")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_auto_classes_load_what_we_write(pair, tmp_path):
    config, params = pair.ours.config, pair.ours.params
    save_pretrained(tmp_path, config, params, preprocessing=named("clip", config.image_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pooler that our models do not have
        loaded = transformers.AutoModel.from_pretrained(tmp_path).eval()
    images = draw(config.image_size)
    hidden = loaded(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state
    assert hidden.shape == (3, config.prefix + config.grid**2, config.width)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_tower_is_taken_out_of_a_model_of_images_and_texts(name, tmp_path):
    kind = {"clip": "CLIP", "siglip": "Siglip"}[name]
    text = {**MLP, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text |= {"vocab_size": 50, "max_position_embeddings": 8}
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**SIZES, **MLP, "image_size": SIDE},
        text_config=text,
        **({"projection_dim": 24} if name == "clip" else {}),
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path)
    found = from_pretrained(tmp_path)
    images = draw(SIDE)
    expected = model.get_image_features(torch.tensor(images.transpose(0, 3, 1, 2)))
    expected = getattr(expected, "pooler_output", expected)
    assert relative(bind(found.config, found.params)(images), expected) < 1e-5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_transformers(name):
    config = preset(name)
    rendered = render_config(config)
    kind = rendered["architectures"][0]
    theirs = transformers.AutoConfig.for_model(**rendered)
    extra = {"add_pooling_layer": False} if kind == "ViTModel" else {}
    with torch.device("meta"):
        model = getattr(transformers, kind)(theirs, **extra)
    count = sum(p.numel() for name, p in model.named_parameters() if "mask_token" not in name)
    assert param_count(jax.eval_shape(lambda: init(config, jax.random.key(0)))) == count
