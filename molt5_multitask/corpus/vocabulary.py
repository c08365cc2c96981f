"""The small unigram vocabulary of the synthetic corpus."""

import math
from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from molt5_multitask.restore import UNKNOWN
from molt5_multitask.tokenizer import Tokenizer

SPECIAL = ("<pad>", "</s>", UNKNOWN)


def train_vocabulary(texts: Iterable[str], *, size: int) -> Tokenizer:
    r"""Train a unigram vocabulary, the same for the same texts.

    The pieces are found by byte-pair merging, their scores are the logarithms of how often they
    occur. (The trainer of unigram pieces in `tokenizers` counts each different word once, and so
    leaves out the commonest words of a corpus with few different ones.) Every character of the
    texts is covered, `\` and `~` too: what T5's vocabulary loses is tested with T5's vocabulary.
    """
    texts = list(texts)
    merges = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN))
    merges.normalizer = normalizers.NFKC()
    # No piece reaches over the dot between two molecules: reagents become pieces of their own.
    merges.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(".", "isolated")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
    )
    merges.train_from_iterator(texts, trainer)
    counts: Counter[str] = Counter()
    for encoding in merges.encode_batch_fast(texts):
        counts.update(encoding.tokens)
    total = counts.total()
    pieces = sorted(merges.get_vocab().items(), key=lambda item: item[1])
    # A piece that only serves to make longer ones counts half an occurrence.
    scores = [(piece, math.log((counts[piece] or 0.5) / total)) for piece, _ in pieces]
    backend = tokenizers.Tokenizer(
        models.Unigram([(s, 0.0) for s in SPECIAL] + scores[len(SPECIAL) :], unk_id=2)
    )
    backend.add_special_tokens(list(SPECIAL))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend, origin="the vocabulary of the synthetic corpus")
