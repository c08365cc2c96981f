"""Experimental procedures and their action sequences, from one grammar.

Each step is written twice from the same choices: as prose, and in the IBM action language
(`; ` between actions, a final `.`).
"""

import random
from collections.abc import Callable
from typing import NamedTuple

SOLVENTS = (
    "water",
    "methanol",
    "ethanol",
    "dichloromethane",
    "THF",
    "toluene",
    "DMF",
    "acetonitrile",
)
EXTRACTANTS = ("ethyl acetate", "dichloromethane", "diethyl ether", "chloroform")
REAGENTS = (
    "sodium hydride",
    "triethylamine",
    "potassium carbonate",
    "benzyl bromide",
    "acetyl chloride",
    "sodium borohydride",
    "methyl iodide",
    "aniline",
    "benzaldehyde",
    "morpholine",
)
WASHES = ("water", "brine", "saturated sodium bicarbonate", "1 M hydrochloric acid")
DRYING_AGENTS = ("sodium sulfate", "magnesium sulfate")
TEMPERATURES = ("0 °C", "25 °C", "40 °C", "60 °C", "80 °C", "100 °C", "room temperature")
DURATIONS = ("10 minutes", "30 minutes", "1 hour", "2 hours", "4 hours", "12 hours", "overnight")


class Step(NamedTuple):
    """One step of a procedure."""

    prose: str
    """A sentence, without its final period."""
    actions: str
    """Its actions, without the final period."""


def _volume(rng: random.Random) -> str:
    return f"{rng.choice((5, 10, 15, 20, 25, 30, 50, 100))} mL"


def _amount(rng: random.Random) -> str:
    return f"{rng.randint(1, 9)}.{rng.randint(0, 9)} g, {rng.randint(1, 50)} mmol"


def _add(rng: random.Random) -> Step:
    reagent, amount = rng.choice(REAGENTS), _amount(rng)
    if rng.random() < 0.5:
        return Step(f"{reagent} ({amount}) was added", f"ADD {reagent} ({amount})")
    return Step(
        f"To the mixture was added {reagent} ({amount}) dropwise",
        f"ADD {reagent} ({amount}) dropwise",
    )


def _make_solution(rng: random.Random) -> Step:
    reagent, amount = rng.choice(REAGENTS), _amount(rng)
    solvent, volume = rng.choice(SOLVENTS), _volume(rng)
    return Step(
        f"{reagent} ({amount}) was dissolved in {solvent} ({volume})",
        f"MAKESOLUTION with {reagent} ({amount}) and {solvent} ({volume})",
    )


def _stir(rng: random.Random) -> Step:
    duration, temperature = rng.choice(DURATIONS), rng.choice(TEMPERATURES)
    when = duration if duration == "overnight" else f"for {duration}"
    return Step(
        f"The mixture was stirred {when} at {temperature}",
        f"STIR for {duration} at {temperature}",
    )


def _heat(rng: random.Random) -> Step:
    temperature = rng.choice(TEMPERATURES)
    verb = rng.choice(("brought", "allowed to come"))
    return Step(f"The mixture was {verb} to {temperature}", f"SETTEMPERATURE {temperature}")


def _reflux(rng: random.Random) -> Step:
    duration = rng.choice(DURATIONS[:-1])
    return Step(f"The solution was heated to reflux for {duration}", f"REFLUX for {duration}")


def _quench(rng: random.Random) -> Step:
    reagent, volume = rng.choice(WASHES), _volume(rng)
    return Step(
        f"The reaction was quenched with {reagent} ({volume})", f"QUENCH with {reagent} ({volume})"
    )


def _extract(rng: random.Random) -> Step:
    solvent = rng.choice(EXTRACTANTS)
    times = rng.choice((2, 3))
    return Step(
        f"The aqueous layer was extracted with {solvent} ({times} times)",
        f"COLLECTLAYER aqueous; EXTRACT with {solvent} {times} x",
    )


def _wash_and_dry(rng: random.Random) -> Step:
    wash, agent = rng.choice(WASHES), rng.choice(DRYING_AGENTS)
    return Step(
        f"The organic layer was washed with {wash}, dried over {agent} and concentrated",
        f"COLLECTLAYER organic; WASH with {wash}; DRYSOLUTION over {agent}; CONCENTRATE",
    )


def _filter(rng: random.Random) -> Step:
    if rng.random() < 0.5:
        return Step("The precipitate was collected by filtration", "FILTER keep precipitate")
    return Step(
        "The mixture was filtered and the filtrate evaporated", "FILTER keep filtrate; CONCENTRATE"
    )


def _recrystallize(rng: random.Random) -> Step:
    solvent = rng.choice(SOLVENTS)
    return Step(f"The residue was recrystallized from {solvent}", f"RECRYSTALLIZE from {solvent}")


def _yield(rng: random.Random) -> Step:
    amount = f"{rng.randint(1, 9)}.{rng.randint(0, 9)} g, {rng.randint(20, 99)}%"
    return Step(f"This gave the title compound ({amount})", f"YIELD title compound ({amount})")


def _purify(_: random.Random) -> Step:
    return Step("The crude product was purified by column chromatography", "PURIFY")


def _comment(rng: random.Random) -> Step:
    sentence = rng.choice(
        (
            "The structure was confirmed by NMR",
            "The product was a white solid, see the example above",
        )
    )
    return Step(sentence, "NOACTION")


_STAGES: tuple[tuple[Callable[[random.Random], Step], ...], ...] = (
    (_make_solution, _add, _heat),
    (_add, _stir, _reflux),
    (_quench, _extract, _wash_and_dry, _filter),
    (_recrystallize, _purify, _yield),
)


def procedure(rng: random.Random, *, most: int = 3) -> Step:
    """Write a procedure of one to `most` steps, in the order in which a chemist takes them.

    Returns:
      The paragraph and its action sequence.
    """
    if rng.random() < 0.02:
        prose, actions = _comment(rng)
        return Step(prose + ".", actions + ".")
    count = rng.randint(1, min(most, len(_STAGES)))
    stages = sorted(rng.sample(range(len(_STAGES)), count))
    steps = [rng.choice(_STAGES[stage])(rng) for stage in stages]
    prose = " ".join(s.prose[0].upper() + s.prose[1:] + "." for s in steps)
    return Step(prose, "; ".join(s.actions for s in steps) + ".")
