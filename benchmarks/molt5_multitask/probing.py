"""Does a captioner write the same of the same molecule, however its SMILES is written?

    python -m benchmarks.molt5_multitask.probing --model FOLDER

The ChEBI-20 test set with each molecule as it came, and rewritten in four ways: canonical by RDKit,
with explicit hydrogens, kekulised, and with rings numbered anew. One model captions all five; each
is scored against the references, and its captions are compared with those of the SMILES as they
came. FOLDER is a training run, or a checkpoint of T5's form, whose prompt `--prompt` may replace.

Writes `probing_NAME.json` and `probing_NAME.md` beside this file, after `--name`.
"""

import dataclasses
import json
import pathlib

import tyro

from common.progress import Progress
from common.report import provenance, table
from molt5_multitask.data.readers import MoleculeCaptions
from molt5_multitask.data.report import BadRows
from molt5_multitask.evaluate import Options as Metrics
from molt5_multitask.evaluate import evaluate
from molt5_multitask.predictor import Options, Predictor, load

OUTPUT = pathlib.Path(__file__)
SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "molt5_multitask"
FORMS = ("original", "rdkit_canonical", "explicit_hs", "kekulize_smiles", "cycle_renumering")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Caption rewritten SMILES, and compare."""

    model: str
    """Folder of the captioner."""
    name: str = "model"
    """Name of the captioner in the table and its file."""
    data: pathlib.Path = SHARED
    """Folder of the shared data."""
    count: int | None = None
    """Take the first molecules only."""
    wordnet: str | None = None
    """Folder of WordNet 3.0, for METEOR."""


def main(arguments: Arguments) -> None:
    """Caption and score all five files, and write the table."""
    checkpoint, tokenizer = load(arguments.model)
    predictor = Predictor(
        checkpoint.config, checkpoint.params, tokenizer, "molecule_to_text", options=arguments
    )
    metrics = Metrics(vocabulary=str(arguments.data / "metrics_assets"), wordnet=arguments.wordnet)
    found: dict[str, dict[str, float]] = {}
    first: list[str] = []
    for form in FORMS:
        path = arguments.data / "smiles_probing" / f"test_{form}.csv.gz"
        reader = MoleculeCaptions(path=str(path), tasks=("molecule_to_text",))
        examples = reader.read(BadRows())[: arguments.count]
        outputs: list[str] = []
        with Progress(len(examples), description=form, unit="row") as progress:
            for rows in predictor.stream(predictor.encode([e.input for e in examples])):
                outputs += [row.outputs[0] for row in rows]
                progress.update(len(outputs), {})
        first = first or outputs
        scores = evaluate("captioning", [e.target for e in examples], outputs, options=metrics)
        same = sum(a == b for a, b in zip(outputs, first, strict=True)) / len(first)
        found[form] = {**scores.values, "same caption as of the original": same}
    origin = provenance()
    document = {**origin, "molecules": len(first), "forms": found}
    target = OUTPUT.with_name(f"probing_{arguments.name}")
    target.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    names = list(found["original"])
    rows = [(form, *(f"{row[n]:.3f}" for n in names)) for form, row in found.items()]
    parts = [
        f"# Captions of rewritten SMILES: {arguments.name}",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"{len(first):,} molecules; SciBERT's tokens. What is what: see `probing.py`.",
        table(("SMILES", *names), rows),
    ]
    target.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
