"""Apply a transform to features: one that was fitted here, or a released gLocal transform.

python -m alignment.teacher.apply features.npz --transform teacher.npz --out aligned.npz
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import tyro

from alignment.features import Features
from alignment.judgments import Transform
from common import cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Apply a transform to features."""

    features: tyro.conf.Positional[pathlib.Path]
    """Features, as `alignment.embed` writes them."""
    transform: pathlib.Path
    """The transform: `weights`, `mean`, `std` and, if there is one, `bias`."""
    out: pathlib.Path
    """Features file to write; names and labels stay."""


def run(arguments: Arguments) -> Features:
    """Transform, write, and return the features."""
    given = Features.read(arguments.features)
    transform = Transform.read(arguments.transform)
    found = dataclasses.replace(given, features=transform(given.features))
    found.write(arguments.out)
    print(f"{len(found.names):,} rows of dimension {found.features.shape[1]}")
    print(f"written: {arguments.out}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
