"""The T5 and its files against transformers' torch T5, on random weights."""

import shlex
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from common.nn.weights import export
from common.perf import param_count
from molt5_multitask.blocks import position_buckets
from molt5_multitask.hf_format import entries, render_config
from molt5_multitask.losses import LossConfig, sequence_loss
from molt5_multitask.model import PRESETS, bind, init
from molt5_multitask.pretrained import from_pretrained, save_pretrained
from molt5_multitask.torch_bin import Refused, open_torch_bin

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

CASES = [(version, rows) for version in ("v1.0", "v1.1") for rows in (32100, 32128)]


def make(version, rows, seed=0):
    """Make a small torch T5 with that many embedding rows, in which every weight matters."""
    switches = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config = transformers.T5Config(
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_heads=3,
        num_layers=3,
        num_decoder_layers=2,
        vocab_size=rows,
        decoder_start_token_id=0,
        **(switches if version == "v1.1" else {}),
    )
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
    if version == "v1.1":  # transformers 5 ties it; no published v1.1 is
        model.lm_head.weight = torch.nn.Parameter(torch.randn(rows, 32))
    return model


def draw(rows, seed=0):
    """Draw sources longer than the clipping distance of positions, and targets, both padded."""
    rng = np.random.default_rng(seed)
    found = {}
    for side, lengths in (("input", (150, 90)), ("target", (8, 11))):
        used = np.arange(max(lengths)) < np.array(lengths)[:, None]
        ids = np.where(used, rng.integers(3, rows, used.shape), 0)
        found |= {f"{side}s": ids, f"{side}_segments": used.astype(np.int32)}
    return found


def run_torch(model, batch):
    return model(
        input_ids=torch.tensor(batch["inputs"]),
        attention_mask=torch.tensor(batch["input_segments"]),
        labels=torch.tensor(np.where(batch["target_segments"], batch["targets"], -100)),
    )


def relative(found, expected):
    """Return the largest difference, relative to the largest expected entry."""
    expected = expected.detach().numpy() if hasattr(expected, "detach") else np.asarray(expected)
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request, tmp_path_factory):
    """The same weights in torch and here, through a folder that transformers has written."""
    model = make(*request.param)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return SimpleNamespace(model=model, ours=from_pretrained(folder), batch=draw(request.param[1]))


def test_states_logits_loss_and_gradients_are_equal(pair):
    config, params, batch = pair.ours.config, pair.ours.params, pair.batch
    theirs = run_torch(pair.model, batch)
    theirs.loss.backward()
    inputs, targets = batch["input_segments"] > 0, batch["target_segments"] > 0

    @jax.jit
    def forward(params):
        model = bind(config, params)
        given = jax.tree.map(jnp.asarray, batch)
        encoded = model.encode(given["inputs"], given["input_segments"])
        return encoded, model.logits(model(given))

    encoded, logits = forward(params)
    expected = theirs.encoder_last_hidden_state.detach().numpy()
    assert relative(encoded[inputs], expected[inputs]) < 1e-5
    assert relative(logits[targets], theirs.logits.detach().numpy()[targets]) < 1e-5

    def loss(params):
        given = jax.tree.map(jnp.asarray, batch)
        return sequence_loss(bind(config, params), given, LossConfig(chunk=4)).compute()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert abs(value / theirs.loss.item() - 1) < 1e-5
    expected = {name: p.grad for name, p in pair.model.named_parameters()}
    found = export(entries(config), gradient)
    assert set(found) == set(expected)
    for name, value in found.items():
        assert relative(value, expected[name]) < 1e-4, name


def test_loss_over_padding_is_the_published_trainers(pair):
    """Whose labels keep the pad id, so that transformers averages over all positions."""
    batch = pair.batch | {"target_segments": np.ones_like(pair.batch["target_segments"])}
    expected = run_torch(pair.model, batch).loss.item()
    params, given = jax.tree.map(jnp.asarray, (pair.ours.params, pair.batch))
    model = bind(pair.ours.config, params)
    found = sequence_loss(model, given, LossConfig(on_padding=True)).compute()
    assert abs(found / expected - 1) < 1e-5


