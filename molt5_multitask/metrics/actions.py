"""Synthesis actions in IBM's readable language: accuracies of the string, BLEU, validity."""

import re
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from molt5_multitask.metrics.scores import Scores
from molt5_multitask.metrics.text import bleu

THRESHOLDS = (100, 90, 75)
"""Percent similarity from which a row counts as right."""

_FOR, _AT, _UNDER = "( for .+?)?", "( at .+?)?", "( under .+?)?"
ARGUMENTS = {
    "ADD": " .+",
    "COLLECTLAYER": " (aqueous|organic)",
    "CONCENTRATE": "",
    "DEGAS": f"( with .+?)?{_FOR}",
    "DRYSOLID": f"{_FOR}{_AT}{_UNDER}",
    "DRYSOLUTION": "( over .+)?",
    "EXTRACT": " with .+",
    "FILTER": "( keep (filtrate|precipitate))?",
    "FOLLOWOTHERPROCEDURE": "",
    "MAKESOLUTION": " with .+ and .+",
    "MICROWAVE": f"{_FOR}{_AT}",
    "NOACTION": "",
    "OTHERLANGUAGE": "",
    "PARTITION": " with (?!.+ and .+ and ).+ and .+",
    "PH": " with .+",
    "PHASESEPARATION": "",
    "PURIFY": "",
    "QUENCH": " with .+",
    "RECRYSTALLIZE": " from .+",
    "REFLUX": f"{_FOR}{_UNDER}( with Dean-Stark apparatus)?",
    "SETTEMPERATURE": " .+",
    "SONICATE": f"{_FOR}{_AT}",
    "STIR": f"{_FOR}{_AT}{_UNDER}",
    "TRITURATE": " with .+",
    "WAIT": " for .+",
    "WASH": " with .+",
    "YIELD": " .+",
}
"""What may follow each verb: the grammar, as regular expressions."""

_ACTION = re.compile("|".join(f"{verb}{rest}" for verb, rest in ARGUMENTS.items()))


def is_valid(sequence: str) -> bool:
    """Whether a string is a sequence of actions: verbs with their arguments, `; `, a final `.`.

    IBM's own reader only warns where the final period is missing, and takes the empty string for no
    actions; here a sequence has one action at least and its end, or it may have been cut off.
    """
    if not sequence.endswith("."):
        return False
    return all(_ACTION.fullmatch(action) for action in sequence[:-1].split("; "))


def action_scores(references: Sequence[str], outputs: Sequence[str]) -> Scores:
    """Score action sequences, as paragraph2actions defines it.

    Returns:
      "accuracy 100%", "accuracy 90%" and "accuracy 75%": share of the rows whose similarity is at
      least so high (100 % is equality); "similarity": its mean, 1 - edit distance over the
      longer length in characters; "modified BLEU": BLEU-4 of the words, with both sides padded to
      four words; "BLEU-2", "BLEU-4": without padding (the paper's number is BLEU-2); "validity".
    """
    similarity = np.array(
        [Levenshtein.normalized_similarity(*pair) for pair in zip(references, outputs, strict=True)]
    )
    valid = np.array([is_valid(output) for output in outputs], np.float64)
    words = [[text.split() for text in side] for side in (references, outputs)]
    padded = [[text + [""] * (4 - len(text)) for text in side] for side in words]
    plain = bleu(*words, orders=(2, 4))
    return Scores(
        values={
            **{f"accuracy {t}%": float(np.mean(similarity >= t / 100)) for t in THRESHOLDS},
            "similarity": float(np.mean(similarity)),
            "modified BLEU": bleu(*padded, orders=(4,))[4],
            "BLEU-2": plain[2],
            "BLEU-4": plain[4],
            "validity": float(np.mean(valid)),
        },
        counts={
            "rows": len(references),
            "valid outputs": int(valid.sum()),
            "empty outputs": sum(not output for output in outputs),
        },
        per_row={"similarity": similarity, "validity": valid},
    )
