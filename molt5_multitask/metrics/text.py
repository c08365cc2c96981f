"""BLEU and ROUGE, equal to nltk's `corpus_bleu` and to rouge-score, over a whole corpus at once."""

import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from rapidfuzz.distance import LCSseq

Tokens = Sequence[str]
"""The tokens of one text; a string is the sequence of its characters."""


def ngram_matches(
    references: Sequence[Tokens], outputs: Sequence[Tokens], order: int
) -> Int[np.ndarray, "order rows"]:
    """Count, row by row, the n-grams of the output that its reference has too, for n = 1..order.

    An n-gram counts at most as often as the reference holds it (the clipped counts of BLEU, the
    overlap of ROUGE).
    """
    rows = len(references)
    table: dict[str, int] = {}
    texts = [*references, *outputs]
    tokens = np.array([table.setdefault(t, len(table)) for text in texts for t in text], np.int64)
    text = np.repeat(np.arange(2 * rows), [len(text) for text in texts])
    matches = np.zeros((order, rows), np.int64)
    # An n-gram is the number of its first n - 1 tokens times the vocabulary plus its last token.
    grams, size = tokens, len(table)
    for n in range(1, order + 1):
        if n > 1:
            if size * len(table) * rows >= 2**63:  # number the n-grams that occur, lest it overflow
                known, grams = np.unique(grams, return_inverse=True)
                size = len(known)
            grams = grams[:-1] * len(table) + tokens[n - 1 :]
            size *= len(table)
        within = text[: len(grams)] == text[n - 1 :]
        where = text[: len(grams)][within]
        keys = where % rows * size + grams[within] if rows else where
        reference, in_reference = np.unique(keys[where < rows], return_counts=True)
        output, in_output = np.unique(keys[where >= rows], return_counts=True)
        both, i, j = np.intersect1d(reference, output, assume_unique=True, return_indices=True)
        np.add.at(matches[n - 1], both // max(size, 1), np.minimum(in_reference[i], in_output[j]))
    return matches


def bleu(
    references: Sequence[Tokens], outputs: Sequence[Tokens], *, orders: Sequence[int] = (2, 4)
) -> dict[int, float]:
    r"""Corpus BLEU of one reference a row, without smoothing (Papineni et al., 2002).

    .. math:: \min(1, e^{1 - r/c}) \prod_{n=1}^{N} p_n^{1/N}

    with r and c the tokens of all references and outputs, and p_n the matched n-grams of all rows
    over the n-grams of all outputs. As in nltk, an output shorter than n counts as one n-gram.

    Args:
      references: tokens of each reference.
      outputs: tokens of each output.
      orders: the N to return.

    Returns:
      BLEU-N by N; 0 where some p_n is 0.
    """
    matches = ngram_matches(references, outputs, max(orders)).sum(1)
    lengths = np.array([len(output) for output in outputs], np.int64)
    totals = [int(np.maximum(lengths - n + 1, 1).sum()) for n in range(1, max(orders) + 1)]
    written, wanted = int(lengths.sum()), sum(len(reference) for reference in references)
    if not written:
        return dict.fromkeys(orders, 0.0)
    brevity = min(0.0, 1 - wanted / written)

    def score(order: int) -> float:
        if not matches[:order].all():
            return 0.0
        logs = [math.log(m / t) for m, t in zip(matches[:order], totals, strict=False)]
        return math.exp(brevity + math.fsum(logs) / order)

    return {order: score(order) for order in orders}


def rouge_tokens(text: str) -> list[str]:
    """Split as rouge-score does without stemming: runs of ASCII letters and digits, lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge(
    references: Sequence[str], outputs: Sequence[str]
) -> dict[str, Float[np.ndarray, " rows"]]:
    """F1 of ROUGE-1, ROUGE-2 (n-gram overlap) and ROUGE-L (longest common subsequence), by row.

    The texts are raw strings; a row with nothing to match scores 0.
    """
    expected = [rouge_tokens(text) for text in references]
    found = [rouge_tokens(text) for text in outputs]
    lengths = np.array([[len(a), len(b)] for a, b in zip(expected, found, strict=True)])
    lengths = lengths.reshape(-1, 2).T

    def f1(matches: np.ndarray, n: int = 1) -> np.ndarray:
        # 2PR/(P+R) with P = matches / output and R = matches / reference
        total = np.maximum(lengths - n + 1, 0).sum(0)
        return 2 * matches / np.maximum(total, 1)

    unigrams, bigrams = ngram_matches(expected, found, 2)
    longest = np.array(
        [LCSseq.similarity(a, b) for a, b in zip(expected, found, strict=True)], np.int64
    )
    return {"ROUGE-1": f1(unigrams), "ROUGE-2": f1(bigrams, 2), "ROUGE-L": f1(longest)}