def test_one_step_at_a_time_is_greedy_generation(pair):
    """A loop of `decode_step`; search algorithms have their own tests."""
    steps = 12
    expected = pair.model.generate(
        input_ids=torch.tensor(pair.batch["inputs"]),
        attention_mask=torch.tensor(pair.batch["input_segments"]),
        max_new_tokens=steps,
        do_sample=False,
    )
    segments = jnp.asarray(pair.batch["input_segments"])

    @jax.jit
    def greedy(params):
        model = bind(pair.ours.config, params)
        encoded = model.encode(jnp.asarray(pair.batch["inputs"]), segments)
        cache = model.init_cache(encoded, segments, beams=1, max_tokens=steps)
        layers = model.step_layers()

        def step(carry, _):
            cache, token = carry
            logits, cache = model.decode_step(layers, cache, token)
            token = jnp.argmax(logits, -1).astype(jnp.int32)
            return (cache, token), token[:, 0]

        start = jnp.zeros((len(segments), 1), jnp.int32)
        return jax.lax.scan(step, (cache, start), length=steps)[1].T

    assert (np.asarray(greedy(pair.ours.params)) == expected[:, 1:].numpy()).all()


def test_what_we_write_is_loaded_and_gives_the_same_logits(pair, tmp_path):
    config, params, batch = pair.ours.config, pair.ours.params, pair.batch
    save_pretrained(tmp_path, config, params)
    loaded, info = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    assert (loaded.lm_head.weight is loaded.shared.weight) == config.tied
    loaded = loaded.eval()
    expected = run_torch(pair.model, batch).logits
    assert relative(run_torch(loaded, batch).logits.detach(), expected) < 1e-6
    for beams in (1, 3):
        arguments = {
            "input_ids": torch.tensor(batch["inputs"]),
            "attention_mask": torch.tensor(batch["input_segments"]),
            "max_new_tokens": 8,
            "num_beams": beams,
        }
        assert torch.equal(loaded.generate(**arguments), pair.model.generate(**arguments))
    # And back again, through a folder that transformers has written.
    loaded.save_pretrained(tmp_path / "again")
    again = from_pretrained(tmp_path / "again")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_files_are_read_without_unpickling(pair, tmp_path, dtype):
    save_pretrained(tmp_path, pair.ours.config, pair.ours.params)
    (tmp_path / "model.safetensors").unlink()
    state = pair.model.state_dict()
    # As torch keeps it: aliases share a storage, and a view may be transposed.
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    state = {key: value.to(getattr(torch, dtype)) for key, value in state.items()}
    state[name] = state[name].T.contiguous().T
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = from_pretrained(tmp_path)
    assert found.config == pair.ours.config
    tensors = export(entries(found.config), found.params)
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, state[key].float().numpy())


def test_the_command_for_a_refused_file_converts_it(tmp_path):
    model = make("v1.0", 40)
    save_folder = tmp_path / "with 'quotes'"
    model.save_pretrained(save_folder)
    expected = from_pretrained(save_folder)
    (save_folder / "model.safetensors").unlink()
    path = save_folder / "pytorch_model.bin"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(Refused, match="no zip") as refusal:
        open_torch_bin(path)
    command = str(refusal.value).rpartition("is installed: python ")[2]
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    found = from_pretrained(save_folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_distance_falls_into_the_bucket_of_transformers(bidirectional):
    distances = np.arange(-600, 601)
    found = position_buckets(distances, buckets=32, max_distance=128, bidirectional=bidirectional)
    attention = transformers.models.t5.modeling_t5.T5Attention
    expected = attention._relative_position_bucket(torch.tensor(distances), bidirectional, 32, 128)
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_transformers(name):
    config = PRESETS[name]
    theirs = transformers.T5Config(**render_config(config))
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(theirs)
    count = sum(p.numel() for p in model.parameters())
    if not config.tied:
        count += model.shared.weight.numel()  # which transformers 5 ties at first
    assert param_count(jax.eval_shape(lambda: init(config, jax.random.key(0)))) == count
