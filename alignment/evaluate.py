"""Compare representations with human judgments, before and after alignment.

    python -m alignment.evaluate --out results \
        --before.things base.npz --after.things aligned.npz --human.triplets triplets.npz \
        --before.rdms base92.npz --after.rdms aligned92.npz --human.rdms kriegeskorte92_tidy.npz

Every evaluation takes the features of its own set of images, and is skipped, with the reason,
where a file for it is not given. Writes `results.json`, `results.md` and figures. The measures are
functions of `alignment.evaluation`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from alignment.evaluation import classes, human, results
from alignment.evaluation.inputs import Inputs, Made, SkipError
from alignment.evaluation.results import Section
from common import cli

EVALUATIONS: Mapping[str, Callable[[Inputs], Made]] = {
    "odd one out": human.evaluate_triplets,
    "uncertainty": human.evaluate_uncertainty,
    "rsa": human.evaluate_rdms,
    "levels": human.evaluate_levels,
    "hierarchy": classes.evaluate_hierarchy,
    "validation pairs": human.evaluate_pairs,
    "probes": classes.evaluate_probes,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Inputs):
    """Compare representations with human judgments, before and after alignment."""

    out: pathlib.Path
    """Folder to write to."""


def run(arguments: Arguments) -> Mapping[str, Section]:
    """Make every evaluation whose files are given, write the report, and return the sections.

    Raises:
      ValueError: if there is none, or a file is at fault.
    """
    sections: dict[str, Section] = {}
    skipped: dict[str, str] = {}
    drawn: dict[str, Figure] = {}
    for name, evaluate in EVALUATIONS.items():
        try:
            section, found = evaluate(arguments)
        except SkipError as error:
            skipped[name] = str(error)
            continue
        sections[name] = section
        drawn |= found
        print(section.markdown() + "\n", flush=True)
    if not sections:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(f"nothing to evaluate ({reasons})")
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = results.write(arguments.out, sections, skipped)
    for name, figure in drawn.items():
        path = arguments.out / f"{name}.png"
        figure.savefig(path, dpi=150)
        written.append(path)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    print("written: " + ", ".join(map(str, written)))
    return sections


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
