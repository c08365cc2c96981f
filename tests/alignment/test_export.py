"""The exported folder: weights, head, card, and where it comes from."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from alignment import export
from alignment.train import run
from alignment.vit.pretrained import from_pretrained
from common.checkpoint import Checkpoints
from common.setup import prepare
from tests.alignment.student_toy import experiment, student, write_data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    config = experiment(student(write_data(folder)), steps=4, workdir=str(folder / "run"))
    return config, run(config)


def test_the_run_exports_what_it_trained(finished, tmp_path):
    config, numbers = finished
    workdir = pathlib.Path(config.workdir)
    found = from_pretrained(workdir / "export")
    assert found.preprocessing.name == "alignet"
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        params = checkpoints.restore(prepare(config).abstract_state).params
    jax.tree.map(np.testing.assert_array_equal, found.params, jax.device_get(params["backbone"]))
    head = safetensors.numpy.load_file(workdir / "export" / "triplet_head.safetensors")
    np.testing.assert_array_equal(head["weight"].T, params["triplet_head"]["kernel"])
    np.testing.assert_array_equal(head["bias"], params["triplet_head"]["bias"])
    card = (workdir / "export" / "README.md").read_text()
    assert f"{numbers['synthetic/class_border/accuracy']:.4g}" in card
    assert "No control was given" in card


def test_the_command_reads_the_work_folder_and_states_the_control(finished, tmp_path, capsys):
    config, _ = finished
    for name, value in (("scores", 0.625), ("control", 0.5)):
        document = {"levels": {"coarse": value}, "note": "left out", "flag": True}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    export.main(
        [
            config.workdir,
            *("--out", str(tmp_path / "out")),
            *("--scores", str(tmp_path / "scores.json")),
            *("--control", str(tmp_path / "control.json")),
        ]
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| levels/coarse | 0.625 | 0.5 |" in card
    assert "No control" not in card
    assert config.task.data_set.root in card
    first, second = (
        safetensors.numpy.load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", pathlib.Path(config.workdir) / "export")
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_card_of_a_control_says_so(finished, tmp_path):
    config, _ = finished
    task = config.task
    data_set = dataclasses.replace(task.data_set, labels="untransformed")
    control = dataclasses.replace(config, task=dataclasses.replace(task, data_set=data_set))
    card = export.model_card(control, {})
    assert "UnAligNet" in card
    assert "NOT fitted to odd-one-out choices" in card


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no work folder"):
        export.restore(tmp_path)
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.json is no JSON object"):
        export.read_numbers(tmp_path / "list.json")


def test_a_pipeline_config_is_sent_to_its_command(capsys):
    class Other:
        pass

    with pytest.raises(ValueError, match=r"alignment\.pipeline"):
        run(Other())


@pytest.mark.parity
def test_transformers_loads_the_export_and_agrees(finished):
    import torch
    import transformers

    config, _ = finished
    folder = pathlib.Path(config.workdir) / "export"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    with torch.no_grad():
        theirs = model(torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255)
    theirs = theirs.last_hidden_state[:, 0].numpy()
    head = safetensors.numpy.load_file(folder / "triplet_head.safetensors")
    _, params = export.restore(config.workdir)
    ours = config.task.outputs(params, jax.numpy.asarray(images))
    np.testing.assert_allclose(ours["pre_logits"], theirs, atol=1e-5)
    expected = theirs @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(ours["triplet_logits"], expected, atol=2e-5)
