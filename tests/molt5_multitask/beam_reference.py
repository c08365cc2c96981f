"""Beam search in plain Python for one input, after the description of transformers' semantics."""

from collections.abc import Callable, Sequence

import numpy as np

EOS = 1


def log_softmax(logits):
    logits = np.asarray(logits, np.float32)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def beam_search(
    next_logits: Callable[[Sequence[Sequence[int]]], np.ndarray],
    *,
    beams: int,
    length: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
) -> list[tuple[list[int], float]]:
    """Return the hypotheses and their scores, best first.

    Args:
      next_logits: logits (n, V) of the token after each of n histories without the start token.
      beams: beams.
      length: most tokens, eos included.
      length_penalty: exponent of the length.
      early_stopping: True, False or "never".
    """
    running: list[tuple[list[int], float]] = [([], 0.0)]
    pool: list[tuple[list[int], float]] = []
    for t in range(1, length + 1):
        sums = log_softmax(next_logits([text for text, _ in running]))
        sums = sums + np.array([[score] for _, score in running], np.float32)
        vocab = sums.shape[1]
        best = np.argsort(-sums, axis=None, kind="stable")[: 2 * beams]
        candidates = [
            ([*running[i // vocab][0], int(i % vocab)], float(sums.flat[i])) for i in best
        ]
        ends = [text[-1] == EOS or t == length for text, _ in candidates]
        for (text, total), end in list(zip(candidates, ends, strict=True))[:beams]:
            if end:
                pool.append((text, total / t**length_penalty))
        pool = sorted(pool, key=lambda hypothesis: -hypothesis[1])[:beams]
        running = [c for c, end in zip(candidates, ends, strict=True) if not end][:beams]
        if not running:
            break
        if len(pool) == beams:
            reach = length if early_stopping == "never" and length_penalty > 0 else t
            if early_stopping is True or running[0][1] / reach**length_penalty <= pool[-1][1]:
                break
    return pool
