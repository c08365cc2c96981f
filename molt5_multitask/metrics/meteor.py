"""METEOR, equal to nltk's `meteor_score` with one reference, and the synonyms of WordNet 3.0."""

import collections
import functools
import itertools
import pathlib
import re
import zipfile
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from molt5_multitask.metrics.scores import UnavailableError, track

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5
ENDINGS = {
    "noun": ["s", "ses s", "ves f", "xes x", "zes z", "ches ch", "shes sh", "men man", "ies y"],
    "verb": ["s", "ies y", "es e", "es", "ed e", "ed", "ing e", "ing"],
    "adj": ["er", "est", "er e", "est e"],
    "adv": [],
}
"""Inflected endings and what replaces them, by part of speech (WordNet's morphy)."""

Word = tuple[int, str]
"""A token with its place in the text."""


class WordNet:
    """Synonyms out of the files of the WordNet database, read in a fraction of nltk's time."""

    def __init__(self, folder: pathlib.Path | zipfile.Path) -> None:
        """Read `index.*`, `data.*` and `*.exc` from a folder or from inside a zip file.

        Raises:
          ValueError: if one of the files is not there.
        """
        self._index: dict[str, dict[str, str]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        self._data: dict[str, bytes] = {}
        self._synonyms: dict[str, frozenset[str]] = {}
        for pos in ENDINGS:
            try:
                index = (folder / f"index.{pos}").read_text("utf-8")
                exceptions = (folder / f"{pos}.exc").read_text("utf-8")
                self._data[pos] = (folder / f"data.{pos}").read_bytes()
            except (OSError, KeyError) as error:
                raise ValueError(f"{folder} is no WordNet database: {error}") from error
            self._index[pos] = {line.partition(" ")[0]: line for line in index.split("\n")}
            terms = [line.split() for line in exceptions.split("\n") if line]
            self._exceptions[pos] = {first: rest for first, *rest in terms}
        licence = re.search(rb"WordNet (\d+\.\d+) Copyright", self._data["noun"][:4096])
        self.version = licence[1].decode() if licence else "unknown"

    def synonyms(self, word: str) -> frozenset[str]:
        """Return the one-word lemmas of all synsets of a word in lower case, and the word."""
        if word not in self._synonyms:
            lemmas = {word}
            for pos in ENDINGS:
                for form in self._base_forms(word, pos):
                    lemmas |= self._lemmas(form, pos)
            self._synonyms[word] = frozenset(lemmas)
        return self._synonyms[word]

    def _base_forms(self, word: str, pos: str) -> set[str]:
        if word in self._exceptions[pos]:
            forms = self._exceptions[pos][word]
        else:
            pairs = [ending.partition(" ")[::2] for ending in ENDINGS[pos]]
            forms = [word.removesuffix(old) + new for old, new in pairs if word.endswith(old)]
        return {form for form in (word, *forms) if form and form in self._index[pos]}

    def _lemmas(self, form: str, pos: str) -> set[str]:
        # index line: lemma, part of speech, number of synsets, ..., offsets of the synsets
        fields = self._index[pos][form].split()
        data, lemmas = self._data[pos], set()
        for start in map(int, fields[len(fields) - int(fields[2]) :]):
            # data line: offset, file, type, number of lemmas (hex), then lemma and id in turn
            synset = data[start : data.index(b"\n", start)].decode().split()
            for lemma in synset[4 : 4 + 2 * int(synset[3], 16) : 2]:
                if "_" not in lemma:
                    lemmas.add(re.sub(r"\([^()]*\)$", "", lemma))
        return lemmas


def load_wordnet(folder: str | None) -> WordNet:
    """Open WordNet: in a folder, or where nltk keeps its downloads.

    Args:
      folder: the database, or a folder with `corpora/wordnet` or `corpora/wordnet.zip` in it.

    Raises:
      UnavailableError: if no folder is given, and nltk has not downloaded it either.
      ValueError: if the folder holds no such database.
    """
    if folder is not None:
        places = [pathlib.Path(folder)]
    else:
        import nltk  # slow to import, and needed by METEOR only

        places = [pathlib.Path(place) for place in nltk.data.path]
    for place in places:
        for path in (place, place / "corpora" / "wordnet"):
            if (path / "index.noun").is_file():
                return _open(path)
        if (path := place / "corpora" / "wordnet.zip").is_file():
            return _open(path)
    if folder is not None:
        raise ValueError(f"{folder} holds no WordNet: no index.noun, no corpora/wordnet in it")
    raise UnavailableError(
        "needs WordNet 3.0: --wordnet with a folder that holds corpora/wordnet, or "
        "`python -m nltk.downloader wordnet`"
    )


@functools.cache
def _open(path: pathlib.Path) -> WordNet:
    return WordNet(zipfile.Path(path, "wordnet/") if path.suffix == ".zip" else path)


@functools.cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # slow to import, and needed by METEOR only

    return functools.cache(PorterStemmer().stem)


def meteor(
    references: Sequence[Sequence[str]],
    outputs: Sequence[Sequence[str]],
    synonyms: Callable[[str], Collection[str]],
    *,
    progress: bool = False,
) -> Float[np.ndarray, " rows"]:
    r"""METEOR of each row on given tokens (Lavie & Agarwal, 2007, in nltk's form).

    .. math:: \left(1 - 0.5 (c/m)^3\right) \frac{P R}{0.9 P + 0.1 R}

    with m matched tokens in c chunks, P = m / output length and R = m / reference length. Tokens
    are matched as they are, then by their Porter stems, then as synonyms (of the stems); always
    from the end of the output, with the last free token of the reference.

    Args:
      references: tokens of each reference.
      outputs: tokens of each output.
      synonyms: the words that a word may be matched with, itself among them.
      progress: show a progress bar.
    """
    pairs: Any = list(zip(references, outputs, strict=True))
    pairs = track(pairs, "METEOR", enabled=progress)
    return np.array([_score(list(ref), list(out), synonyms) for ref, out in pairs], np.float64)


def _score(reference: list[str], output: list[str], synonyms: Callable[..., Any]) -> float:
    pairs = _align(reference, output, synonyms)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(output), len(pairs) / len(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 1 + sum((i + 1, j + 1) != following for (i, j), following in itertools.pairwise(pairs))
    return (1 - GAMMA * (chunks / len(pairs)) ** BETA) * mean


def _align(
    reference: list[str], output: list[str], synonyms: Callable[..., Any]
) -> list[tuple[int, int]]:
    """Return the matched places (output, reference), in the order of the output."""
    stem = _stemmer()
    wanted = [(place, token.lower()) for place, token in enumerate(reference)]
    written = [(place, token.lower()) for place, token in enumerate(output)]
    exact, wanted, written = _match(wanted, written)
    wanted = [(place, stem(word)) for place, word in wanted]
    written = [(place, stem(word)) for place, word in written]
    stems, wanted, written = _match(wanted, written)
    related, _, _ = _match(wanted, written, synonyms)
    return sorted(exact + stems + related)


def _match(
    wanted: list[Word],
    written: list[Word],
    alternatives: Callable[[str], Collection[str]] | None = None,
) -> tuple[list[tuple[int, int]], list[Word], list[Word]]:
    """Match from the end of the output, each word with itself or one of its alternatives.

    Returns:
      The pairs of places (output, reference), and the words left of the reference and the output.
    """
    free: dict[str, list[int]] = collections.defaultdict(list)
    for place, word in wanted:
        free[word].append(place)
    pairs, left, taken = [], [], set()
    for place, word in reversed(written):
        places = free.get(word)
        if alternatives is not None:
            options = [free[other] for other in alternatives(word) if free.get(other)]
            places = max(options, key=lambda places: places[-1], default=None)
        if places:
            there = places.pop()
            taken.add(there)
            pairs.append((place, there))
        else:
            left.append((place, word))
    return pairs, [word for word in wanted if word[0] not in taken], left[::-1]
