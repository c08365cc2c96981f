"""Greedy decoding, beam search and sampling, compiled, with a cache of keys and values.

decoder = Decoder(config, params, BeamSearch(beams=5, best=5), max_length=128)
for row, hypotheses in decoder(sources):  # in batches, not in order
    ...
"""

from molt5_multitask.decoding.beam import BeamSearch
from molt5_multitask.decoding.decoder import Decoder
from molt5_multitask.decoding.sampling import Sampling
from molt5_multitask.decoding.search import Hypotheses, Search

__all__ = ["BeamSearch", "Decoder", "Hypotheses", "Sampling", "Search"]
