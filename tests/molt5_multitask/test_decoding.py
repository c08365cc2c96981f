"""Beam search against plain Python, sampling against its distribution, batching, compilation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.mesh import MeshConfig, make_mesh
from molt5_multitask.decoding import BeamSearch, Decoder, Sampling
from molt5_multitask.decoding.search import best_continuations
from molt5_multitask.model import bind
from tests.molt5_multitask.beam_reference import beam_search, log_softmax
from tests.molt5_multitask.lively import EOS, draw_sources, lively
from tests.molt5_multitask.t5_toy import VERSIONS, jit


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """These tests compile much more than they compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# A language model without a model: logits by example, position (modulo) and newest token.
EXAMPLES, PHASES, IDS, LENGTH = 24, 3, 24, 12
TABLE = np.random.default_rng(0).normal(0, 2, (EXAMPLES, PHASES, IDS, IDS)).astype(np.float32)
TABLE[..., EOS] += 1.5


def search_table(search, *, length=LENGTH, numbers=None):
    """Run a search on the table; return its hypotheses on the host."""
    numbers = np.arange(EXAMPLES) if numbers is None else numbers

    @jit
    def run(table):
        rows = jnp.arange(len(numbers))[:, None]
        unused = jnp.zeros(len(numbers), bool)
        state = search.start(jnp.asarray(numbers), length=length, unused=unused)
        return search.result(
            jax.lax.while_loop(
                lambda s: (s.count < length) & ~s.done.all(),
                lambda s: search.take(s, table[rows, s.count % PHASES, s.tokens]),
                state,
            )
        )

    return jax.device_get(run(TABLE[numbers]))


def until_eos(ids):
    """Cut after the first eos."""
    ids = list(ids)
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


CASES = [
    *itertools.product((1, 4), (False, True, "never"), (1.0,)),
    *itertools.product((4,), (False, "never"), (0.0, 0.6, 1.4, -0.5)),
    (10, False, 1.0),
    (12, "never", 1.0),
]


@pytest.mark.parametrize(("beams", "early_stopping", "penalty"), CASES)
def test_beam_search_equals_plain_python(beams, early_stopping, penalty):
    options = {"beams": beams, "early_stopping": early_stopping, "length_penalty": penalty}
    found = search_table(BeamSearch(best=beams, **options))
    # With one beam it is greedy decoding, which no option changes.
    options |= {"early_stopping": True} if beams == 1 else {}
    for i in range(EXAMPLES):

        def next_logits(texts, i=i):
            return TABLE[i, len(texts[0]) % PHASES, [text[-1] if text else 0 for text in texts]]

        expected = beam_search(next_logits, length=LENGTH, **options)
        for ids, score, (text, total) in zip(found.ids[i], found.scores[i], expected, strict=True):
            assert ids.tolist() == text + [0] * (LENGTH - len(text))
            assert score == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_options_of_beam_search_matter():
    """Or the cases above could not tell a forgotten option."""
    plain = search_table(BeamSearch(beams=4, best=4))
    lengths = {len(until_eos(ids)) for row in plain.ids for ids in row}
    assert len(lengths) > LENGTH // 2
    for options in ({"early_stopping": True}, {"early_stopping": "never"}, {"length_penalty": 0.0}):
        other = search_table(BeamSearch(beams=4, best=4, **options))
        assert (other.ids != plain.ids).any()
    # Fewer returned are the best of those.
    fewer = search_table(BeamSearch(beams=4, best=2))
    np.testing.assert_array_equal(fewer.ids, plain.ids[:, :2])


def test_one_beam_is_greedy():
    found = search_table(BeamSearch(early_stopping="never", length_penalty=2.0))
    for i in range(EXAMPLES):
        text, total = [0], 0.0
        while len(text) <= LENGTH and text[-1] != EOS:
            logits = TABLE[i, (len(text) - 1) % PHASES, text[-1]]
            text.append(int(logits.argmax()))
            total += log_softmax(logits)[text[-1]]
        assert until_eos(found.ids[i, 0])[: len(text) - 1] == text[1:]
        np.testing.assert_allclose(found.scores[i, 0], total / (len(text) - 1) ** 2, rtol=1e-5)


