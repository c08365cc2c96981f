import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu

from molt5_multitask.metrics.actions import action_scores, is_valid

REFERENCES = [
    "PHASESEPARATION.",
    "CONCENTRATE; PURIFY; YIELD compound 162.",
    "STIR for 20 min at room temperature; ADD water; EXTRACT with dichloromethane.",
    "ADD water (5 ml).",
]
OUTPUTS = [
    "PHASESEPARATION.",
    "CONCENTRATE; PURIFY.",
    "STIR for 20 min at rt; ADD water; EXTRACT with dichloromethane.",
    "ADD water (5 mL).",
]


def test_golden_case():
    scores = action_scores(REFERENCES, OUTPUTS)
    assert scores.per_row["similarity"] == pytest.approx([1, 0.5, 0.818182, 0.941176], abs=1e-6)
    expected = {
        "accuracy 100%": 0.25,
        "accuracy 90%": 0.50,
        "accuracy 75%": 0.75,
        "similarity": 0.814840,
        "modified BLEU": 0.566697,
        "BLEU-2": 0.596834,
        "BLEU-4": 0.459862,
        "validity": 1.0,
    }
    assert scores.values == pytest.approx(expected, abs=1e-6)


SENTENCES = st.lists(st.sampled_from(["ADD", "water;", "STIR.", "5"]), max_size=6).map(" ".join)


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=4))
def test_modified_bleu_equals_nltk_on_padded_words(rows):
    def padded(text):
        return text.split() + [""] * (4 - len(text.split()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no match of some order
        expected = corpus_bleu([[padded(a)] for a, _ in rows], [padded(b) for _, b in rows])
    scores = action_scores(*map(list, zip(*rows, strict=True)))
    assert scores.values["modified BLEU"] == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    "sequence",
    [
        "NOACTION.",
        "ADD 2M HCl (5 ml, 3 mmol) dropwise at 0 °C under argon over 5 minutes; STIR.",
        "STIR for 2 h at 60 °C under nitrogen; REFLUX for 1 h with Dean-Stark apparatus.",
        "MAKESOLUTION with A (1 g) and B; ADD SLN; COLLECTLAYER organic; FILTER keep filtrate.",
        "SETTEMPERATURE r.t..",
        "PH with NaOH to pH 9; PARTITION with water and ether; WASH with brine 3 x; YIELD a (2 g).",
    ],
)
def test_sequences_of_the_grammar(sequence):
    assert is_valid(sequence)


@pytest.mark.parametrize(
    "sequence",
    [
        "",
        ".",
        "NOACTION",  # no end: perhaps cut off
        "Stir for 2 h.",
        "BAKE for 2 h.",
        "ADD.",
        "PURIFY by column.",
        "COLLECTLAYER upper.",
        "MAKESOLUTION with A.",
        "PARTITION with A and B and C.",
        "STIR 2 h.",
        "WAIT at 60 °C.",
        "FILTER keep solid.",
        "ADD water; .",
        "PHASESEPARATIONS.",
    ],
)
def test_sequences_outside_the_grammar(sequence):
    assert not is_valid(sequence)


def test_validity_counts_all_rows():
    scores = action_scores(["STIR.", "STIR.", "STIR."], ["STIR.", "", "STIR"])
    assert scores.values["validity"] == pytest.approx(1 / 3)
    assert scores.counts["empty outputs"] == 1


def test_annotated_actions_are_in_the_grammar(shared_data):
    folder = shared_data / "paragraph2actions"
    targets = [
        line
        for split in ("train", "valid", "test")
        for line in (folder / f"tgt-{split}.txt").read_text("utf-8").splitlines()
    ]
    assert len(targets) == 100
    bad = [target for target in targets if not is_valid(target)]
    assert bad == ["INVALIDACTION."] * 3  # the annotators' mark of a sentence outside it
