"""The multitask T5 under the core: it trains, resumes bitwise, starts from checkpoints, and is one
function of its config."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from common import (
    CheckpointConfig,
    Experiment,
    LogConfig,
    MeshConfig,
    OptimConfig,
    Preempted,
    train,
)
from common.setup import prepare
from molt5_multitask.corpus import SyntheticCorpus
from molt5_multitask.data.files import FileCorpus
from molt5_multitask.data.readers import PromptedJsonl
from molt5_multitask.metrics.predictions import read_predictions
from molt5_multitask.model import init, preset
from molt5_multitask.pretrained import from_pretrained, save_pretrained
from molt5_multitask.tasks import TASKS
from molt5_multitask.tokenizer import Tokenizer
from molt5_multitask.train import run
from molt5_multitask.training import MultitaskT5
from molt5_multitask.validation import ValidationLoss, one_in_a_row
from tests.common.test_resume import stop_at

CORPUS = SyntheticCorpus(molecules=60, reactions=60, procedures=60, vocabulary=300)
MODEL = preset("t5-tiny", vocab_size=300, d_model=32, d_ff=32, heads=2, dropout=0.1)


@pytest.fixture(scope="module")
def task():
    return MultitaskT5(
        model=MODEL,
        corpus=CORPUS,
        input_length=128,
        target_length=128,
        eval_every=2,
        eval_rows=6,
        eval_batch=8,
    )


def experiment(task, **changes):
    settings = {
        "steps": 12,
        "batch_size": 8,
        "optim": OptimConfig(learning_rate=1e-2, schedule="constant"),
        "checkpoint": CheckpointConfig(every=2),
        "log": LogConfig(every=1, tensorboard=False, progress=False),
    }
    return Experiment(task=task, **(settings | changes))


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_training_learns_and_resumes_bitwise(task, tmp_path, monkeypatch):
    whole = train(experiment(task, workdir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_at(patch, 5, MultitaskT5)
        with pytest.raises(Preempted):
            train(experiment(task, workdir=str(tmp_path / "parts")))
    resumed = train(experiment(task, workdir=str(tmp_path / "parts")))
    same(resumed.state, whole.state)
    text = (tmp_path / "whole" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    losses = {line["step"]: line["valid/loss"] for line in lines if "valid/loss" in line}
    assert losses[12] < losses[2] - 0.3


def test_the_mesh_does_not_change_the_loss(task):
    still = dataclasses.replace(MODEL, dropout=0.0)
    config = experiment(dataclasses.replace(task, model=still), steps=2)
    one = train(config)
    many = train(dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2)))
    assert many.metrics["train/loss"] == pytest.approx(one.metrics["train/loss"], rel=1e-4)
    assert many.metrics["valid/loss"] == pytest.approx(one.metrics["valid/loss"], rel=1e-4)


def test_validation_counts_each_row_once(task):
    """Six rows of each task, in batches that eight devices divide and one that they do not."""
    params = init(MODEL, jax.random.key(0))
    mesh = prepare(experiment(task)).mesh
    by_batch = [
        ValidationLoss(task=dataclasses.replace(task, eval_batch=size))(params, mesh)
        for size in (8, 16, 4)
    ]
    for found in by_batch[1:]:
        assert found == pytest.approx(by_batch[0], rel=1e-5)


def test_a_run_starts_from_a_checkpoint(task, tmp_path):
    start = init(MODEL, jax.random.key(3))
    save_pretrained(tmp_path / "start", MODEL, start)
    config = experiment(dataclasses.replace(task, start_from=str(tmp_path / "start")))
    same(prepare(config).init_state().params, start)

    larger = dataclasses.replace(MODEL, d_ff=64, vocab_size=320)
    task = dataclasses.replace(task, start_from=str(tmp_path / "start"), model=larger)
    with pytest.raises(ValueError, match="d_ff: 32 in the checkpoint, 64 in the config") as error:
        prepare(experiment(task)).init_state()
    assert "vocab_size: 300 in the checkpoint, 320" in str(error.value)


def test_an_encoded_row_is_prompt_input_and_target(task):
    example = task.examples.held_out["forward"][0]
    arrays = one_in_a_row(task, [example])
    ids = arrays["inputs"][0][arrays["input_segments"][0] > 0]
    prompt = "Predict the product of the following reaction: "
    assert ids.tolist() == task.tokenizer.encode_many([prompt + example.input])[0].tolist()
    ids = arrays["targets"][0][arrays["target_segments"][0] > 0]
    assert ids.tolist() == task.tokenizer.encode_target(example.target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": dataclasses.replace(MODEL, vocab_size=100)}, "has 300 pieces, .* for 100"),
        ({"input_length": 8}, r"task .*: its prompt, .* longer than the maximum of 8"),
        ({"vocabulary": "no/such/folder"}, "no/such/folder is not a folder"),
    ],
)
def test_what_cannot_work_is_refused(task, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(task, **changes).mixed_data(batch_size=4, seed=0)


def test_some_of_the_tasks_keep_the_vocabulary_of_all(task):
    one = dataclasses.replace(task, tasks=("forward",))
    assert one.examples.train == {"forward": task.examples.train["forward"]}
    assert one.examples.held_out == {"forward": task.examples.held_out["forward"]}
    assert one.mixed_data(batch_size=8, seed=0).mixture.shares == {"forward": 1.0}
    text = task.examples.train["molecule_to_text"][0].target
    ids = [t.tokenizer.encode_many([text], 128)[0].tolist() for t in (one, task)]
    assert ids[0] == ids[1]
    with pytest.raises(ValueError, match=r"no examples of docking, only of forward, retro"):
        dataclasses.replace(task, tasks=("forward", "docking")).examples  # noqa: B018


def test_files_need_a_vocabulary_and_keep_no_row_that_is_held_out(tmp_path, caplog):
    def reader(name, *molecules):
        lines = [
            json.dumps({"source": f"Caption the following SMILES: {m}", "target": "a molecule"})
            for m in molecules
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return (PromptedJsonl(path=str(tmp_path / name)),)

    corpus = FileCorpus(train=reader("train", "CCO", "CCN", "CCC"), held_out=reader("test", "CCN"))
    task = MultitaskT5(model=MODEL, corpus=corpus)
    # Equal captions are no leak; equal molecules are.
    assert [e.input for e in task.examples.train["molecule_to_text"]] == ["CCO", "CCC"]
    assert "molecule_to_text: 1 training examples are among the held-out" in caplog.text
    with pytest.raises(ValueError, match=r"task\.vocabulary is not given"):
        _ = task.tokenizer


def test_the_published_loss_is_refused_on_packed_rows():
    with pytest.raises(ValueError, match="packed = False"):
        MultitaskT5(
            model=MODEL,
            corpus=CORPUS,
            loss_config=dataclasses.replace(MultitaskT5.loss_config, on_padding=True),
        )


def test_a_finished_run_leaves_model_predictions_and_scores(task, tmp_path, capsys):
    task = dataclasses.replace(task, test_rows=3, generate_every=2, generate_rows=3)
    found = run(experiment(task, workdir=str(tmp_path), steps=2))
    printed = capsys.readouterr().out
    assert set(found) == {f"{name}/exact" for name in TASKS}

    exported = from_pretrained(tmp_path / "export")
    assert exported.config == dataclasses.replace(MODEL, dropout=exported.config.dropout)
    same(exported.params, train(experiment(task, workdir=str(tmp_path), steps=2)).params)
    tokenizer = Tokenizer.load(tmp_path / "export")
    assert tokenizer.encode_target("CCO") == task.tokenizer.encode_target("CCO")

    results = json.loads((tmp_path / "results.json").read_text())
    log = (tmp_path / "metrics.jsonl").read_text().splitlines()
    logged = {key: value for line in log for key, value in json.loads(line).items()}
    for name in TASKS:
        rows = read_predictions(tmp_path / "predictions" / f"{name}.tsv")
        expected = task.examples.held_out[name][:3]
        assert rows.references == [e.target for e in expected]
        assert rows.inputs == [e.input for e in expected]
        equal = [out[0] == ref for out, ref in zip(rows.outputs, rows.references, strict=True)]
        assert results["tasks"][name]["exact match"] == np.mean(equal)
        # The same rows, decoded during training.
        assert logged[f"generate/{name}/exact match"] == results["tasks"][name]["exact match"]
        assert f"| {name} | {len(expected)} |" in printed
    assert (tmp_path / "learning_curves.png").stat().st_size > 10_000
