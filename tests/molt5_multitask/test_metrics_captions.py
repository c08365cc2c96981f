"""METEOR, WordNet, tokens, and the published definition on a shared file of predictions."""

import functools
import tarfile
import warnings
import zipfile

import nltk
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate.meteor_score import meteor_score

from molt5_multitask.metrics.captions import caption_scores
from molt5_multitask.metrics.meteor import WordNet, load_wordnet, meteor
from molt5_multitask.metrics.scores import UnavailableError
from molt5_multitask.metrics.tokens import load_tokens

SYNSETS = {
    "noun": [["molecule", "particle"], ["acid"], ["dot_product", "acid", "LSD"], ["mouse"]],
    "verb": [["treat", "process"], ["run", "operate"], ["mouse"], ["process", "work_on"]],
    "adj": [["large", "big"], ["able(p)", "capable"], ["large", "prominent(a)"]],
    "adv": [["largely", "mostly"]],
}
EXCEPTIONS = {"noun": ["mice mouse"], "verb": ["ran run"], "adj": ["bigger big"], "adv": []}
WORDS = [
    *("molecule", "molecules", "particle", "particles", "acid", "acids", "lsd", "mouse", "mice"),
    *("treat", "treated", "treating", "treats", "process", "processes", "ran", "run", "running"),
    *("operate", "operates", "operating", "large", "larger", "largest", "big", "bigger", "able"),
    *("capable", "prominent", "largely", "mostly", "s", "es", "##ol", "12", ",", "unknown"),
    *("Acid", "dot_product"),
]
TOKENS = st.lists(st.sampled_from(WORDS), max_size=12)


def write_wordnet(folder):
    """Write a WordNet database of a few synsets, in the format of its files."""
    folder.mkdir(parents=True)
    licence = "  1 This is WordNet 3.0 Copyright 2006 by nobody  \n"
    for (pos, synsets), kind in zip(SYNSETS.items(), "nvar", strict=True):
        data, offsets = licence, {}
        for lemmas in synsets:
            for lemma in lemmas:
                offsets.setdefault(lemma.split("(")[0].lower(), []).append(len(data))
            words = " ".join(f"{lemma} 0" for lemma in lemmas)
            data += f"{len(data):08d} 00 {kind} {len(lemmas):02x} {words} 000 | a gloss  \n"
        (folder / f"data.{pos}").write_text(data)
        lines = [
            f"{lemma} {kind} {len(at)} 0 {len(at)} 0 {' '.join(f'{i:08d}' for i in at)}  \n"
            for lemma, at in sorted(offsets.items())
        ]
        (folder / f"index.{pos}").write_text(licence + "".join(lines))
        (folder / f"{pos}.exc").write_text("".join(line + "\n" for line in EXCEPTIONS[pos]))
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    for name in ("cntlist.rev", "index.sense"):
        (folder / name).write_text("")


@functools.cache
def nltk_reader(folder):
    nltk.data.path.append(str(folder.parents[1]))  # nltk opens no files elsewhere
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no multilingual functions
        return WordNetCorpusReader(str(folder), None)


@pytest.fixture(scope="module", autouse=True)
def nltk_paths_as_they_were():
    before = list(nltk.data.path)
    yield
    nltk.data.path[:] = before


@pytest.fixture(scope="module")
def wordnet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nltk_data") / "corpora" / "wordnet"
    write_wordnet(folder)
    return folder


def expected_synonyms(reader, word):
    lemmas = {lemma.name() for synset in reader.synsets(word) for lemma in synset.lemmas()}
    return {lemma for lemma in lemmas if "_" not in lemma} | {word}


def test_synonyms_equal_those_of_nltks_reader(wordnet_folder):
    ours, theirs = WordNet(wordnet_folder), nltk_reader(wordnet_folder)
    for word in map(str.lower, WORDS):
        assert ours.synonyms(word) == expected_synonyms(theirs, word), word
    assert ours.synonyms("mice") == {"mice", "mouse"}
    assert ours.synonyms("processes") == {"processes", "treat", "process"}
    assert "able" in ours.synonyms("capable")  # without its syntactic marker
    assert ours.version == "3.0"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=3))
def test_meteor_equals_nltk_on_random_tokens(wordnet_folder, rows):
    reader = nltk_reader(wordnet_folder)
    references, outputs = map(list, zip(*rows, strict=True))
    expected = [meteor_score([ref], out, wordnet=reader) for ref, out in rows]
    found = meteor(references, outputs, load_wordnet(str(wordnet_folder)).synonyms)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_wordnet_is_found_in_a_data_folder_or_zip_and_named_where_it_is_not(
    wordnet_folder, tmp_path, monkeypatch
):
    root = wordnet_folder.parents[1]
    assert "big" in load_wordnet(str(root)).synonyms("large")
    (tmp_path / "corpora").mkdir()
    with zipfile.ZipFile(tmp_path / "corpora" / "wordnet.zip", "w") as archive:
        for file in wordnet_folder.iterdir():
            archive.write(file, f"wordnet/{file.name}")
    assert "big" in load_wordnet(str(tmp_path)).synonyms("large")
    with pytest.raises(ValueError, match="holds no WordNet"):
        load_wordnet(str(tmp_path / "elsewhere"))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "elsewhere")])
    with pytest.raises(UnavailableError, match="--wordnet"):
        load_wordnet(None)
    monkeypatch.setattr("nltk.data.path", [str(root)])
    assert load_wordnet(None).version == "3.0"


