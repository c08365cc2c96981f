"""Predicting from files: formats, order, resuming, prompts, restoration, valid first, bad input."""

import gzip
import json
import logging
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from common.mesh import MeshConfig, make_mesh
from molt5_multitask.corpus.vocabulary import train_vocabulary
from molt5_multitask.data.inputs import read_inputs
from molt5_multitask.decoding import BeamSearch, Decoder, Sampling
from molt5_multitask.decoding.decoder import Decoded
from molt5_multitask.metrics.predictions import read_predictions
from molt5_multitask.model import init, preset
from molt5_multitask.predict import main
from molt5_multitask.predictor import Options, Predictor, predict
from molt5_multitask.pretrained import save_pretrained
from molt5_multitask.tasks import TASKS

PROMPT = TASKS["forward"].prompt
TEXTS = [
    "CCO",
    "c1ccccc1.Cl",
    "C",
    "CC(=O)O.OCC",
    "N",
    "CCN",
    "OCCO.Cl",
    "CCCCCCCCCCCCCCCCCCO",
    "Cl",
]


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """These tests compile much more than they compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """Eight devices take eight times as long to compile for; a test that asks gets them."""

    def mesh(config):
        return make_mesh(config, jax.devices()[:1] if config == MeshConfig() else None)

    monkeypatch.setattr("molt5_multitask.predict.make_mesh", mesh)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [task.prompt for task in TASKS.values()] + [*TEXTS, "F/C=C/F", "[N]", "ADD water."]
    return train_vocabulary(texts, size=110)


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """The folder of a training run."""
    folder = tmp_path_factory.mktemp("run")
    config = preset("t5-v1_1-tiny", vocab_size=128, d_model=16, d_ff=16, heads=2, d_kv=8)
    params = jax.device_get(jax.jit(lambda: init(config, jax.random.key(1)))())
    save_pretrained(folder / "export", config, params)
    tokenizer.save(folder / "export")
    return folder


@pytest.fixture
def file(tmp_path):
    """A file of inputs."""
    path = tmp_path / "in.csv"
    path.write_text("id,input\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS)))
    return path


def run(model, file, *options, task="forward"):
    """Run the command line; return the file of predictions."""
    quick = ("--beams", "3", "--best", "2", "--max-length", "9", "--rows", "8")
    main(["--task", task, "--model", str(model), "--input", str(file), *quick, *options])
    return file.with_name(f"{file.name.split('.')[0]}_{task}.tsv")


def test_a_file_gives_the_best_with_scores_in_order(model, file, capsys):
    """Decoded on eight devices here, and on one for comparison."""
    path = run(model, file, "--mesh.data", "8")
    header, *lines = path.read_text().splitlines()
    assert header.split("\t") == ["input", "output_1", "output_2", "score_1", "score_2"]
    found = predict(
        TEXTS,
        task="forward",
        model=str(model),
        options=Options(search=BeamSearch(beams=3, best=2), max_length=9, rows=8),
    )
    for line, text, expected in zip(lines, TEXTS, found, strict=True):
        fields = line.split("\t")
        assert fields[:3] == [text, *expected.outputs]
        assert list(map(float, fields[3:])) == pytest.approx(expected.scores, abs=1e-5)
        assert expected.scores == sorted(expected.scores, reverse=True)
    assert len({line.split("\t")[1] for line in lines}) > 1
    assert read_predictions(path, reference=False).inputs == TEXTS
    record = json.loads(path.with_name(path.name + ".json").read_text())
    assert record["prompt"] == PROMPT
    streams = capsys.readouterr()
    assert "row 9/9, 100%" in streams.err
    assert "written: " in streams.out


def test_one_text_is_printed(model, capsys):
    quick = ["--max-length", "9", "--beams", "2", "--best", "2"]
    main(["--task", "forward", "--model", str(model), "--text", "CCO", *quick])
    options = Options(search=BeamSearch(beams=2, best=2), max_length=9, rows=1)
    found = predict(["CCO"], task="forward", model=str(model), options=options)
    expected = zip(found[0].scores, found[0].outputs, strict=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{score:.4f}\t{output}" for score, output in expected]
    assert len(lines) == 2


def test_formats(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    quoted = write("a.csv", 'id,input,reference\n1,"a, ""b""\nc",x\n2,d,y\n')
    found = read_inputs(quoted)
    assert found.texts == ['a, "b"\nc', "d"]
    assert found.references == ["x", "y"]
    assert found.lines == [3, 4]
    plain = write("a.tsv", 'SMILES\tdescription\r\nC"C\t"an acid"\r\n')
    assert read_inputs(plain, column="description").texts == ['"an acid"']
    assert read_inputs(plain, column="SMILES", reference="description").references == ['"an acid"']
    assert read_inputs(write("a.txt", "one line\nanother, line\n")).texts == [
        "one line",
        "another, line",
    ]
    assert read_inputs(write("b.txt", "CID\tinput\n1\tCC\n")).texts == ["CC"]
    lines = '{"source": "CC", "target": "N"}\n{"target": "O", "source": "CN"}\n'
    found = read_inputs(write("a.jsonl.gz", lines), reference="target")
    assert found.texts == ["CC", "CN"]
    assert found.references == ["N", "O"]
    assert read_inputs(write("c.csv", "anything\nx\n")).texts == ["x"]


def test_references_and_line_breaks_reach_the_output(model, tmp_path):
    file = tmp_path / "in.csv"
    file.write_text('source,wanted\n"C\nC",N\nO,"a\tb"\n')
    found = read_predictions(run(model, file, "--reference", "wanted"))
    assert found.inputs == ["C C", "O"]
    assert found.references == ["N", "a b"]


@pytest.mark.parametrize("bytes_left", [10, 60, -1, -40])
def test_a_killed_run_goes_on(model, file, monkeypatch, bytes_left):
    """Wherever the file was cut, the result is the same, and no row is decoded twice."""
    monkeypatch.setattr("molt5_multitask.predictor.WINDOW", 1)
    options = ("--sample", "--sampling.samples", "2", "--sampling.top-k", "20")
    path = run(model, file, *options)
    whole = path.read_bytes()
    kept = whole[:bytes_left]
    path.write_bytes(kept)
    decoded = []
    decode = Decoder.__call__

    def spy(self, sources, **kwargs):
        decoded.extend(sources)
        return decode(self, sources, **kwargs)

    monkeypatch.setattr(Decoder, "__call__", spy)
    run(model, file, *options)
    assert path.read_bytes() == whole
    assert len(decoded) == len(TEXTS) - max(kept.count(b"\n") - 1, 0)


def test_a_finished_file_stays(model, file, capsys):
    path = run(model, file)
    before = path.stat()
    run(model, file)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert "9 of 9 rows are done" in capsys.readouterr().err


@pytest.fixture(scope="module")
def begun(model, tmp_path_factory):
    """A file of inputs beside one of predictions."""
    path = tmp_path_factory.mktemp("begun") / "in.txt"
    path.write_text("\n".join(TEXTS))
    run(model, path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beams", "4"), r"beams: 3 -> 4"),
        (("--prompt", "Product:"), r"prompt: .* -> 'Product:'"),
        (("--dtype", "bfloat16"), r"dtype: 'float32' -> 'bfloat16'"),
        (("--sample",), r"method.class: '.*BeamSearch' -> '.*Sampling'"),
    ],
)
def test_other_settings_do_not_continue_a_file(model, begun, capsys, options, message):
    path = begun.with_name("in_forward.tsv")
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        run(model, begun, *options)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert path.read_bytes() == before


def test_another_model_or_file_does_not_continue_a_file(model, file, tmp_path, capsys):
    path = run(model, file)
    other = tmp_path / "other"
    config = preset("t5-v1_1-tiny", vocab_size=128, d_model=16, d_ff=16, heads=2, d_kv=8)
    save_pretrained(
        other,
        config,
        jax.device_get(init(config, jax.random.key(2))),
        tokenizer=model / "export",
    )
    for change in (
        lambda: run(other, file),
        lambda: run(model, file.rename(file.with_name("in.csv.txt")), "--output", str(path)),
    ):
        with pytest.raises(SystemExit):
            change()
        assert "model sha256" in (error := capsys.readouterr().err) or "inputs" in error
    path.with_name(path.name + ".json").unlink()
    file.with_name("in.csv.txt").rename(file)
    with pytest.raises(SystemExit):
        run(model, file)
    assert f"{path.name}.json, which says how it was made" in capsys.readouterr().err


@pytest.mark.slow
def test_kill_9(model, tmp_path):
    """A real one, in the middle of the work."""
    rng = np.random.default_rng(0)
    file = tmp_path / "in.txt"
    file.write_text("".join("C" * n + "O\n" for n in rng.integers(1, 60, 800)))
    command = [sys.executable, "-m", "molt5_multitask.predict", "--task", "forward", "--model"]
    command += [str(model), "--input", str(file), "--max-length", "40", "--rows", "8"]
    path = file.with_name("in_forward.tsv")
    process = subprocess.Popen(command)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 200):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert path.read_bytes().count(b"\n") < 801
    subprocess.run(command, check=True)
    killed = path.read_bytes()
    path.unlink()
    subprocess.run(command, check=True)
    assert path.read_bytes() == killed
    assert killed.count(b"\n") == 801


def test_prompts_are_not_doubled(model, tmp_path, caplog):
    file = tmp_path / "in.txt"
    file.write_text(f"CCO\n{PROMPT}CCO\n")
    with caplog.at_level(logging.WARNING):
        first, second = run(model, file).read_text().splitlines()[1:]
    assert first == second
    assert "1 of 2 inputs begin with a prompt already, which is not doubled" in caplog.text


def test_long_inputs_are_cut_and_counted(model, file, tokenizer, caplog):
    lengths = [len(tokenizer.encode_source(TASKS["forward"], text)) for text in TEXTS]
    longest = max(lengths) - 1
    with caplog.at_level(logging.WARNING):
        run(model, file, "--max-input-length", str(longest))
    cut = sum(length > longest for length in lengths)
    assert f"{cut} of 9 inputs are longer than {longest} tokens and were cut" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("in.csv", b"id,smiles\n1,C\n", ("--column", "smile"), "column 'smile'; .* 'smiles'"),
        ("in.csv", b"id,smiles\n1,C\n", (), "columns id, smiles: .*--column"),
        ("in.csv", b"", (), "in.csv is empty"),
        ("in.csv", b"input\n", (), "has a header, but no rows"),
        ("in.csv", b"id,input\n1,C\n2,\n", (), "line 3: column 'input' is empty"),
        ("in.csv", b"id,input\n1,C,N\n", (), "line 2: 3 fields, where the header has 2"),
        ("in.csv", b'id,input\n1,"C"N\n', (), "line 2: not CSV"),
        ("in.tsv", b"id\tinput\n1\tC\n2\n", (), "line 3: 1 fields"),
        ("in.txt", b"C\nC\xff\n", (), "line 2: not UTF-8 .byte 0xff"),
        ("in.jsonl", b'{"input": "C"}\n{"input"\n', (), "line 2: not JSON"),
        ("in.jsonl", b'{"input": "C"}\n["C"]\n', (), "line 2: not a JSON object"),
        ("in.jsonl", b'{"input": "C"}\n{"inputs": "C"}\n', (), "line 2: column 'input' is empty"),
        ("in.jsonl", b'{"input": ["C"]}\n', (), "line 1: 'input' is not a string"),
        ("in.dat", b"C\n", (), "must be one of .csv, .tsv"),
        ("in.txt", b"C\n", ("--reference", "x"), "without a column 'x'"),
        ("in.txt", b"C\n", ("--task", "forwards"), "no task 'forwards'; did you mean forward"),
        ("in.txt", b"C\n", ("--model", "no/such/folder"), "no folder 'no/such/folder'"),
        ("in.txt", b"C\n", ("--text", "C"), "either --input, a file, or --text"),
        ("in.txt", b"C\n", ("--max-input-length", "9"), "its prompt, one input token and eos are"),
        ("in.txt", b"C\n", ("--task", "actions", "--valid-first"), "of kind actions, which RDKit"),
        (
            "in.txt",
            b"C\n" + TASKS["retrosynthesis"].prompt.encode() + b"CC\n",
            (),
            "line 2: the input begins with the prompt of the task retrosynthesis",
        ),
    ],
)
def test_bad_input_is_one_error(model, tmp_path, capsys, name, content, options, message):
    file = tmp_path / name
    file.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="1" if "--model" in options else "2"):
        run(model, file, *options)
    (error,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{message}", error)
    assert sorted(tmp_path.iterdir()) == before


def test_a_vocabulary_of_another_model_is_refused(tokenizer):
    config = preset("t5-tiny", vocab_size=50)
    with pytest.raises(ValueError, match=r"vocabulary has \d+ ids, the model rows for 50"):
        Predictor(config, {}, tokenizer, "forward")


@pytest.fixture
def decoding(monkeypatch, tokenizer):
    """Returns what a predictor makes of given output texts."""

    def predicted(task, outputs, **options):
        ids = [tokenizer.encode_target(text)[:-1] for text in outputs]
        scores = [-float(i) for i in range(len(ids))]
        monkeypatch.setattr(Decoder, "__init__", lambda *args, **kwargs: None)
        monkeypatch.setattr(
            Decoder, "__call__", lambda *args, **kwargs: iter([(0, Decoded(ids, scores))])
        )
        config = preset("t5-tiny", vocab_size=128)
        predictor = Predictor(config, {}, tokenizer, task, options=Options(**options))
        return predictor(["C"])[0]

    return predicted


def test_lost_characters_are_restored_by_task(decoding):
    # The vocabulary knows neither backslash nor tilde, as T5's.
    assert decoding("text_to_molecule", [r"C/C=C\C"]).outputs == [r"C/C=C\C"]
    assert decoding("forward", ["[N]~[O]"]).outputs == ["[N]~[O]"]
    assert decoding("molecule_to_text", [r"C\C"]).outputs == ["C<unk>C"]


def test_valid_outputs_come_first(decoding):
    outputs = ["C(", "CCO", "", "N", "O=O=O", "Cl"]
    plain = decoding("forward", outputs)
    assert plain.outputs == outputs
    assert plain.valid is None
    found = decoding("forward", outputs, valid_first=True)
    assert found.outputs == ["CCO", "N", "Cl", "C(", "", "O=O=O"]
    assert found.ranks == [2, 4, 6, 1, 3, 5]
    assert found.valid == [True] * 3 + [False] * 3
    assert found.scores == [-1.0, -3.0, -5.0, 0.0, -2.0, -4.0]


def test_what_valid_first_changed_is_reported(model, file, capsys, monkeypatch):
    monkeypatch.setattr("molt5_multitask.predictor.chem.is_valid", lambda text: len(text) % 2 == 0)
    path = run(model, file, "--valid-first")
    head, *lines = path.read_text().splitlines()
    rows = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    for row in rows:
        assert sorted([row["rank_1"], row["rank_2"]]) == ["1", "2"]
        assert row["valid_1"] >= row["valid_2"]
        assert row["valid_1"] == str(int(len(row["output_1"]) % 2 == 0))
    moved = sum(row["rank_1"] == "2" for row in rows)
    valid = sum(row["valid_1"] == "1" for row in rows)
    assert 0 < moved < valid
    report = f"first output valid in {valid} of 9 rows, in {moved} of them because"
    assert report in capsys.readouterr().out


def test_samples_of_the_library(model):
    options = Options(sample=True, sampling=Sampling(samples=3, seed=1), max_length=9, rows=4)
    found = predict(TEXTS[:2], task="forward", model=str(model), options=options)
    assert [len(row.outputs) for row in found] == [3, 3]
    again = predict(TEXTS[:2], task="forward", model=str(model), options=options)
    assert [row.outputs for row in again] == [row.outputs for row in found]
