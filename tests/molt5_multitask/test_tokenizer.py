r"""The real T5 vocabulary, from either of its files, and what its tokenizer promises."""

import hashlib
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from molt5_multitask import spiece
from molt5_multitask.corpus.vocabulary import train_vocabulary
from molt5_multitask.tasks import CAPTION_MOLECULE, TASKS
from molt5_multitask.tokenizer import Tokenizer

CAPTION = TASKS["molecule_to_text"]
DESIGN = TASKS["text_to_molecule"]
FORWARD = TASKS["forward"]


@pytest.fixture(scope="module", params=["tokenizer.json", "spiece.model"])
def t5(
    request: pytest.FixtureRequest,
    shared_data: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Tokenizer:
    """The T5 vocabulary from a folder that holds only one of its files."""
    folder = tmp_path_factory.mktemp("vocabulary")
    shutil.copy(shared_data / "tokenizer" / request.param, folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """A vocabulary of its own, which covers all characters of these texts."""
    texts = [task.prompt for task in TASKS.values()] + [r"C/C=C\C", "[Na+]~[OH-].CO", "water"]
    return train_vocabulary(texts, size=120)


def test_golden_ids(t5: Tokenizer) -> None:
    golden = {
        "translate English to German: The house is wonderful.": (
            "13959 1566 12 2968 10 37 629 19 1627 5 1"
        ),
        "Caption the following SMILES: CCO": "4000 1575 8 826 180 7075 12335 10 205 5911 1",
        r"C/C=C\C": "205 87 254 2423 254 2 254 1",
        "[Na+]~[OH-].CO": "784 567 9 1220 908 2 6306 9195 18 4275 5911 1",
    }
    for text, ids in golden.items():
        assert t5.encode_target(text) == [int(i) for i in ids.split()]
    assert t5.encode_source(CAPTION, "CCO") == t5.encode_target("Caption the following SMILES: CCO")
    assert t5.vocab_size == 32_100


def test_adjacent_unknown_characters_fuse(t5: Tokenizer) -> None:
    assert t5.encode_target(r"C\\C") == t5.encode_target(r"C\C")


def test_sentinels_count_down(t5: Tokenizer) -> None:
    assert t5.encode_target("<extra_id_0> <extra_id_99>") == [32_099, 32_000, 1]


def test_the_sentencepiece_file_gives_the_ids_of_the_fast_one(shared_data: pathlib.Path) -> None:
    path = shared_data / "tokenizer" / "spiece.model"
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("d60acb128cf7b7f2536e8f38a5b1")
    ours = spiece.read(path)
    reference = tokenizers.Tokenizer.from_file(str(shared_data / "tokenizer" / "tokenizer.json"))
    texts = (shared_data / "chebi20" / "test.txt").read_text().splitlines()[:500]
    # Normalisation, outer and inner spaces, text that looks like special tokens, and none.
    texts += ["  two  spaces ", "25℃ µl ½", "a<extra_id_7> b", "</s>", "−α → β", ""]
    for text in texts:
        expected = reference.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, text


def test_test_targets_come_back(shared_data: pathlib.Path, t5: Tokenizer) -> None:
    lines = (shared_data / "chebi20" / "test.txt").read_text().splitlines()[1:]
    smiles = [line.split("\t")[1].replace("\\\\", "\\") for line in lines]
    encoded = t5.encode_many(smiles)
    assert len(smiles) == 3_300
    assert [t5.decode_output(DESIGN, encoded[i]) for i in range(3_300)] == smiles


def test_restoration_is_the_tasks(t5: Tokenizer) -> None:
    ids = t5.encode_target("[Na+]~[OH-].CO")
    assert t5.decode_output(FORWARD, ids) == "[Na+]~[OH-].CO"
    assert t5.decode_output(DESIGN, ids) == r"[Na+]\[OH-].CO"
    assert t5.decode_output(CAPTION, ids) == "[Na+]<unk>[OH-].CO"


def test_decoding_ends_at_eos_and_drops_start_and_padding(t5: Tokenizer) -> None:
    ids = t5.encode_target("CCO")
    assert t5.decode_output(DESIGN, [0, *ids, 205, 0, 0]) == "CCO"
    assert t5.decode_output(DESIGN, np.array([0, *ids[:-1]])) == "CCO"
    assert t5.decode_output(DESIGN, []) == ""
    # A model of 32,128 rows may write an id that has no string.
    assert t5.decode_output(DESIGN, [ids[0], 32_127, *ids[1:]]) == "CCO"


def test_too_long_a_source_loses_its_end_and_is_counted(small: Tokenizer) -> None:
    long = "CO" * 40
    whole = small.encode_source(CAPTION, long)
    encoded = small.encode_sources(CAPTION, [long, "C"], max_length=30)
    assert encoded[0].tolist() == [*whole[:29], 1]
    assert encoded.cut.tolist() == [len(whole) - 30, 0]
    assert encoded.lengths.tolist() == [30, len(small.encode_source(CAPTION, "C"))]


def test_a_length_that_just_fits_cuts_nothing(small: Tokenizer) -> None:
    whole = small.encode_source(CAPTION, "CO")
    encoded = small.encode_sources(CAPTION, ["CO"], max_length=len(whole))
    assert encoded[0].tolist() == whole
    assert not encoded.cut.any()


def test_a_prompt_is_never_cut(small: Tokenizer) -> None:
    prompt = len(small.encode_target(CAPTION.prompt.rstrip())) - 1
    # The prompt, one token of the input, and eos.
    assert (
        small.encode_source(CAPTION, "CO", prompt + 2)[:prompt]
        == small.encode_target(CAPTION.prompt.rstrip(), prompt + 1)[:-1]
    )
    with pytest.raises(ValueError, match=rf"molecule_to_text: its prompt.*maximum of {prompt + 1}"):
        small.encode_source(CAPTION, "CO", prompt + 1)


def test_the_other_caption_prompt_gives_other_ids(small: Tokenizer) -> None:
    assert small.encode_source(CAPTION, "C") != small.encode_source(CAPTION_MOLECULE, "C")


def test_empty_texts_encode_to_eos(small: Tokenizer) -> None:
    encoded = small.encode_many(["", "CO", ""])
    assert [encoded[i].tolist() for i in range(3)] == [[1], small.encode_target("CO"), [1]]
    assert len(small.encode_many([])) == 0


def test_a_saved_vocabulary_is_the_same_for_us_and_for_transformers(
    small: Tokenizer, tmp_path: pathlib.Path
) -> None:
    import transformers

    small.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (r"C/C=C\C", "[Na+]~[OH-].CO", "unseen Ж"):
        assert again.encode_target(text) == small.encode_target(text)
        assert theirs(text).input_ids == small.encode_target(text)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)


def test_a_vocabulary_with_other_special_ids_is_refused() -> None:
    other = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "<pad>": 1, "<unk>": 2}, "<unk>"))
    with pytest.raises(ValueError, match="<pad> has id 1, T5 needs 0"):
        Tokenizer(other)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"neither a tokenizer\.json nor a spiece\.model"):
        Tokenizer.load(tmp_path)


def test_a_name_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="nowhere/t5 is not a folder, and the hub does not give"):
        Tokenizer.load("nowhere/t5")


@pytest.mark.parametrize("content", [b"", b"no model at all, only text", b"\x0a\xff\xff\xff\x0f"])
def test_a_damaged_sentencepiece_file_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"spiece\.model is not a SentencePiece model"):
        Tokenizer.load(tmp_path)