@pytest.mark.parametrize("vocab", [50, 101, 1284, 32100])
def test_best_continuations_are_those_of_all(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 3, (3, 4, vocab)).astype(np.float32)
    logits[0, :, 7] = logits.max() + 1  # good blocks with several good entries
    logits[0, :, 8] = logits.max() + 1
    running = np.array([[0, -1, -2, -4], [-3, -3.5, -8, -9], [0, *[-np.inf] * 3]], np.float32)
    found = jit(best_continuations, static_argnums=2)(logits, running, 8)
    sums = (running[..., None] + log_softmax(logits)).reshape(3, -1)
    order = np.argsort(-sums, axis=1, kind="stable")[:, :8]
    np.testing.assert_array_equal(found.beams * vocab + found.tokens, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(sums, order, 1), rtol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_decoder_equals_plain_python_on_the_whole_model(version):
    """Through batches of several buckets, and a cache that grows."""
    config, params = lively(version)
    sources = draw_sources(5, longest=60)
    length = 70
    found = dict(
        Decoder(config, params, BeamSearch(beams=3, best=3), max_length=length + 1, rows=2)(sources)
    )

    @jit
    def logits_of(tokens, source):
        model = bind(config, params)
        source = jnp.repeat(source[None], len(tokens), axis=0)
        segments = (source > 0).astype(jnp.int32)
        encoded = model.encode(source, segments)
        hidden = model.decode(
            tokens, jnp.ones_like(tokens), encoded=encoded, input_segments=segments
        )
        return model.logits(hidden)

    lengths = set()
    for i, source in enumerate(sources):

        def next_logits(texts, source=source):
            tokens = np.zeros((3, length), np.int32)
            for row, text in zip(tokens, texts, strict=False):
                row[1 : len(text) + 1] = text
            padded = np.pad(np.array(source, np.int32), (0, 60 - len(source)))
            return np.asarray(logits_of(tokens, padded))[: len(texts), len(texts[0])]

        expected = beam_search(next_logits, beams=3, length=length)
        for ids, score, (text, total) in zip(*found[i], expected, strict=True):
            assert [*ids, EOS][: len(text)] == text
            assert score == pytest.approx(total, rel=1e-4)
            lengths.add(len(text))
    assert min(lengths) < 64 < max(lengths) == length


@pytest.fixture(scope="module")
def decoder():
    return Decoder(*lively("t5-v1_1-tiny"), BeamSearch(beams=3, best=2), max_length=20, rows=4)


def test_results_do_not_depend_on_the_batch(decoder):
    sources = draw_sources(7)
    together = dict(decoder(sources))
    for i in (2, 5):
        ((_, alone),) = decoder([sources[i]])
        assert alone.ids == together[i].ids
        np.testing.assert_allclose(alone.scores, together[i].scores, rtol=1e-5)
    assert {tuple(row.ids[0]) for row in together.values()} != {()}
    assert list(decoder([])) == []


def test_a_bucket_is_compiled_once(decoder):
    list(decoder(draw_sources(9, longest=32)))
    one_bucket = decoder.compilations
    list(decoder(draw_sources(6, seed=1, longest=20)))
    assert decoder.compilations == one_bucket
    list(decoder(draw_sources(9, seed=2, longest=64)))
    two_buckets = decoder.compilations
    assert two_buckets == one_bucket + 2  # its beginning and its steps
    list(decoder(draw_sources(9, seed=3, longest=64)))
    assert decoder.compilations == two_buckets


def test_a_finished_batch_stops(monkeypatch):
    """As soon as all its examples are done, unused rows not counted."""
    config, params = lively("t5-v1_1-tiny")
    source = next(s for s in draw_sources(50) if 2 <= greedy_length(s) <= 5)
    decoder = Decoder(config, params, BeamSearch(), max_length=40, rows=3)
    steps = []
    result = decoder._result
    monkeypatch.setattr(decoder, "_result", lambda s: (steps.append(int(s.count)), result(s))[1])
    list(decoder([source]))
    assert steps == [greedy_length(source) + 1]


_GREEDY = {}


def greedy_length(source):
    """Tokens that greedy decoding writes before eos."""
    if not _GREEDY:
        config, params = lively("t5-v1_1-tiny")
        decoder = Decoder(config, params, BeamSearch(), max_length=12, rows=50)
        sources = draw_sources(50)
        _GREEDY.update({tuple(sources[i]): len(found.ids[0]) for i, found in decoder(sources)})
    return _GREEDY[tuple(source)]


def test_devices_share_the_rows():
    config, params = lively("t5-tiny")
    sources = draw_sources(7)
    search = BeamSearch(beams=3, best=3)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    decoder = Decoder(config, params, search, max_length=20, rows=4, mesh=mesh)
    kept = []
    advance = decoder._advance
    decoder._advance = lambda *args: kept.append(advance(*args)) or kept[-1]
    found = dict(decoder(sources))
    one = dict(Decoder(config, params, search, max_length=20, rows=4)(sources))
    for i in range(len(sources)):
        assert found[i].ids == one[i].ids
        np.testing.assert_allclose(found[i].scores, one[i].scores, rtol=1e-4)
    cache, state = kept[0]
    for array in (cache.keys[0], cache.values[1], cache.cross_keys[0], state.texts):
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {1}
    with pytest.raises(ValueError, match="rows = 6 must be a multiple of the 4"):
        Decoder(config, params, search, rows=6, mesh=mesh)


def test_bfloat16_decodes_nearly_the_same():
    config, params = lively("t5-v1_1-tiny")
    sources = draw_sources(24)
    found = {}
    for dtype in ("float32", "bfloat16"):
        decoder = Decoder(config, params, BeamSearch(), max_length=8, rows=24, dtype=dtype)
        found[dtype] = dict(decoder(sources))
    assert {x.dtype for x in jax.tree.leaves(decoder._params)} == {jnp.dtype(jnp.bfloat16)}
    same = [i for i in range(24) if found["float32"][i].ids == found["bfloat16"][i].ids]
    assert len(same) > 16
    for i in same:
        a, b = (found[dtype][i].scores[0] for dtype in found)
        assert a == pytest.approx(b, abs=0.1)
    assert any(found["float32"][i].scores != found["bfloat16"][i].scores for i in same)


def test_samples_follow_the_restricted_distribution():
    """Frequencies of the first token within five standard deviations of what the options say."""
    samples = 2000
    logits = TABLE[:, 0, 0]
    for options in (
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.8},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.7},
    ):
        found = search_table(Sampling(samples=samples, **options), length=1)
        drawn = np.stack([(found.ids[..., 0] == token).mean(1) for token in range(IDS)], axis=1)
        expected = np.stack([restricted(row, **options) for row in logits])
        often = expected * samples > 20  # where frequencies are nearly normal
        spread = np.sqrt(expected * (1 - expected) / samples)
        assert often.sum() > 3 * EXAMPLES
        assert (np.abs(drawn - expected) <= 5 * spread)[often].all()
        assert not drawn[expected == 0].any()
        # The score is the log probability before anything was restricted.
        first = np.take_along_axis(log_softmax(logits), found.ids[..., 0], axis=1)
        np.testing.assert_allclose(found.scores, first, rtol=1e-5)
        assert (np.diff(found.scores, axis=1) <= 0).all()


