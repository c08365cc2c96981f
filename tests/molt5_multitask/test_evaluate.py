import dataclasses
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from molt5_multitask import evaluate as command
from molt5_multitask.evaluate import Options, evaluate, find_task, main
from molt5_multitask.metrics.predictions import read_predictions
from molt5_multitask.metrics.published import TABLES
from molt5_multitask.metrics.report import markdown
from molt5_multitask.metrics.scores import Scores
from molt5_multitask.tasks import TASKS, Seq2SeqTask

FAST = Options(fcd=False, meteor=False)

MOLECULES = [
    ("an alcohol", "CCO", "OCC"),
    ('a "trans" alkene', "C/C=C/C", "C/C=C\\C"),
    ("an acid", "CC(=O)O", "CC(=O)N"),
    ("nothing", "c1ccccc1", "c1cccc"),
    ("a ring", "C1CCCCC1", "C1CCCC1"),
]


def write(path, rows, header=("description", "ground truth", "output")):
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), "utf-8")
    return path


@pytest.fixture
def molecules(tmp_path):
    return write(tmp_path / "molecules.txt", MOLECULES)


def scores_of(folder):
    return json.loads((folder / "scores.json").read_text("utf-8"))


def test_command_scores_a_file_and_draws_it(molecules, capsys):
    main([str(molecules), "--task", "generation", "--no-fcd", "--name", "toy"])
    folder = molecules.parent / "molecules_scores"
    found = scores_of(folder)
    assert found["task"] == "text_to_molecule"
    assert found["metrics"]["exact"] == 0.2
    assert found["metrics"]["validity"] == 0.8
    assert found["metrics over all rows"]["MACCS"] == pytest.approx(0.8 * found["metrics"]["MACCS"])
    assert found["counts"] == {
        "rows": 5,
        "valid outputs": 4,
        "empty outputs": 0,
        "unreadable references": 0,
    }
    assert "rdkit" in found["notes"]["versions"]
    assert "Text2Mol" in found["missing"]
    text = (folder / "scores.md").read_text("utf-8")
    assert "| MACCS | " in text
    assert "4 rows" in text
    assert re.search(r"\| \*\*toy\*\* \| 0\.\d{4} \| 0\.2000 ", text)
    assert "| MolT5-base (as published) | .769 | .081 | 24.46 |" in text
    for name in ("similarities.png", "molecules.png"):
        pixels = imread(folder / name)
        assert 0.01 < np.mean(pixels[..., :3].min(-1) < 0.5) < 0.5  # drawn, not blank
    printed = capsys.readouterr()
    assert text in printed.out
    assert "molecules: 100%" in printed.err  # progress


@pytest.mark.parametrize("name", [*TASKS, "captioning", "generation", "actions"])
def test_every_task_has_metrics_and_a_report(name):
    task = find_task(name)
    texts = {
        "text": ["an acid of some kind", "an amine"],
        "actions": ["ADD water; STIR for 2 h.", "NOACTION."],
        "smiles": ["CCO", "CC(=O)O"],
        "reaction": ["CCO.[Na+]~[OH-]", "CC(=O)O"],
    }
    right = texts[task.output_kind]
    scores = evaluate(
        task,
        right,
        [[text, text] for text in right],
        inputs=texts[task.input_kind],
        options=Options(tokens="whitespace", fcd=False, meteor=False),
    )
    ones = {"text": "BLEU-2", "actions": "modified BLEU", "smiles": "exact", "reaction": "top-1"}
    assert scores.values[ones[task.output_kind]] == pytest.approx(1)
    report = markdown("perfect", task, scores, tokens="scibert")
    assert "| **perfect** | " in report


def test_a_further_task_is_scored_by_the_kind_of_its_output():
    task = Seq2SeqTask(name="repair", prompt="", input_kind="smiles", output_kind="smiles")
    assert evaluate(task, ["CCO"], ["OCC"], options=FAST).values["exact"] == 1


