"""Greedy decoding and beam search against transformers' `generate`: the same token ids."""

import pathlib

import numpy as np
import pytest
import transformers

from molt5_multitask.decoding import BeamSearch, Decoder
from molt5_multitask.pretrained import save_pretrained
from tests.molt5_multitask.lively import EOS, draw_sources, lively
from tests.molt5_multitask.t5_toy import VERSIONS

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

INPUTS, MAX_LENGTH = 200, 24

CASES = [
    (1, False, 1.0, 1),
    (3, False, 1.0, 3),
    (3, True, 1.0, 2),
    (3, "never", 1.4, 3),
    (5, False, 0.6, 5),
    (5, True, 0.6, 5),
    (5, "never", 1.0, 5),
    (10, False, 1.0, 10),
    (10, True, 1.4, 4),
    (10, "never", 0.6, 10),
]
"""Beams, early stopping, length penalty, hypotheses returned."""


@pytest.fixture(scope="module", params=VERSIONS)
def both(request, tmp_path_factory):
    """The same weights here and in torch."""
    config, params = lively(request.param)
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, config, params)
    model = transformers.T5ForConditionalGeneration.from_pretrained(pathlib.Path(folder)).eval()
    return config, params, model


@pytest.mark.parametrize(("beams", "early_stopping", "penalty", "best"), CASES)
def test_same_ids_and_scores(both, beams, early_stopping, penalty, best):
    config, params, model = both
    sources = draw_sources(INPUTS)
    search = BeamSearch(
        beams=beams, best=best, early_stopping=early_stopping, length_penalty=penalty
    )
    decoder = Decoder(config, params, search, max_length=MAX_LENGTH, rows=100)
    found = dict(decoder(sources))
    inputs = np.zeros((INPUTS, max(map(len, sources))), np.int64)
    for row, source in zip(inputs, sources, strict=True):
        row[: len(source)] = source
    with torch.inference_mode():
        expected = model.generate(
            torch.tensor(inputs),
            attention_mask=torch.tensor(inputs > 0),
            num_beams=beams,
            num_return_sequences=best,
            max_length=MAX_LENGTH,
            early_stopping=early_stopping,
            length_penalty=penalty,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    texts = expected.sequences[:, 1:].tolist()
    lengths = set()
    for i in range(INPUTS):
        for j, ids in enumerate(found[i].ids):
            text = texts[i * best + j]
            # Short rows of a batch are filled up with eos or, after greedy search, with pads.
            cut = text[: text.index(EOS)] if EOS in text else text
            assert ids == cut, (i, j)
            lengths.add(len(ids))
    assert len(lengths) > 5
    assert max(lengths) == MAX_LENGTH - 1
    if beams > 1:  # greedy search has no scores there
        scores = np.array([found[i].scores for i in range(INPUTS)]).ravel()
        np.testing.assert_allclose(scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)