def restricted(logits, temperature=1.0, top_k=IDS, top_p=1.0):
    """Probabilities of the tokens that may be drawn, one by one from the most probable on."""
    weights = np.exp(logits.astype(np.float64) / temperature)
    order = np.argsort(-weights)[:top_k]
    weights[np.setdiff1d(np.arange(len(weights)), order)] = 0
    weights /= weights.sum()
    mass, kept = 0.0, []
    for token in order:
        if mass < top_p:
            kept.append(token)
            mass += weights[token]
    weights[np.setdiff1d(np.arange(len(weights)), kept)] = 0
    return weights / weights.sum()


def test_samples_are_scored_by_their_mean_and_stop_at_eos():
    found = search_table(Sampling(samples=5))
    for i, row in enumerate(found.ids):
        for ids, score in zip(row, found.scores[i], strict=True):
            text = until_eos(ids)
            assert not ids[len(text) :].any()
            logs = [
                log_softmax(TABLE[i, t % PHASES, before])[token]
                for t, (before, token) in enumerate(itertools.pairwise([0, *text]))
            ]
            assert score == pytest.approx(np.mean(logs), rel=1e-4)


def test_draws_depend_on_seed_and_number_only():
    search = Sampling(samples=2, seed=3)
    found = search_table(search)
    some = np.array([17, 4, 9])
    np.testing.assert_array_equal(search_table(search, numbers=some).ids, found.ids[some])
    other = search_table(Sampling(samples=2, seed=4))
    assert (other.ids != found.ids).any(axis=(1, 2)).mean() > 0.8
    assert (found.ids[:, 0] != found.ids[:, 1]).any(axis=1).mean() > 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BeamSearch(beams=2, best=3), "best = 3 must lie between 1 and .* 2"),
        (lambda: BeamSearch(early_stopping="always"), "early_stopping = 'always' is unknown"),
        (lambda: Sampling(samples=0), "samples = 0"),
        (lambda: Sampling(temperature=0.0), "temperature = 0.0 must be positive; .* one beam"),
        (lambda: Sampling(top_k=0), "top_k = 0"),
        (lambda: Sampling(top_p=0.0), "top_p = 0.0"),
        (lambda: search_table(BeamSearch(beams=13)), "13 beams need a vocabulary of 26 ids"),
        (lambda: Decoder(*lively("t5-tiny"), BeamSearch(), max_length=1), "max_length = 1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
