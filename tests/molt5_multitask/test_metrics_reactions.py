import pytest

from molt5_multitask.metrics.reactions import (
    RecordedForward,
    reaction_scores,
    round_trip_scores,
)
from molt5_multitask.metrics.scores import UnavailableError


def test_top_k_compares_sets_of_molecules_and_keeps_the_rank_of_bad_beams():
    references = ["CO.c1ccccc1", "[Na+]~[OH-].CCO", "CCN"]
    beams = [
        ["C1CC", "[CH3:7][OH:2].C1=CC=CC=C1", "CO", "CC"],  # invalid, then right though mapped
        ["OCC.[OH-].[Na+]", "CCO", "CCO", "CCO"],  # right in another order, with dots
        ["CCC", "CCC", "CCC", "C(C)N"],  # duplicates keep their rank
    ]
    values = reaction_scores(references, beams, ranks=(1, 2, 3, 4, 5)).values
    assert [values[f"top-{k}"] for k in (1, 2, 3, 4)] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert "top-5" not in values


def test_maxfrag_asks_for_the_largest_molecule_only():
    references = ["c1ccccc1.[Na+]", "CCO.CCCCC", "CC"]
    beams = [["c1ccccc1.CO"], ["CCCCC"], ["C"]]
    values = reaction_scores(references, beams).values
    assert values["top-1"] == 0
    assert values["MaxFrag top-1"] == pytest.approx(2 / 3)


def test_every_row_counts_also_those_that_cannot_be_read():
    values = reaction_scores(["CCO", "", "C1CC"], [["OCC"], [""], ["C1CC"]]).values
    assert values["top-1"] == pytest.approx(1 / 3)
    assert values["MaxFrag top-1"] == pytest.approx(1 / 3)


def test_stereochemistry_matters():
    values = reaction_scores(
        ["C[C@H](N)C(=O)O"] * 2, [["C[C@@H](N)C(=O)O"], ["CC(N)C(=O)O"]]
    ).values
    assert values["top-1"] == 0


def test_round_trip_asks_the_forward_model_for_each_beam_once():
    asked = []

    class Dehydration:
        name = "by rote"

        def __call__(self, precursors):
            asked.extend(precursors)
            return ["O(C)CC" if text == "CO.CCO" else "" for text in precursors]

    products = ["CCOC", "CCOC", "CCOC"]
    beams = [["CO.CCO", "C1CC"], ["CC", "CO.CCO"], ["C1CC", "CC"]]
    scores = round_trip_scores(products, beams, Dehydration(), ranks=(1, 2))
    assert sorted(asked) == ["CC", "CO.CCO"]  # not the invalid one
    assert scores.values["round trip top-1"] == pytest.approx(1 / 3)
    assert scores.values["round trip top-2"] == pytest.approx(2 / 3)
    assert scores.notes == {"forward model of the round trip": "by rote"}


def test_round_trip_without_what_it_needs():
    forward = RecordedForward(name="half", products={"CO.CCO": "CCOC"})
    assert round_trip_scores(["CCOC"], [["CO.CCO"]], forward).values["round trip top-1"] == 1
    with pytest.raises(ValueError, match=r"half lack 1 of 2 inputs, among them 'CC'"):
        round_trip_scores(["CCOC", "CCOC"], [["CO.CCO"], ["CC"]], forward)
    with pytest.raises(UnavailableError, match="forward model"):
        round_trip_scores(["CCOC"], [["CO.CCO"]], None)
    with pytest.raises(UnavailableError, match="input"):
        round_trip_scores(None, [["CO.CCO"]], forward)