def test_both_forms_of_the_backslash_give_the_same_scores(tmp_path):
    def doubled(text):
        return text.replace("\\", "\\\\")

    forms = {
        "single": MOLECULES,
        "doubled": [(a, doubled(b), doubled(c)) for a, b, c in MOLECULES],
        "outputs_doubled": [(a, b, doubled(c)) for a, b, c in MOLECULES],
    }
    metrics = []
    for name, rows in forms.items():
        file = write(tmp_path / f"{name}.txt", rows)
        main([str(file), "--task", "text_to_molecule", "--no-fcd", "--no-figures"])
        found = scores_of(tmp_path / f"{name}_scores")
        metrics.append(found["metrics"])
        form = "doubled" if "doubled" in name else "single"
        assert found["notes"]["backslashes of the outputs"].endswith(f"read as {form}")
    assert metrics[0] == metrics[1] == metrics[2]
    # Kept as they are on request, the doubled ones are another string.
    file = tmp_path / "outputs_doubled.txt"
    main([str(file), "--task", "generation", "--no-fcd", "--no-figures", "--backslashes", "single"])
    kept = scores_of(tmp_path / "outputs_doubled_scores")["metrics"]
    assert kept["Levenshtein"] > metrics[0]["Levenshtein"]


def test_k_best_columns_and_round_trip_by_recorded_predictions(tmp_path):
    file = write(
        tmp_path / "retro.tsv",
        [
            ("CCOC", "CO.CCO", "CC", "CCO.OC", "-0.1", "-0.2"),
            ("CCN", "CCBr.N", "CCBr.N", "CC", "-0.3", "-0.4"),
        ],
        ("input", "reference", "output_1", "output_2", "score_1", "score_2"),
    )
    recorded = write(
        tmp_path / "forward.tsv",
        [("CC", "CC"), ("CCO.OC", "COCC"), ("CCBr.N", "CCN")],
        ("input", "output"),
    )
    arguments = [str(file), "--task", "retrosynthesis", "--no-figures"]
    main(arguments)
    assert "--forward_predictions" in scores_of(tmp_path / "retro_scores")["missing"]["round trip"]
    arguments += ["--forward_predictions", str(recorded)]
    with pytest.raises(SystemExit):
        main(arguments)
    main([*arguments, "--forward_model", "oracle"])
    found = scores_of(tmp_path / "retro_scores")
    assert found["metrics"]["top-1"] == 0.5
    assert found["metrics"]["round trip top-1"] == 0.5
    assert found["notes"]["forward model of the round trip"] == "oracle"
    assert "top-3" not in found["metrics"]


def test_text2mol_plug_in_sees_texts_and_valid_molecules(molecules, monkeypatch):
    class Lengths:
        name = "lengths"

        def __call__(self, texts, smiles):
            assert texts == ["an alcohol", 'a "trans" alkene', "an acid", "a ring"]
            return np.array([len(text) for text in smiles], np.float64)

    monkeypatch.setattr(command, "plug_in", Lengths(), raising=False)
    main(
        [
            *(str(molecules), "--task", "generation", "--no-fcd", "--no-figures"),
            *("--text2mol", "molt5_multitask.evaluate:plug_in"),
        ]
    )
    found = scores_of(molecules.parent / "molecules_scores")
    assert found["metrics"]["Text2Mol"] == (3 + 7 + 7 + 7) / 4
    assert found["notes"]["model of Text2Mol"] == "lengths"


def test_best_of_several_outputs_is_what_other_metrics_are_of():
    first = evaluate("actions", ["STIR."], ["STIR."])
    ranked = evaluate("actions", ["STIR."], [["STIR.", "NOACTION."]])
    assert ranked.values == first.values