def test_incomplete_wordnet_is_refused(wordnet_folder, tmp_path):
    (tmp_path / "index.noun").write_text("")
    with pytest.raises(ValueError, match=r"no WordNet database.*(exc|index|data)"):
        load_wordnet(str(tmp_path))


@pytest.fixture
def vocabulary(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "the", "mol", "##ecule", "is", "an", "acid", "-", "3"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return tmp_path


def test_word_pieces_of_captions(vocabulary):
    tokens = load_tokens("scibert", str(vocabulary))
    assert tokens.split(["The molecule\tis  an Acid-3.", "", "Ácid"]) == [
        ["the", "mol", "##ecule", "is", "an", "acid", "-", "3", "[UNK]"],
        [],
        ["acid"],
    ]
    assert len(tokens.split(["acid " * 600])[0]) == 512
    assert tokens.name == "SciBERT uncased word pieces (11)"


def test_vocabularies_that_are_not_there_or_no_vocabulary(vocabulary, tmp_path):
    with pytest.raises(UnavailableError, match=r"vocab\.txt.*allenai/scibert"):
        load_tokens("scibert", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold one file vocab\.txt; it holds none"):
        load_tokens("scibert", str(tmp_path / "empty"))
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"words\.txt is no WordPiece vocabulary"):
        load_tokens("scibert", str(tmp_path / "words.txt"))
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        load_tokens("scibert", str(tmp_path / "not there"))


def test_metrics_without_their_files_are_named_and_the_others_run(
    vocabulary, monkeypatch, tmp_path
):
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nowhere")])
    texts = ["the molecule is an acid", "an acid"], ["the molecule is an acid", "the acid"]
    scores = caption_scores(*texts)
    assert set(scores.missing) == {"BLEU-2", "BLEU-4", "METEOR"}
    assert scores.values["ROUGE-1"] == pytest.approx(0.75)
    scores = caption_scores(*texts, vocabulary=str(vocabulary))
    assert set(scores.missing) == {"METEOR"}
    assert 0 < scores.values["BLEU-2"] < 1
    scores = caption_scores(*texts, vocabulary=str(vocabulary), with_meteor=False)
    assert not scores.missing
    scores = caption_scores(*texts, tokens="whitespace", with_meteor=False)
    assert scores.notes["tokens of BLEU and METEOR"] == "whitespace-separated words"


def test_a_leading_cls_is_removed():
    plain = caption_scores(["an acid"], ["an acid"], tokens="whitespace", with_meteor=False)
    marked = caption_scores(["an acid"], ["[CLS] an acid"], tokens="whitespace", with_meteor=False)
    assert marked.values == plain.values
    assert plain.values["ROUGE-L"] == 1


@pytest.fixture(scope="module")
def wordnet_3(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    archive = shared_data / "metrics_assets" / "nltk_wordnet30_corpus.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


REFERENCE = {
    "scibert": [0.550817, 0.464362, 0.574488],
    "t5": [0.586891, 0.508262, 0.584438],
    "whitespace": [0.528403, 0.418261, 0.566944],
}
"""BLEU-2, BLEU-4 and METEOR of the shared file by kind of tokens; ROUGE has its own."""


def test_reference_values_of_the_shared_captions(shared_data, wordnet_3):
    file = shared_data / "predictions" / "molt5-base-smiles2caption.txt"
    rows = [line.split("\t") for line in file.read_text("utf-8").split("\n")[1:-1]]
    _, references, outputs = zip(*rows, strict=True)
    vocabulary = {
        "scibert": shared_data / "metrics_assets",
        "t5": shared_data / "tokenizer",
        "whitespace": "",
    }
    for kind, expected in REFERENCE.items():
        scores = caption_scores(
            references,
            outputs,
            tokens=kind,
            vocabulary=str(vocabulary[kind]),
            wordnet=str(wordnet_3),
        )
        assert len(rows) == scores.counts["rows"] == 3300
        found = [scores.values[name] for name in ("BLEU-2", "BLEU-4", "METEOR")]
        assert found == pytest.approx(expected, abs=1e-6)
        rouge = [scores.values[name] for name in ("ROUGE-1", "ROUGE-2", "ROUGE-L")]
        assert rouge == pytest.approx([0.633872, 0.484676, 0.576754], abs=1e-6)


def test_synonyms_of_wordnet_3_equal_nltks(wordnet_3):
    ours = load_wordnet(str(wordnet_3))
    theirs = nltk_reader(wordnet_3 / "corpora" / "wordnet")
    words = [
        *("acid", "dogs", "mice", "went", "better", "best", "able", "well", "mono", "s", "ses"),
        *("children's", "axes", "men", "wolves", "leaves", "dying", "ran", "thinnest", "capabl"),
        *("molecules", "deriv", "##ol", "-", "3", "12", "lsd", "galore"),
    ]
    for word in words:
        assert ours.synonyms(word) == expected_synonyms(theirs, word), word
