"""SMILES augmentation: other strings of the same molecules, by the seed alone."""

import numpy as np
import pytest

from molt5_multitask import chem
from molt5_multitask.corpus.vocabulary import train_vocabulary
from molt5_multitask.data.augment import randomise
from molt5_multitask.data.batches import MixedData
from molt5_multitask.tasks import TASKS, Example

MOLECULES = (
    "CC(=O)Oc1ccccc1C(=O)O",
    r"C/C=C\CO",
    "C[C@H](N)C(=O)O",
    "O=C([O-])c1ccccc1.[Na+]",
)


@pytest.mark.parametrize("smiles", MOLECULES)
def test_a_molecule_stays_the_same_molecule(smiles: str) -> None:
    texts = {randomise(smiles, "smiles", seed) for seed in range(40)}
    assert len(texts) > 4
    assert {chem.canonical(text) for text in texts} == {chem.canonical(smiles)}


def test_a_reaction_keeps_its_compounds_and_their_salts() -> None:
    side = "CCO.CC(=O)O.[Na+]~[OH-]"
    texts = {randomise(side, "reaction", seed) for seed in range(60)}
    assert len(texts) > 20
    assert all("[Na+]~[OH-]" in text.split(".") for text in texts)
    assert {chem.molecules(text) for text in texts} == {chem.molecules(side)}
    assert len({tuple(chem.canonical(c) for c in text.split(".")) for text in texts}) == 6


def test_the_seed_alone_decides() -> None:
    for kind in ("smiles", "reaction"):
        assert randomise(MOLECULES[0], kind, 7) == randomise(MOLECULES[0], kind, 7)
        assert randomise(MOLECULES[0], kind, 7) != randomise(MOLECULES[0], kind, 8)


def test_text_is_left() -> None:
    assert randomise("CCO", "text", 3) == randomise("CCO", "actions", 4) == "CCO"


def test_an_invalid_molecule_is_named() -> None:
    with pytest.raises(ValueError, match="'C1CC' is not a valid SMILES"):
        randomise("C1CC", "smiles", 0)


def augmented(share: float, step: int, **changes: int) -> list[tuple[str, str]]:
    """Return source and target texts of a batch of captions and designs."""
    rows = [(m, f"number {i}") for i, m in enumerate(MOLECULES)]
    examples = {
        "molecule_to_text": [Example("molecule_to_text", m, t) for m, t in rows],
        "text_to_molecule": [Example("text_to_molecule", t, m) for m, t in rows],
    }
    texts = [TASKS[name].prompt for name in examples] + [text for row in rows for text in row]
    tokenizer = train_vocabulary([*texts, "(()()[]12", "CCNO"], size=150)
    options = {"batch_size": 32, "seed": 0, "input_length": 64, "target_length": 64, **changes}
    data = MixedData(examples, tokenizer, packed=False, augment=share, **options)  # type: ignore[arg-type]
    batch = data.batch(step)
    task = TASKS["text_to_molecule"]
    return [
        (tokenizer.decode_output(task, x), tokenizer.decode_output(task, y))
        for x, y in zip(batch["inputs"], batch["targets"], strict=True)
    ]


def test_inputs_are_rewritten_targets_never() -> None:
    plain, rewritten = augmented(0.0, 3), augmented(1.0, 3)
    assert [target for _, target in plain] == [target for _, target in rewritten]
    prompt = TASKS["molecule_to_text"].prompt
    changed = 0
    for (before, _), (after, _) in zip(plain, rewritten, strict=True):
        if before.startswith(prompt):
            changed += before != after
            molecules = [chem.canonical(text.removeprefix(prompt)) for text in (before, after)]
            assert molecules[0] == molecules[1]
        else:
            assert before == after
    assert changed > 10


def test_a_share_of_inputs_is_rewritten() -> None:
    plain, half = augmented(0.0, 0), augmented(0.5, 0)
    captions = sum(text.startswith("Caption") for text, _ in plain)
    changed = sum(a != b for (a, _), (b, _) in zip(plain, half, strict=True))
    assert 0.2 * captions < changed < 0.8 * captions


def test_each_draw_is_rewritten_anew_but_a_step_always_alike() -> None:
    assert augmented(1.0, 2) == augmented(1.0, 2)
    assert len({text for step in range(4) for text, _ in augmented(1.0, step)}) > 20


def test_a_rewritten_source_that_is_too_long_gives_way() -> None:
    longest = max(len(text) for text, _ in augmented(0.0, 0))
    assert longest > 0
    # Just long enough for all sources as they are.
    for length in range(20, 64):
        texts = augmented(0.0, 0, input_length=length)
        if texts == augmented(0.0, 0):
            break
    canonical = {chem.canonical(m) for m in MOLECULES}
    prompt = TASKS["molecule_to_text"].prompt
    for text, _ in augmented(1.0, 0, input_length=length):
        if text.startswith(prompt):
            assert chem.canonical(text.removeprefix(prompt)) in canonical


def test_rewriting_does_not_change_which_examples_are_drawn() -> None:
    plain, rewritten = augmented(0.0, 5), augmented(1.0, 5)
    np.testing.assert_array_equal([t for _, t in plain], [t for _, t in rewritten])
