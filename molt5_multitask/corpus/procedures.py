"""Experimental procedures and their action sequences, from one grammar.

A step is a sentence and its actions in the IBM action language (`; ` between actions, a final `.`),
with the same words in the slots of both. A procedure takes steps of successive stages.
"""

import random
from typing import NamedTuple

SLOTS = {
    "reagent": (
        *("sodium hydride", "triethylamine", "potassium carbonate", "benzyl bromide", "aniline"),
        *("acetyl chloride", "sodium borohydride", "methyl iodide", "benzaldehyde", "morpholine"),
    ),
    "solvent": (
        *("water", "methanol", "ethanol", "dichloromethane", "THF", "toluene", "DMF"),
        "acetonitrile",
    ),
    "extractant": ("ethyl acetate", "dichloromethane", "diethyl ether", "chloroform"),
    "wash": ("water", "brine", "saturated sodium bicarbonate", "1 M hydrochloric acid"),
    "dryer": ("sodium sulfate", "magnesium sulfate"),
    "gas": ("nitrogen", "argon"),
    "adjuster": ("2 N sodium hydroxide", "1 N hydrochloric acid", "acetic acid"),
    "acidity": ("pH 2", "pH 4", "pH 7", "pH 9", "pH 12"),
    "duration": (
        *("10 minutes", "30 minutes", "1 hour", "2 hours", "4 hours", "12 hours"),
        "overnight",
    ),
    "temperature": ("0 °C", "25 °C", "40 °C", "60 °C", "80 °C", "100 °C", "room temperature"),
    "volume": tuple(f"{amount} mL" for amount in (5, 10, 15, 20, 25, 30, 50, 100)),
    "mass": tuple(f"{tenths / 10:.1f} g" for tenths in range(10, 100)),
    "moles": tuple(f"{amount} mmol" for amount in range(1, 51)),
    "percent": tuple(f"{amount}%" for amount in range(20, 100)),
    "times": ("2", "3"),
}
"""What can stand in the slots. A slot `when` takes the duration as a sentence has it."""

STAGES = (
    (
        (
            "{reagent} ({mass}, {moles}) was dissolved in {solvent} ({volume})",
            "MAKESOLUTION with {reagent} ({mass}, {moles}) and {solvent} ({volume})",
        ),
        (
            "A solution of {reagent} ({mass}, {moles}) in {solvent} ({volume}) was added",
            "MAKESOLUTION with {reagent} ({mass}, {moles}) and {solvent} ({volume}); ADD SLN",
        ),
        ("The mixture was brought to {temperature}", "SETTEMPERATURE {temperature}"),
        ("The mixture was allowed to come to {temperature}", "SETTEMPERATURE {temperature}"),
        ("The solution was purged with {gas} {when}", "DEGAS with {gas} for {duration}"),
    ),
    (
        ("{reagent} ({mass}, {moles}) was added", "ADD {reagent} ({mass}, {moles})"),
        (
            "To the mixture was added {reagent} ({mass}, {moles}) dropwise",
            "ADD {reagent} ({mass}, {moles}) dropwise",
        ),
        (
            "The mixture was stirred {when} at {temperature}",
            "STIR for {duration} at {temperature}",
        ),
        ("The solution was heated to reflux {when}", "REFLUX for {duration}"),
        ("The suspension was sonicated {when}", "SONICATE for {duration}"),
        (
            "The mixture was heated in a microwave {when} at {temperature}",
            "MICROWAVE for {duration} at {temperature}",
        ),
        ("The mixture was left to stand {when}", "WAIT for {duration}"),
    ),
    (
        (
            "The reaction was quenched with {wash} ({volume})",
            "QUENCH with {wash} ({volume})",
        ),
        (
            "The aqueous layer was extracted with {extractant} ({times} times)",
            "COLLECTLAYER aqueous; EXTRACT with {extractant} {times} x",
        ),
        (
            "The organic layer was washed with {wash}, dried over {dryer} and concentrated",
            "COLLECTLAYER organic; WASH with {wash}; DRYSOLUTION over {dryer}; CONCENTRATE",
        ),
        (
            "The residue was partitioned between {extractant} and {wash}, and the layers separated",
            "PARTITION with {extractant} and {wash}; PHASESEPARATION",
        ),
        ("The precipitate was collected by filtration", "FILTER keep precipitate"),
        (
            "The mixture was filtered and the filtrate evaporated",
            "FILTER keep filtrate; CONCENTRATE",
        ),
        (
            "The solution was adjusted to {acidity} with {adjuster}",
            "PH with {adjuster} to {acidity}",
        ),
    ),
    (
        ("The residue was recrystallized from {solvent}", "RECRYSTALLIZE from {solvent}"),
        (
            "The residue was triturated with {solvent} ({volume})",
            "TRITURATE with {solvent} ({volume})",
        ),
        ("The crude product was purified by column chromatography", "PURIFY"),
        ("The solid was dried {when} at {temperature}", "DRYSOLID for {duration} at {temperature}"),
        (
            "This gave the title compound ({mass}, {percent})",
            "YIELD title compound ({mass}, {percent})",
        ),
    ),
)
"""Steps by stage, in the order in which a chemist takes them."""

REMARKS = (
    ("The structure was confirmed by NMR", "NOACTION"),
    ("The compound is stable in air", "NOACTION"),
    ("The compound was made as described in Example 5", "FOLLOWOTHERPROCEDURE"),
    ("Die Mischung wurde gerührt", "OTHERLANGUAGE"),
)
"""Sentences without an action of their own."""


class Procedure(NamedTuple):
    """A procedure, or a step of it."""

    prose: str
    """Its sentences."""
    actions: str
    """Its actions."""


def procedure(rng: random.Random, *, most: int = 3) -> Procedure:
    """Write a procedure of one to `most` steps, or in one case of fifty a remark."""
    if rng.random() < 0.02:
        prose, actions = rng.choice(REMARKS)
        return Procedure(f"{prose}.", f"{actions}.")
    stages = sorted(rng.sample(range(len(STAGES)), rng.randint(1, most)))
    steps = [_fill(rng, *rng.choice(STAGES[stage])) for stage in stages]
    prose = " ".join(f"{step.prose[0].upper()}{step.prose[1:]}." for step in steps)
    return Procedure(prose, "; ".join(step.actions for step in steps) + ".")


def _fill(rng: random.Random, prose: str, actions: str) -> Procedure:
    """Put the same words into the slots of a sentence and its actions."""
    words = {
        slot: rng.choice(choices)
        for slot, choices in SLOTS.items()
        if f"{{{slot}}}" in prose + actions
    }
    duration = words.get("duration")
    when = duration if duration == "overnight" else f"for {duration}"
    return Procedure(prose.format(**words, when=when), actions.format(**words))
