"""Folders in Hugging Face's form, without torch: what is read, what is written, what is refused."""

import json
import re

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers

from molt5_multitask.hf_format import parse_config, render_config
from molt5_multitask.model import T5Config, preset
from molt5_multitask.pretrained import from_pretrained, save_pretrained
from tests.molt5_multitask.t5_toy import VERSIONS, batch, logits, params_of, tiny

SHARED, HEAD = "shared.weight", "lm_head.weight"
ENCODER_EMBEDDING, DECODER_EMBEDDING = (
    f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")
)
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(params=VERSIONS)
def saved(request, tmp_path):
    """A folder with a tiny model, its config and parameters."""
    config = tiny(request.param)
    save_pretrained(tmp_path, config, params_of(config))
    return tmp_path, config, params_of(config)


def edit(folder, change):
    """Rewrite the weights of a folder."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def edit_config(folder, **changes):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def test_what_is_written_is_read_back(saved):
    folder, config, params = saved
    found = from_pretrained(folder)
    assert (found.config, found.folder) == (config, folder)
    equal(found.params, params)


def test_matrices_are_transposed_and_split_into_heads(saved):
    """The one place that says which tensor is which, and in which orientation."""
    folder, config, params = saved
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    query = params["decoder"]["blocks"]["cross_attention"]["query"]["kernel"][1]
    np.testing.assert_array_equal(
        tensors["decoder.block.1.layer.1.EncDecAttention.q.weight"],
        query.reshape(config.d_model, -1).T,
    )
    out = params["encoder"]["blocks"]["attention"]["out"]["kernel"][2]
    np.testing.assert_array_equal(
        tensors["encoder.block.2.layer.0.SelfAttention.o.weight"],
        out.reshape(-1, config.d_model).T,
    )
    gated = config.feed_forward == "gated-gelu"
    wi = params["encoder"]["blocks"]["feed_forward"]["wi"]["kernel"][0]
    name = f"encoder.block.0.layer.1.DenseReluDense.{'wi_1' if gated else 'wi'}.weight"
    np.testing.assert_array_equal(tensors[name], wi.T)
    assert (HEAD in tensors) == (not config.tied)
    assert ENCODER_EMBEDDING not in tensors


def test_spare_rows_are_cut_on_export_and_padded_on_import(tmp_path):
    config = tiny("t5-v1_1-tiny", vocab_multiple=16)
    params = params_of(config)
    save_pretrained(tmp_path, config, params)
    assert safetensors.numpy.load_file(tmp_path / "model.safetensors")[HEAD].shape == (50, 32)
    found = from_pretrained(tmp_path, vocab_multiple=16)
    assert found.config == config
    assert found.params["lm_head"]["table"].shape == (64, 32)
    rows = batch()
    np.testing.assert_array_equal(
        logits(config, found.params, rows)[..., :50], logits(config, params, rows)[..., :50]
    )


def test_bfloat16_weights_are_exported_as_float32(tmp_path):
    config = tiny("t5-tiny")
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params_of(config))
    save_pretrained(tmp_path, config, half)
    equal(from_pretrained(tmp_path).params, jax.tree.map(lambda x: x.astype(np.float32), half))


def test_transformers_reads_our_config_as_we_mean_it(saved):
    folder, config, _ = saved
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert theirs.scale_decoder_outputs == config.scale_output
    assert (theirs.is_gated_act, theirs.dense_act_fn) == (
        (True, "gelu_new") if config.feed_forward == "gated-gelu" else (False, "relu")
    )
    assert (theirs.d_kv, theirs.num_heads, theirs.num_layers, theirs.num_decoder_layers) == (
        config.d_kv,
        config.heads,
        config.encoder_layers,
        config.decoder_layers,
    )
    # And what transformers 5 writes of it is read by us.
    theirs.save_pretrained(folder)
    assert from_pretrained(folder).config == config
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert (generation.decoder_start_token_id, generation.eos_token_id) == (0, 1)


@pytest.mark.parametrize(
    ("flags", "scale"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": False}, False),
    ],
)
def test_scaling_follows_the_forms_of_both_versions(flags, scale):
    raw = {"d_model": 8, "d_ff": 16, "d_kv": 4, "num_heads": 2, "num_layers": 3, "vocab_size": 50}
    config = parse_config({**raw, **flags}, where="config.json")
    assert config.scale_output == scale
    assert (config.encoder_layers, config.decoder_layers) == (3, 3)
    assert (config.feed_forward, config.buckets, config.max_distance) == ("relu", 32, 128)


@pytest.mark.parametrize("name", ["t5-small", "t5-v1_1-large"])
def test_configs_come_back(name):
    config = preset(name, decoder_layers=3, dropout=0.2, norm_eps=1e-5, vocab_size=32100)
    assert parse_config(render_config(config), where="") == config


def test_whether_the_output_is_tied_is_read_off_the_weights(tmp_path):
    """transformers 5 writes `tie_word_embeddings: true` in either case."""
    config = tiny("t5-v1_1-tiny")
    save_pretrained(tmp_path, config, params_of(config))
    edit_config(tmp_path, tie_word_embeddings=True)
    assert from_pretrained(tmp_path).config == config

    edit(tmp_path, lambda tensors: tensors.update({HEAD: tensors[SHARED].copy()}))
    found = from_pretrained(tmp_path)
    assert found.config.tied
    assert not found.config.scale_output
    assert "lm_head" not in found.params

    edit_config(tmp_path, tie_word_embeddings=False)
    edit(tmp_path, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ValueError, match=r"tie_word_embeddings = false.*no lm_head"):
        from_pretrained(tmp_path)


def test_rows_are_counted_in_the_file(saved):
    folder, config, params = saved
    edit_config(folder, vocab_size=32128)
    found = from_pretrained(folder)
    assert found.config == config
    equal(found.params, params)


def test_aliases_and_the_unused_key_are_accepted(saved):
    folder, config, params = saved

    def add(tensors):
        for alias in (ENCODER_EMBEDDING, DECODER_EMBEDDING):
            tensors[alias] = tensors[SHARED].copy()
        tensors[UNUSED] = np.zeros((32, config.heads), np.float32)

    edit(folder, add)
    found = from_pretrained(folder)
    assert found.config == config
    equal(found.params, params)


def test_several_files(saved):
    folder, _, params = saved
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        part = {key: tensors[key] for key in tensors if files[key] == name}
        safetensors.numpy.save_file(part, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    equal(from_pretrained(folder).params, params)


KEY = "decoder.block.1.layer.2.DenseReluDense.wo.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(KEY), rf"lacks 1 key\(s\): {re.escape(KEY)}"),
        (lambda t: t.update({"extra": np.zeros(3)}), r"has unknown 1 key\(s\): extra"),
        (
            lambda t: t.update({KEY: t[KEY].T.copy()}),
            rf"model\.safetensors: {re.escape(KEY)} has shape \(48, 32\).*needs \(32, 48\)",
        ),
        (lambda t: t.pop(SHARED), "no 'shared.weight'"),
        (
            lambda t: t.update({DECODER_EMBEDDING: t[SHARED] + 1}),
            rf"{re.escape(DECODER_EMBEDDING)} .*differs from shared\.weight",
        ),
        (
            lambda t: t.update({ENCODER_EMBEDDING: t[SHARED][:-1].copy()}),
            r"encoder\.embed_tokens\.weight \(49, 32\) differs from shared\.weight \(50, 32\)",
        ),
        (
            lambda t: t.update({HEAD: np.zeros((51, 32), np.float32)}),
            r"lm_head\.weight has shape \(51, 32\).*needs \(50, 32\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, named):
    config = tiny("t5-tiny")
    save_pretrained(tmp_path, config, params_of(config))
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=named) as error:
        from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mt5"}, "model_type = 'mt5'; only 't5'"),
        ({"feed_forward_proj": "gated-silu"}, "gated-silu"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id = 5; only 0"),
        ({"eos_token_id": 2}, "eos_token_id"),
        ({"d_kv": ...}, "no 'd_kv'"),
        ({"num_heads": "eight"}, "heads = 'eight' must be a positive integer"),
        ({"num_layers": 0}, "encoder_layers"),
    ],
)
def test_configs_that_are_not_ours_are_named(tmp_path, changes, named):
    config = tiny("t5-tiny")
    save_pretrained(tmp_path, config, params_of(config))
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=named) as error:
        from_pretrained(tmp_path)
    assert "config.json" in str(error.value)


def test_files_that_are_not_there_or_damaged_are_named(tmp_path):
    config = tiny("t5-tiny")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path)
    save_pretrained(tmp_path, config, params_of(config))
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights.*pytorch_model\.bin"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        from_pretrained(tmp_path)


def test_tokenizer_files_come_along(tmp_path):
    config = tiny("t5-tiny")
    source = tmp_path / "source"
    source.mkdir()
    (source / "spiece.model").write_bytes(b"pieces")
    (source / "model.safetensors").write_bytes(b"not a tokenizer")
    out = tmp_path / "out"
    save_pretrained(out, config, params_of(config), tokenizer=source)
    assert (out / "spiece.model").read_bytes() == b"pieces"
    save_pretrained(out, config, params_of(config), tokenizer=out)  # onto itself
    assert (out / "spiece.model").read_bytes() == b"pieces"
    assert from_pretrained(out).config == config
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        save_pretrained(out, config, params_of(config), tokenizer=tmp_path)


class Hub:
    """A hub with one repository, which gives the files that are asked for."""

    def __init__(self, folder, content):
        self.folder, self.content, self.asked = folder, content, []

    def __call__(self, name, *, revision, allow_patterns):
        self.asked.append((name, revision))
        patterns = [re.compile(re.escape(p).replace(r"\*", ".*")) for p in allow_patterns]
        for path in self.content.iterdir():
            if any(pattern.fullmatch(path.name) for pattern in patterns):
                (self.folder / path.name).write_bytes(path.read_bytes())
        return str(self.folder)


def test_a_name_is_looked_up_on_the_hub(saved, tmp_path_factory, monkeypatch):
    content, config, params = saved
    (content / "tf_model.h5").write_bytes(b"large")
    hub = Hub(tmp_path_factory.mktemp("cache"), content)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.chdir(hub.folder)
    found = from_pretrained("someone/tiny-t5", revision="v2")
    assert hub.asked == [("someone/tiny-t5", "v2")]
    assert found.folder == hub.folder
    assert found.config == config
    equal(found.params, params)
    assert not (hub.folder / "tf_model.h5").exists()


def test_a_name_without_network_is_one_clear_error(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no folder 't5-huge'.*hub.*\(no connection\)"):
        from_pretrained("t5-huge")
    for name in (tmp_path / "absent", "./absent", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"no folder '.*', and .* no such names"):
            from_pretrained(name)


def test_default_config_is_small():
    assert preset("t5-small") == T5Config()
