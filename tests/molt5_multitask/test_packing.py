"""Packed batches: nothing lost, nothing mixed up, any step by itself."""

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molt5_multitask.corpus.vocabulary import train_vocabulary
from molt5_multitask.data import batches
from molt5_multitask.data.batches import MixedData
from molt5_multitask.data.mixing import Mixing
from molt5_multitask.data.packing import deal, lay_out, pack
from molt5_multitask.tasks import TASKS, Example
from molt5_multitask.tokenizer import EOS, Tokenizer

LENGTHS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=60)


@given(lengths=LENGTHS, rows=st.integers(1, 30))
@settings(deadline=None)
def test_rows_never_overflow_and_only_what_fits_nowhere_is_left(
    lengths: list[tuple[int, int]], rows: int
) -> None:
    need = np.array(lengths)
    row_of = pack(need, (20, 12), rows)
    used = np.zeros((rows, 2), int)
    for row, length in zip(row_of, need, strict=True):
        if row >= 0:
            used[row] += length
    assert (used <= (20, 12)).all()
    for length in need[row_of < 0]:
        assert not ((used + length) <= (20, 12)).all(1).any()


def test_both_sides_count() -> None:
    # By sources alone all would fit into one row.
    lengths = np.array([[1, 6], [1, 6], [1, 6]])
    assert pack(lengths, (10, 12), 3).tolist() == [0, 0, 1]


def test_complementary_examples_share_rows() -> None:
    # By size alone, five long sources would fill a row to 10 of 20 on the other side.
    lengths = np.array([[4, 1]] * 16 + [[1, 4]] * 16)
    assert pack(lengths, (20, 20), 10).max() + 1 == 4


def test_groups_are_alike_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 500, (800, 2))
    group_of = deal(lengths, 4)
    assert np.bincount(group_of).tolist() == [200] * 4
    sums = np.array([lengths[group_of == group].sum(0) for group in range(4)])
    # By chance they would differ by some 8 %.
    assert (np.ptp(sums, axis=0) < 0.02 * sums.mean(0)).all()


def test_rows_are_nearly_full() -> None:
    rng = np.random.default_rng(0)
    lengths = np.stack([rng.integers(5, 60, 800), rng.integers(5, 60, 800)], 1)
    rows = pack(lengths, (256, 256), 800).max() + 1
    assert rows <= np.ceil(1.04 * lengths.sum(0).max() / 256)


def test_examples_are_laid_one_after_another() -> None:
    tokens, lengths = np.array([5, 1, 6, 7, 1, 8, 1]), np.array([2, 3, 2])
    ids, segments = lay_out(tokens, lengths, np.array([1, -1, 1]), rows=2, length=5)
    assert ids.tolist() == [[0, 0, 0, 0, 0], [5, 1, 8, 1, 0]]
    assert segments.tolist() == [[0, 0, 0, 0, 0], [1, 1, 2, 2, 0]]


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Example]]:
    """Two tasks of different sizes, each example known by its number."""
    rng = np.random.default_rng(0)

    def text(number: int, most: int) -> str:
        return f"{number} " + " ".join(["CO"] * int(rng.integers(most)))

    return {
        name: [Example(name, text(i, most), text(i, 30 - most)) for i in range(count)]
        for name, count, most in (("forward", 700, 20), ("molecule_to_text", 90, 5))
    }


