r"""What the T5 vocabulary cannot write, and how much of it comes back.

    python -m benchmarks.molt5_multitask.restoration

The vocabulary has no `\` and no `~`. A model that writes every target without a mistake therefore
scores no better than the targets that come back from their own token ids. They are counted here for
three ways to decode: without special tokens, as `generate`'s users mostly do, which drops the
unknown piece; with the unknown piece left as it is; and restored by the kind of the output
(`molt5_multitask.restore`). Texts are as our readers give them: SMILES with single backslashes.

Writes `restoration.json` and `restoration.md` beside this file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import tokenizers
import tyro

from common.report import provenance, table
from molt5_multitask.data import readers
from molt5_multitask.data.report import BadRows
from molt5_multitask.restore import restore
from molt5_multitask.tasks import TASKS, Kind
from molt5_multitask.tokenizer import UNKNOWN

OUTPUT = pathlib.Path(__file__)
SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "molt5_multitask"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Count the targets that come back from their token ids."""

    data: pathlib.Path = SHARED
    """Folder of the shared data."""


def targets(folder: pathlib.Path) -> dict[str, tuple[Kind, list[str]]]:
    """Return the kind and the texts of each set of targets."""

    def captions(split: str) -> readers.Reader:
        return readers.MoleculeCaptions(path=f"{folder}/chebi20/{split}.txt")

    uspto = readers.Reactions(path=f"{folder}/uspto50k_standard/test.tsv.gz", layout="table")
    mixed = readers.Reactions(path=f"{folder}/uspto480k/test_10k_mixed_canonical.tsv.gz")
    sample = readers.PromptedJsonl(path=f"{folder}/gt4sd_sample/train.jsonl")
    wanted: tuple[tuple[str, readers.Reader, tuple[str, ...]], ...] = (
        ("ChEBI-20 test", captions("test"), ("text_to_molecule", "molecule_to_text")),
        ("ChEBI-20 validation", captions("validation"), ("text_to_molecule",)),
        ("USPTO-50k test", uspto, ("forward", "retrosynthesis")),
        ("USPTO-480k test, reagents mixed in", mixed, ("forward", "retrosynthesis")),
        ("sample of the paper's data", sample, ("forward", "retrosynthesis")),
    )
    found = {}
    for name, reader, tasks in wanted:
        examples = reader.read(BadRows())
        for task in tasks:
            texts = [e.target for e in examples if e.task == task]
            found[f"{name}, {task}"] = TASKS[task].output_kind, texts
    return found


def count(tokenizer: tokenizers.Tokenizer, kind: Kind, texts: Sequence[str]) -> dict[str, int]:
    """Count the texts that come back by each way to decode."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids = [text.ids for text in encoded]
    kept = tokenizer.decode_batch(ids, skip_special_tokens=False)
    ways = {
        "special tokens skipped": tokenizer.decode_batch(ids, skip_special_tokens=True),
        "unknown pieces left": kept,
        "restored": [restore(text, kind) for text in kept],
    }
    return {
        "targets": len(texts),
        "with an unknown piece": sum(UNKNOWN in row for row in ids),
        **{
            way: sum(a.strip() == b for a, b in zip(found, texts, strict=True))
            for way, found in ways.items()
        },
    }


def main(arguments: Arguments) -> None:
    """Count, and write the table."""
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.data / "tokenizer" / "tokenizer.json"))
    found = {
        name: count(tokenizer, *kind_and_texts)
        for name, kind_and_texts in targets(arguments.data).items()
    }
    origin = provenance()
    OUTPUT.with_suffix(".json").write_text(json.dumps({**origin, "sets": found}, indent=1) + "\n")
    header = ("set and task", *next(iter(found.values())))
    rows = [(name, *(f"{value:,}" for value in row.values())) for name, row in found.items()]
    parts = [
        "# Targets that come back from their own token ids",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        "What is what: see `restoration.py`. Captions are not restored: what an unknown piece "
        "of prose stood for cannot be told.",
        table(header, rows),
    ]
    OUTPUT.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
