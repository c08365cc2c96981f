"""Readers: what they make of good rows, and what they say of bad ones."""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import pathlib
import tarfile
import zipfile
from typing import Any

import pytest

from molt5_multitask import chem
from molt5_multitask.data import smiles as smiles_module
from molt5_multitask.data.lines import read_lines
from molt5_multitask.data.readers import (
    HubTable,
    MoleculeCaptions,
    PairedLines,
    PromptedJsonl,
    Reactions,
    Reader,
    SpacedReactions,
    read,
)
from molt5_multitask.data.smiles import standardise
from molt5_multitask.tasks import TASKS, Example


def write(path: pathlib.Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines))
    return str(path)


def test_captions_are_read_without_quoting_and_with_single_backslashes(
    tmp_path: pathlib.Path,
) -> None:
    path = write(
        tmp_path / "train.txt",
        "CID\tSMILES\tdescription",
        'a\tC/C=C\\\\C\tThe "cis" isomer',
        "b\tCCO\tAn alcohol; 5\\\\6",
    )
    examples, report = read([MoleculeCaptions(path=path)])
    assert examples == {
        "molecule_to_text": [
            Example("molecule_to_text", "C/C=C\\C", 'The "cis" isomer'),
            # Only SMILES have the doubled form.
            Example("molecule_to_text", "CCO", "An alcohol; 5\\\\6"),
        ],
        "text_to_molecule": [
            Example("text_to_molecule", 'The "cis" isomer', "C/C=C\\C"),
            Example("text_to_molecule", "An alcohol; 5\\\\6", "CCO"),
        ],
    }
    assert str(report) == "no bad row in 2"


