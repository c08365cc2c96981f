r"""What the T5 vocabulary cannot write comes back: `\` in a SMILES, `\` or `~` in a reaction."""

import gzip
import json
import pathlib
import re

import pytest

from molt5_multitask.restore import MAX_SEARCHED_MARKS, UNKNOWN, restore


def lose(text: str) -> str:
    """What decoding gives: adjacent unknown characters fuse into one piece."""
    return re.sub(r"[\\~]+", UNKNOWN, text)


def test_a_molecule_gets_backslashes_only() -> None:
    assert restore(lose(r"C/C=C\C"), "smiles") == r"C/C=C\C"
    # Even where a tilde would make more sense: the task's outputs have none.
    assert restore(f"[Na+]{UNKNOWN}[OH-]", "smiles") == r"[Na+]\[OH-]"


@pytest.mark.parametrize("kind", ["text", "actions"])
def test_prose_is_left_as_decoded(kind: str) -> None:
    assert restore(f"5 {UNKNOWN}m", kind) == f"5 {UNKNOWN}m"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "reaction",
    [
        r"C/C=C\C",
        "[Na+]~[OH-].CO",
        # Both in one compound; fragments are sorted, which puts bare ions last.
        r"CC/C=C\C(=O)[O-]~[Na+]",
        r"O=C([O-])/C=C\c1ccccc1~[K+].CCO",
        # Two bonds whose geometry needs both marks.
        r"O=C(O)/C=C\C=C/C.O=C([O-])[O-]~[K+]~[K+]",
        "CCO.ClCCl",
    ],
)
def test_a_reaction_gets_the_assignment_that_defines_most_double_bonds(reaction: str) -> None:
    assert restore(lose(reaction), "reaction") == reaction


def test_without_double_bonds_the_tilde_is_preferred() -> None:
    assert restore(f"[Cl-]{UNKNOWN}CC", "reaction") == "[Cl-]~CC"


def test_an_invalid_compound_does_not_hinder_the_others() -> None:
    assert restore(rf"C1CC.C/C=C{UNKNOWN}C", "reaction") == r"C1CC.C/C=C\C"


def test_many_marks_are_not_searched() -> None:
    polyene = "C" + r"/C=C\C" * (MAX_SEARCHED_MARKS + 1)
    assert restore(lose(polyene), "reaction") == polyene


def test_real_reactions_come_back(shared_data: pathlib.Path) -> None:
    texts = []
    for name in ("valid", "test", "train_reconstructed"):
        with gzip.open(shared_data / f"uspto50k_standard/{name}.tsv.gz", "rt") as lines:
            texts += [side for line in lines for side in line.rstrip("\n").split("\t")]
    texts = [text for text in texts if "\\" in text]
    assert len(texts) == 786
    assert [restore(lose(text), "reaction") for text in texts] == texts


def test_the_published_samples_come_back(shared_data: pathlib.Path) -> None:
    texts = []
    for file in sorted((shared_data / "gt4sd_sample").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            texts += [row["source"].split(": ", 1)[1], row["target"]]
    texts = [text for text in texts if "~" in text]
    assert len(texts) == 8
    assert [restore(lose(text), "reaction") for text in texts] == texts