@pytest.fixture(scope="module")
def tokenizer(examples: dict[str, list[Example]]) -> Tokenizer:
    texts = [t.prompt for t in TASKS.values()] * 50
    texts += [text for rows in examples.values() for e in rows for text in (e.input, e.target)]
    return train_vocabulary(texts, size=200)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of about 250 examples: three or four make a pass over the data."""
    monkeypatch.setattr(batches, "GROUP_ROWS", 80)


def make(examples: dict[str, list[Example]], tokenizer: Tokenizer, **changes: Any) -> MixedData:
    options: dict[str, Any] = {
        "batch_size": 8,
        "seed": 0,
        "input_length": 64,
        "target_length": 64,
        **changes,
    }
    return MixedData(examples, tokenizer, **options)


def unpack(batch: Any, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Read the examples of a batch back from its segments."""
    found = []
    for row in range(len(batch["inputs"])):
        sides = []
        for side in ("input", "target"):
            ids, segments = batch[f"{side}s"][row], batch[f"{side}_segments"][row]
            assert ((ids > 0) == (segments > 0)).all()
            # Numbered from one without gaps, each in one piece, padding only at the end.
            changes = segments[np.flatnonzero(np.diff(segments, prepend=0))]
            real = changes[changes > 0]
            assert real.tolist() == list(range(1, len(real) + 1))
            assert set(np.diff(segments)) <= {0, 1, -segments.max()}
            pieces = [ids[segments == s] for s in real]
            assert all(p[-1] == EOS and (p[:-1] != EOS).all() for p in pieces)
            sides.append([tokenizer.decode_output(TASKS["molecule_to_text"], p) for p in pieces])
        found += list(zip(*sides, strict=True))
    return found


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("packed", [True, False])
def test_every_example_comes_once_in_each_pass(
    examples: dict[str, list[Example]], tokenizer: Tokenizer, packed: bool
) -> None:
    data = make(examples, tokenizer, packed=packed)
    steps = int(3 * 790 / data.examples_per_step) + 1
    drawn = collections.Counter(
        pair for step in range(steps) for pair in unpack(data.batch(step), tokenizer)
    )
    expected = {
        (TASKS[name].prompt + e.input.strip(), e.target.strip())
        for name, rows in examples.items()
        for e in rows
    }
    assert set(drawn) == expected
    # The third pass may have ended in the middle of a window, and the fourth begun.
    assert set(drawn.values()) <= {2, 3, 4}
    assert sum(drawn.values()) == pytest.approx(steps * data.examples_per_step, rel=0.02)
    for name, passes in data.passes(steps).items():
        mine = [n for (source, _), n in drawn.items() if source.startswith(TASKS[name].prompt)]
        assert passes == pytest.approx(np.mean(mine), rel=0.1)


