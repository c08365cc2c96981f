import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu
from rouge_score import rouge_scorer

from molt5_multitask.metrics import text

WORDS = st.lists(st.sampled_from(["a", "b", "c", "ring", ""]), max_size=9)
CORPUS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4)
# Letters that fold, digits, marks, and characters whose lower case is longer or not ASCII.
PROSE = st.text(alphabet="abAB1 9-,.é\tİ\u212a", max_size=40)


def nltk_bleu(references, outputs, order):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no match of some order
        weights = (1 / order,) * order
        return float(corpus_bleu([[ref] for ref in references], outputs, weights=weights))


@given(CORPUS)
def test_bleu_equals_nltk_on_random_tokens(corpus):
    references, outputs = map(list, zip(*corpus, strict=True))
    found = text.bleu(references, outputs, orders=(1, 2, 4))
    for order, value in found.items():
        assert value == pytest.approx(nltk_bleu(references, outputs, order), abs=1e-12)


@given(st.lists(st.tuples(st.text("CN(=)\\", max_size=30), st.text("CN(=)\\", max_size=30))))
def test_bleu_of_strings_is_over_characters(pairs):
    pairs = [*pairs, ("CCO", "CCN")]
    references, outputs = map(list, zip(*pairs, strict=True))
    expected = nltk_bleu([list(ref) for ref in references], [list(out) for out in outputs], 4)
    assert text.bleu(references, outputs, orders=(4,))[4] == pytest.approx(expected, abs=1e-12)


def test_short_outputs_count_one_ngram_and_long_outputs_are_not_rewarded():
    # p1 = 2/2, p2 = 1/2 (the one-word output counts one bigram); r = c.
    assert text.bleu([["a"], ["b"]], [["a"], ["b"]])[2] == 0  # no bigram matches
    value = text.bleu([["a", "b"], ["c"]], [["a", "b"], ["c"]])[2]
    assert value == pytest.approx((3 / 3 * 1 / 2) ** 0.5)
    # The output is half as long as the reference: factor e^(1 - 2).
    value = text.bleu([["a", "b", "c", "d"]], [["a", "b"]])[2]
    assert value == pytest.approx(np.exp(1 - 2))


def test_ngrams_of_a_large_vocabulary_do_not_collide():
    rng = np.random.default_rng(0)
    words = [f"word {i}" for i in range(70_000)]  # 70,000^4 does not fit in 64 bits
    references = [words, [words[i] for i in rng.integers(0, len(words), 50_000)]]
    outputs = [words[:30_000] + words[40_000:], references[1][::-1]]
    found = text.ngram_matches(references, outputs, 4)
    assert found[:, 0].tolist() == [60_000, 59_998, 59_996, 59_994]
    assert found[0, 1] == 50_000
    assert found[3, 1] < 3


def test_no_rows_match_nothing():
    assert text.ngram_matches([], [], 2).shape == (2, 0)
    assert text.bleu([[]], [[]]) == {2: 0.0, 4: 0.0}


@given(st.lists(st.tuples(PROSE, PROSE), min_size=1, max_size=4))
def test_rouge_equals_rouge_score_on_random_strings(pairs):
    references, outputs = map(list, zip(*pairs, strict=True))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    expected = [scorer.score(reference, output) for reference, output in pairs]
    found = text.rouge(references, outputs)
    for ours, theirs in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
        fmeasures = [scores[theirs].fmeasure for scores in expected]
        np.testing.assert_allclose(found[ours], fmeasures, atol=1e-12)


def test_rouge_does_not_stem():
    found = text.rouge(["the acids"], ["the acid"])
    assert found["ROUGE-1"][0] == pytest.approx(0.5)
    assert found["ROUGE-2"][0] == 0