BAD_FILES = {
    "empty": (b"", r"bad\.txt is empty"),
    "header only": (b"SMILES\tground truth\toutput\n", "a header, but no rows"),
    "no column": (
        b"SMILES\tground truth\tprediction\nC\ta\tb\n",
        r"line 1: no column for the output \('output' or 'output_1'\).*'prediction'",
    ),
    "commas": (b"SMILES,ground truth,output\nC,a,b\n", "line 1: no column for the reference"),
    "two references": (
        b"reference\tground truth\toutput\na\ta\tb\n",
        "line 1: more than one column for the reference",
    ),
    "short row": (
        b"SMILES\tground truth\toutput\nC\ta\tb\nC\ta\n",
        r"line 3: 2 tab-separated fields, where the header has 3 \(SMILES, ground truth, output\)",
    ),
    "long row": (b"ground truth\toutput\na\tb\tc\n", "line 2: 3 tab-separated fields"),
    "not utf-8": (b"ground truth\toutput\na\tb\nb\t\xe9\n", r"line 3: not UTF-8 \(byte 0xe9\)"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_end_in_one_error_with_file_and_line(content, message, tmp_path, capsys):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main([str(file), "--task", "captioning"])
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: {re.escape(str(tmp_path))}/.*\n", error)
    assert re.search(message, error)
    assert not (tmp_path / "bad_scores").exists()


def test_other_mistakes_on_the_command_line(molecules, tmp_path, capsys):
    for arguments, message in [
        (["no.txt", "--task", "captioning"], "error: no predictions file no.txt"),
        ([str(molecules), "--task", "caption"], "no task 'caption'; did you mean captioning?"),
        (
            [str(molecules), "--task", "captioning", "--vocabulary", str(tmp_path)],
            "must hold one file vocab.txt",
        ),
        (
            [
                *(str(molecules), "--task", "captioning", "--tokens", "whitespace"),
                *("--wordnet", str(tmp_path)),
            ],
            "holds no WordNet",
        ),
        (
            [str(molecules), "--task", "generation", "--text2mol", "no_module:x"],
            "--text2mol no_module:x",
        ),
    ]:
        with pytest.raises(SystemExit, match=r"[12]"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_library_call_refuses_what_does_not_fit_together():
    with pytest.raises(ValueError, match="2 references, but 1 outputs"):
        evaluate("actions", ["STIR.", "STIR."], ["STIR."])
    with pytest.raises(ValueError, match="1 references, but 2 inputs"):
        evaluate("actions", ["STIR."], ["STIR."], inputs=["a", "b"])
    with pytest.raises(ValueError, match="one row at least"):
        evaluate("actions", [], [])
    with pytest.raises(ValueError, match="no task 'forwards'; did you mean forward"):
        evaluate("forwards", ["C"], ["C"])


def test_quotes_carriage_returns_and_line_separators_are_data(tmp_path):
    file = tmp_path / "odd.tsv"
    file.write_bytes(
        '\ufeffreference\toutput\textra\r\n"a\t b"" \u2028\x85\t7\r\n\t\t\r\n'.encode()
    )
    found = read_predictions(file)
    assert found.references == ['"a', ""]
    assert found.outputs == [[' b"" \u2028\x85'], [""]]
    assert found.inputs is None


def test_published_rows_fit_their_columns_and_name_their_tokens():
    for table in TABLES:
        assert table.task in TASKS
        assert (table.tokens is not None) == (table.task == "molecule_to_text")
        for system, values in table.rows.items():
            assert len(values.split()) == len(table.columns), system
            for value in values.split():
                assert value == "-" or float(value) >= 0


def test_columns_of_published_tables_are_metrics_that_we_compute():
    molecules = evaluate("forward", ["C"], [["C"] * 10], options=FAST)
    captions = evaluate(
        "captioning", ["a b"], ["a b"], options=dataclasses.replace(FAST, tokens="whitespace")
    )
    actions = evaluate("actions", ["STIR."], ["STIR."])
    known = {
        "forward": {*molecules.values},
        "retrosynthesis": {*molecules.values},
        "text_to_molecule": {*molecules.values, "FCD"},
        "molecule_to_text": {*captions.values, "METEOR"},
        "paragraph_to_actions": {*actions.values},
    }
    for table in TABLES:
        assert set(table.columns) <= known[table.task]


def test_tables_of_other_tokens_stand_apart():
    scores = Scores(values={"BLEU-2": 0.5})
    scibert, t5 = (
        markdown("ours", TASKS["molecule_to_text"], scores, tokens=kind)
        for kind in ("scibert", "t5")
    )
    assert "BioT5" in scibert
    assert "MolReGPT" not in scibert
    assert "MolReGPT" in t5
    assert "BioT5" not in t5
