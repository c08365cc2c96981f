"""How near the written captions are to the expected ones, as MolT5's scripts define it."""

from collections.abc import Sequence

import numpy as np

from molt5_multitask.metrics.meteor import WordNet, load_wordnet, meteor
from molt5_multitask.metrics.scores import Scores, UnavailableError, mean
from molt5_multitask.metrics.text import bleu, rouge
from molt5_multitask.metrics.tokens import CaptionTokens, TokenKind, load_tokens


def caption_scores(
    references: Sequence[str],
    outputs: Sequence[str],
    *,
    tokens: TokenKind = "scibert",
    vocabulary: str | None = None,
    wordnet: str | None = None,
    with_meteor: bool = True,
    progress: bool = False,
) -> Scores:
    """Score texts against one reference a row, all rows counted.

    Args:
      references: expected texts.
      outputs: written texts; a leading `[CLS] `, as some files have it, is removed.
      tokens: kind of the tokens of BLEU and METEOR; ROUGE has its own.
      vocabulary: where the tokens' vocabulary is (`load_tokens`).
      wordnet: where WordNet is (`load_wordnet`).
      with_meteor: compute METEOR, which takes as long as all else.
      progress: show a progress bar.

    Returns:
      "BLEU-2", "BLEU-4" (of the corpus), "METEOR", "ROUGE-1", "ROUGE-2", "ROUGE-L" (means of the
      rows); those without vocabulary or WordNet are named as missing.
    """
    outputs = [text.removeprefix("[CLS] ") for text in outputs]
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    notes: dict[str, str] = {}
    rows: dict[str, np.ndarray] = {}
    splitter: CaptionTokens | None = None
    synonyms: WordNet | None = None
    # Resources first: what cannot be found is said before anything is computed.
    try:
        splitter = load_tokens(tokens, vocabulary)
    except UnavailableError as error:
        named = ("BLEU-2", "BLEU-4", "METEOR") if with_meteor else ("BLEU-2", "BLEU-4")
        missing |= dict.fromkeys(named, str(error))
    if with_meteor and splitter is not None:
        try:
            synonyms = load_wordnet(wordnet)
        except UnavailableError as error:
            missing["METEOR"] = str(error)
    if splitter is not None:
        sides = splitter.split(references), splitter.split(outputs)
        notes["tokens of BLEU and METEOR"] = splitter.name
        values |= {f"BLEU-{n}": value for n, value in bleu(*sides).items()}
        if synonyms is not None:
            notes["synonyms of METEOR"] = f"WordNet {synonyms.version}"
            rows["METEOR"] = meteor(*sides, synonyms.synonyms, progress=progress)
    rows |= rouge(references, outputs)
    values |= {name: mean(scores) for name, scores in rows.items()}
    return Scores(
        values=values,
        missing=missing,
        counts={"rows": len(references), "empty outputs": sum(not text for text in outputs)},
        per_row=rows,
        notes=notes,
    )