@pytest.mark.usefixtures("small_windows")
def test_any_step_can_be_made_by_itself(
    examples: dict[str, list[Example]], tokenizer: Tokenizer
) -> None:
    in_order = make(examples, tokenizer)
    batches = [in_order.batch(step) for step in range(40)]
    for step in (39, 17, 0, 18):
        fresh = make(examples, tokenizer).batch(step)
        for name, array in fresh.items():
            np.testing.assert_array_equal(array, batches[step][name])
    assert any(
        (a["inputs"] != b["inputs"]).any() for a, b in zip(batches, batches[20:], strict=False)
    )


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("packed", [True, False])
def test_the_rows_do_not_depend_on_the_batch_size(
    examples: dict[str, list[Example]], tokenizer: Tokenizer, packed: bool
) -> None:
    def rows(size: int) -> np.ndarray:
        data = make(examples, tokenizer, batch_size=size, packed=packed)
        return np.concatenate([data.batch(step)["inputs"] for step in range(240 // size)])

    for size in (3, 80, 240):  # within a group, a group, several
        np.testing.assert_array_equal(rows(8), rows(size))


@pytest.mark.usefixtures("small_windows")
def test_a_part_of_a_batch_packs_its_own_groups_only(
    examples: dict[str, list[Example]], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(examples, tokenizer, batch_size=400).batch(1)
    data = make(examples, tokenizer, batch_size=400)
    calls = []
    monkeypatch.setattr(batches, "pack", lambda *args: calls.append(args) or pack(*args))
    part = np.arange(70, 180)
    found = data.batch(1, part)
    for name, array in found.items():
        np.testing.assert_array_equal(array, whole[name][part])
    assert len(calls) == 3  # rows 470 to 579, in groups of 80


@pytest.mark.usefixtures("small_windows")
def test_batches_are_as_announced(examples: dict[str, list[Example]], tokenizer: Tokenizer) -> None:
    for packed in (True, False):
        data = make(examples, tokenizer, packed=packed, target_length=48)
        spec, batch = data.spec(), data.batch(5)
        assert set(spec) == set(batch)
        for name, array in batch.items():
            assert (array.shape, array.dtype) == (spec[name].shape, spec[name].dtype)
            np.testing.assert_array_equal(data.batch(5, slice(1, 3))[name], array[1:3])
        if not packed:
            assert set(np.unique(batch["input_segments"])) == {0, 1}


@pytest.mark.usefixtures("small_windows")
def test_packing_removes_most_padding_and_says_so(
    examples: dict[str, list[Example]], tokenizer: Tokenizer
) -> None:
    data = make(examples, tokenizer)
    before, after = data.padding()["inputs"]
    real = np.mean(
        [
            len(tokenizer.encode_source(TASKS[name], e.input))
            for name, rows in examples.items()
            for e in rows
        ]
    )
    assert before == pytest.approx(1 - real / 64, abs=0.03)
    assert after < 0.3 < 0.6 < before
    rows = np.concatenate([data.batch(step)["input_segments"] for step in range(30)])
    assert after == pytest.approx((rows == 0).mean(), abs=0.05)
    before, after = make(examples, tokenizer, packed=False).padding()["inputs"]
    assert before == after


@pytest.mark.usefixtures("small_windows")
def test_batches_of_a_window_are_alike(
    examples: dict[str, list[Example]], tokenizer: Tokenizer
) -> None:
    """As they are packed, the first rows have the long examples, and the last have none."""
    data = make(examples, tokenizer)
    counts = [data.batch(step)["input_segments"].max(1).sum() for step in range(60)]
    assert 5 * batches.GROUP_ROWS < 60 * 8  # the ends of groups are among them
    assert max(counts) < 2 * min(counts)


@pytest.mark.usefixtures("small_windows")
def test_the_plan_keeps_windows_from_overflowing(
    examples: dict[str, list[Example]], tokenizer: Tokenizer, recwarn: pytest.WarningsRecorder
) -> None:
    data = make(examples, tokenizer, mixing=Mixing(strategy="equal"))
    for group in range(120):
        data.batch(group * batches.GROUP_ROWS // 8)
    assert not recwarn.list


@pytest.mark.usefixtures("small_windows")
def test_an_example_without_room_is_warned_of(
    examples: dict[str, list[Example]], tokenizer: Tokenizer
) -> None:
    data = make(examples, tokenizer)
    data._window_examples *= 2
    with pytest.warns(UserWarning, match=r"\d+ of \d+ examples found no room in group 3"):
        data.batch(3 * batches.GROUP_ROWS // 8)


@pytest.mark.usefixtures("small_windows")
def test_what_is_too_long_is_cut_and_counted(
    examples: dict[str, list[Example]], tokenizer: Tokenizer
) -> None:
    long = {"forward": [*examples["forward"][:200], Example("forward", "CO " * 200, "CO")]}
    data = make(long, tokenizer, target_length=8)
    targets = sum(len(tokenizer.encode_target(e.target)) > 8 for e in long["forward"])
    assert targets > 0
    assert data.cut == {"forward": (1, targets)}


@pytest.mark.usefixtures("small_windows")
def test_bad_settings_are_refused(examples: dict[str, list[Example]], tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"task forward: its prompt.*maximum of 8"):
        make(examples, tokenizer, input_length=8)
    with pytest.raises(ValueError, match="task = 'foward' is unknown; did you mean 'forward'"):
        make({"foward": examples["forward"]}, tokenizer)
    with pytest.raises(ValueError, match=r"augment = 1\.5"):
        make(examples, tokenizer, augment=1.5)


@pytest.mark.usefixtures("small_windows")
def test_a_prompt_of_ones_own(examples: dict[str, list[Example]], tokenizer: Tokenizer) -> None:
    task = dataclasses.replace(TASKS["forward"], name="mine", prompt="CO: ")
    data = make({"mine": examples["forward"]}, tokenizer, tasks={"mine": task})
    for source, _ in unpack(data.batch(0), tokenizer):
        assert source.startswith("CO: ")


@pytest.mark.usefixtures("small_windows")
def test_the_summary_says_what_happens_to_the_data(tokenizer: Tokenizer) -> None:
    texts = ["CO"] * 30 + ["CO " * 100, "Ж", "COЖCO ЖЖ"]
    data = make({"forward": [Example("forward", "CO", text) for text in texts]}, tokenizer)
    lines = data.summary().splitlines()
    assert lines[2] == "| forward | 100.0% | 33 | 0 | 1 | 2 |"
    (before, after), _ = data.padding().values()
    assert f"padding of inputs {before:.1%} -> {after:.1%}, targets" in lines[-1]