def test_columns_are_found_by_name(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.tsv", "\tdescription\tCID\tSMILES\r", "0\ta gas\t7\tC\r")
    examples, _ = read([MoleculeCaptions(path=path, tasks=("molecule_to_text",))])
    assert examples == {"molecule_to_text": [Example("molecule_to_text", "C", "a gas")]}


def test_reactions_of_three_layouts_agree(tmp_path: pathlib.Path) -> None:
    pair = write(tmp_path / "pair.tsv", "CCO.CC(=O)O\tCCOC(C)=O")
    table = write(tmp_path / "table.tsv", "id\tproduct\treactants", "US1\tO(CC)C(C)=O\tOCC.CC(=O)O")
    mapped = write(
        tmp_path / "mapped.txt",
        "[CH3:1][CH2:2][OH:3].[CH3:4][C:5](=[O:6])[OH:7]>>[CH3:1][CH2:2][O:3][C:5](=[O:6])[CH3:4]"
        " 3-5",
    )
    target = "CCOC(C)=O"
    expected = {
        "forward": [Example("forward", "CC(=O)O.CCO", target)],
        "retrosynthesis": [Example("retrosynthesis", target, "CC(=O)O.CCO")],
    }
    assert read([Reactions(path=pair, canonical=True)])[0] == expected
    assert read([Reactions(path=table, layout="table", canonical=True)])[0] == expected
    assert read([Reactions(path=mapped, layout="mapped")])[0] == expected
    # Unless asked for, nothing is rewritten.
    assert read([Reactions(path=pair)])[0]["forward"] == [Example("forward", "CCO.CC(=O)O", target)]


def test_reagents_of_a_mapped_reaction_join_the_precursors(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.txt", "[CH3:1][Br:2]>O.[Na+]~[OH-]>[CH3:1][OH:3]")
    (example,) = read([Reactions(path=path, layout="mapped", tasks=("forward",))])[0]["forward"]
    assert example == Example("forward", "CBr.O.[Na+]~[OH-]", "CO")


def test_spaced_reactions(tmp_path: pathlib.Path) -> None:
    products = write(tmp_path / "sources", "<RX_10> C C O C", "<RX_1> C l C")
    reactants = write(tmp_path / "targets", "C C O . C I", "C l C C l")
    examples, _ = read([SpacedReactions(products=products, reactants=reactants)])
    assert examples["retrosynthesis"] == [
        Example("retrosynthesis", "CCOC", "CCO.CI"),
        Example("retrosynthesis", "ClC", "ClCCl"),
    ]
    assert [e.target for e in examples["forward"]] == ["CCOC", "ClC"]


def test_paired_lines_take_any_task(tmp_path: pathlib.Path) -> None:
    inputs = write(tmp_path / "src.txt", "Stir it at 5 °C.")
    targets = write(tmp_path / "tgt.txt", "STIR at 5 °C.")
    examples, _ = read([PairedLines(inputs=inputs, targets=targets)])
    assert examples == {
        "paragraph_to_actions": [
            Example("paragraph_to_actions", "Stir it at 5 °C.", "STIR at 5 °C.")
        ]
    }
    other = dataclasses.replace(TASKS["paragraph_to_actions"], name="operations")
    examples, _ = read([PairedLines(inputs=inputs, targets=targets, task=other)])
    assert [e.task for e in examples["operations"]] == ["operations"]


def json_lines(path: pathlib.Path) -> str:
    rows = [
        {"source": TASKS["forward"].prompt + "CBr.[Na+]~[OH-]", "target": "CO"},
        {"source": "Caption the following molecule: C/C=C\\\\C", "target": "a gas"},
        {"source": TASKS["text_to_molecule"].prompt + "a gas", "target": "C/C=C\\\\C"},
    ]
    return write(path, *map(json.dumps, rows))


def test_prompts_tell_the_task(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "x.jsonl")
    expected = {
        "forward": [Example("forward", "CBr.[Na+]~[OH-]", "CO")],
        "molecule_to_text": [Example("molecule_to_text", "C/C=C\\C", "a gas")],
        "text_to_molecule": [Example("text_to_molecule", "a gas", "C/C=C\\C")],
    }
    assert read([PromptedJsonl(path=path)])[0] == expected


def test_local_tables_through_datasets(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = json_lines(tmp_path / "x.jsonl")
    examples, _ = read([HubTable(name="json", files=(path,))])
    assert examples == read([PromptedJsonl(path=path)])[0]
    table = HubTable(
        name="json",
        files=(write(tmp_path / "y.jsonl", '{"a": "C", "b": "x"}', '{"a": "C1", "b": null}'),),
        input="a",
        target="b",
        task=TASKS["molecule_to_text"],
    )
    examples, report = read([table], max_bad_rows=1)
    assert examples == {"molecule_to_text": [Example("molecule_to_text", "C", "x")]}
    assert "json[train], line 2: 'C1\\t'" in str(report)
    with pytest.raises(ValueError, match=r"no column 'c'"):
        read([dataclasses.replace(table, target="c")])
    with pytest.raises(ValueError, match=r"datasets cannot load json\[test\]"):
        read([dataclasses.replace(table, split="test")])


def test_bad_rows_are_counted_by_reason_and_shown_by_line(tmp_path: pathlib.Path) -> None:
    path = write(
        tmp_path / "x.tsv",
        "CID\tSMILES\tdescription",
        "1\tCCO\tfine",
        "2\tC1CC\tring is open",
        "3\t\tno molecule",
        "4\tCCO\t ",
        "5\tCCO",
        b"6\tCCO\t\xff\xfe",
        "7\tCCO name\tnot a molecule alone",
        "8\tCC(C)(C)(C)C\tvalence",
    )
    with pytest.raises(ValueError, match=r"max_bad_rows = 1\.00%") as error:
        read([MoleculeCaptions(path=path)])
    examples, report = read([MoleculeCaptions(path=path)], max_bad_rows=0.9)
    assert [e.input for e in examples["molecule_to_text"]] == ["CCO"]
    assert str(report) in str(error.value)
    assert str(report).splitlines() == [
        f"{path}: 7 of 8 rows (87.50%) bad",
        "  unparsable SMILES: 3",
        f"    {path}, line 3: 'C1CC'",
        f"    {path}, line 8: 'CCO name'",
        f"    {path}, line 9: 'CC(C)(C)(C)C'",
        "  empty field: 2",
        f"    {path}, line 4: '\\tno molecule'",
        f"    {path}, line 5: 'CCO\\t'",
        "  2 columns in place of 3: 1",
        f"    {path}, line 6: '5\\tCCO'",
        "  invalid UTF-8: 1",
        f"    {path}, line 7: '6\\tCCO\\t\\\\xff\\\\xfe'",
    ]


def test_only_the_first_of_many_bad_rows_are_shown(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.tsv", *["no tab"] * 10)
    _, report = read([Reactions(path=path)], max_bad_rows=1)
    assert str(report).count("line ") == 3
    assert "  1 columns in place of 2: 10\n" in str(report)
    assert str(report).endswith("and 7 more")


def test_the_limit_holds_for_each_file(tmp_path: pathlib.Path) -> None:
    good = write(tmp_path / "good.tsv", *["C\tC"] * 99)
    bad = write(tmp_path / "bad.tsv", "C\tC", "C1\tC")
    readers = [Reactions(path=good), Reactions(path=bad)]
    with pytest.raises(ValueError, match=r"in \S*bad\.tsv; mend"):
        read(readers, max_bad_rows=0.4)
    assert len(read(readers, max_bad_rows=0.5)[0]["forward"]) == 100


def test_bad_json_lines_say_what_is_wrong(tmp_path: pathlib.Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        "{not json",
        '{"source": "Caption the following SMILES: C"}',
        '["source", "target"]',
        '{"source": "Caption the following SMILES: C", "target": 5}',
        '{"source": "Name this: C", "target": "methane"}',
        '{"source": "Caption the following SMILES: C", "target": "\\ud800"}',
        '{"source": "Caption the following SMILES: C\\nC", "target": "two lines"}',
    )
    _, report = read([PromptedJsonl(path=path)], max_bad_rows=1)
    assert dict(report.bad[path]) == {
        'not a JSON object with "source" and "target"': 3,
        '"source" or "target" is not a string': 1,
        "no known prompt": 1,
        "half of a surrogate pair": 1,
        "unparsable SMILES": 1,
    }


def test_a_mapped_file_of_another_form_is_bad(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x.txt", "CCO\tCC", ">>C", "C>>C")
    _, report = read([Reactions(path=path, layout="mapped")], max_bad_rows=1)
    assert dict(report.bad[path]) == {
        "not of the form reactants>reagents>product": 1,
        "empty field": 1,
    }


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (
            Reactions(path="{}/misssing.tsv"),
            r"no file \S*misssing\.tsv; did you mean 'missing\.tsx'",
        ),
        (MoleculeCaptions(path="{}/nowhere/x.tsv"), r"there is no file \S*nowhere/x\.tsv$"),
        (Reactions(path="{}/empty"), "empty is empty"),
        (MoleculeCaptions(path="{}/header.tsv"), "finds no rows"),
        (MoleculeCaptions(path="{}/one.tsv"), "has no column 'SMILES'; its header is C, CC"),
        (
            PairedLines(inputs="{}/one.tsv", targets="{}/two.tsv"),
            r"one\.tsv has 1 lines, \S*two\.tsv has 2: they must be aligned",
        ),
        (Reactions(path="{}/one.tsv", tasks=("forwards",)), "did you mean 'forward'"),
        (Reactions(path="{}/one.tsv", layout="csv"), "layout = 'csv' is unknown"),  # type: ignore[arg-type]
        (Reactions(path="{}/one.tsv/x"), r"one\.tsv is a file, and no archive that could hold x"),
        (Reactions(path="{}/damaged.gz"), r"damaged\.gz cannot be read"),
        (Reactions(path="{}/damaged.zip"), r"damaged\.zip cannot be read"),
        (Reactions(path="{}/damaged.tar.gz"), r"damaged\.tar\.gz cannot be read"),
        (
            Reactions(path="{}/two.zip"),
            r"holds 2 files; name one: \S*two\.zip/a\.tsv, \S*two\.zip/b\.tsv",
        ),
        (
            Reactions(path="{}/two.zip/aa.tsv"),
            r"two\.zip holds no aa\.tsv; did you mean 'a\.tsv'",
        ),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    tmp_path: pathlib.Path, reader: Any, message: str
) -> None:
    (tmp_path / "missing.tsx").touch()
    (tmp_path / "empty").touch()
    write(tmp_path / "header.tsv", "SMILES\tdescription")
    write(tmp_path / "one.tsv", "C\tCC")
    write(tmp_path / "two.tsv", "C\tCC", "C\tCC")
    for name in ("damaged.gz", "damaged.zip", "damaged.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"C\tC\n" * 1000)[:-20])
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.tsv", "C\tC")
        archive.writestr("b.tsv", "C\tC")
    paths = {
        field.name: getattr(reader, field.name).replace("{}", str(tmp_path))
        for field in dataclasses.fields(reader)
        if isinstance(getattr(reader, field.name), str)
    }
    placed: Reader = dataclasses.replace(reader, **paths)
    with pytest.raises(ValueError, match=message):
        read([placed])


def test_compressed_and_archived_files_read_alike(tmp_path: pathlib.Path) -> None:
    data = "\ufeffC\tCC\r\nCO\tC\u2028C".encode()
    lines = [b"C\tCC", "CO\tC\u2028C".encode()]
    plain = tmp_path / "a.txt"
    plain.write_bytes(data)
    for name, compressed in (
        ("a.gz", gzip.compress(data)),
        ("a.bz2", bz2.compress(data)),
        ("a.xz", lzma.compress(data)),
    ):
        (tmp_path / name).write_bytes(compressed)
    for name in ("a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"):
        mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "tar": "w"}
        with tarfile.open(tmp_path / name, mode[name.split(".")[-1]]) as tar:  # type: ignore[call-overload]
            info = tarfile.TarInfo("data/a.txt")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data/a.txt", data)
    for file in sorted(tmp_path.iterdir()):
        assert read_lines(str(file)) == lines, file.name
    for name in ("a.zip", "a.tar.bz2"):
        assert read_lines(str(tmp_path / name / "data" / "a.txt")) == lines


def test_standard_sides() -> None:
    sides = [
        "OCC.[OH-]~[Na+]",
        "C(C)O",
        "C1.C1",  # a bond across the dot: ethane
        "C1.C",
        "[CH4:3]",
        "",
        "CC.",
    ]
    assert standardise(sides, canonical=True) == [
        "CCO.[Na+]~[OH-]",
        "CCO",
        "CC",
        None,
        "C",
        None,
        None,
    ]
    checked = standardise(sides, canonical=False)
    assert [side for side in checked if side is not None] == [*sides[:3], sides[4]]


def test_many_compounds_are_read_in_other_processes_and_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sides = ["OCC.C1CC", "C(C)O.N", "N.O~[Na+]", "C/C=C\\C"]
    # What would disturb lines of text between processes.
    sides += ["", "C\nC", "C\r", " C", "C\u2028.C", "\ud800", "Cé"]
    serial = standardise(sides, canonical=True)
    assert serial == [None, "CCO.N", "N.O~[Na+]", "C/C=C\\C", *[None] * 7]
    monkeypatch.setattr(smiles_module, "SERIAL", 0)
    assert standardise(sides, canonical=True) == serial
    kept = sorted(tmp_path.rglob("*.txt"))
    assert kept
    # What is kept is used: nothing is read again.
    monkeypatch.setattr(smiles_module, "_filter", None)
    assert standardise(sides, canonical=True) == serial
    with pytest.raises(TypeError):
        standardise(["CCCC"], canonical=True)


def test_without_a_cache_compounds_are_read_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(smiles_module, "SERIAL", 0)
    assert standardise(["OCC", "C1CC"], canonical=False) == ["OCC", None]


def test_mapped_reactions_become_the_derived_file(shared_data: pathlib.Path) -> None:
    folder = shared_data / "uspto480k"
    derived = gzip.decompress((folder / "test_10k_mixed_canonical.tsv.gz").read_bytes()).decode()
    raw = gzip.decompress((folder / "raw_test_10k.txt.gz").read_bytes()).decode()
    chosen = slice(6_000, 6_300)  # one of these rows is not valid
    sides = [line.split(" ")[0].split(">>") for line in raw.splitlines()[chosen]]
    found = zip(
        standardise([left for left, _ in sides], canonical=True),
        standardise([right for _, right in sides], canonical=True),
        strict=True,
    )
    expected = [tuple(line.split("\t")) for line in derived.splitlines()[chosen]]
    different = [
        (ours, theirs)
        for ours, theirs in zip(found, expected, strict=True)
        if (ours if None not in ours else ("", "")) != theirs
    ]
    assert different == []
    assert expected.count(("", "")) == 1


def test_the_shared_files_are_read_whole(shared_data: pathlib.Path) -> None:
    examples, report = read(
        [
            MoleculeCaptions(path=str(shared_data / "chebi20" / "test.txt")),
            PairedLines(
                inputs=str(shared_data / "paragraph2actions" / "src-train.txt"),
                targets=str(shared_data / "paragraph2actions" / "tgt-train.txt"),
            ),
            *(
                PromptedJsonl(path=str(shared_data / "gt4sd_sample" / f"{split}.jsonl"))
                for split in ("train", "valid", "test")
            ),
        ]
    )
    assert {name: len(rows) for name, rows in examples.items()} == {
        "molecule_to_text": 3_306,
        "text_to_molecule": 3_306,
        "paragraph_to_actions": 86,
        "forward": 6,
        "retrosynthesis": 6,
    }
    assert str(report) == "no bad row in 3,410"
    assert sum("\\" in e.target for e in examples["text_to_molecule"][:3_300]) == 484
    assert not any("\\\\" in e.target for e in examples["text_to_molecule"])
    assert all(chem.is_valid(e.target) for e in examples["text_to_molecule"][3_300:])
