"""Score a file of predictions.

    python -m molt5_multitask.evaluate predictions.txt --task captioning

writes `scores.json`, `scores.md` (beside published results) and figures. The library call is
`evaluate`, which training uses too.
"""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import tyro

from common import cli
from molt5_multitask import chem
from molt5_multitask.metrics import figures, report
from molt5_multitask.metrics.actions import action_scores
from molt5_multitask.metrics.captions import caption_scores
from molt5_multitask.metrics.fcd import fcd_scores
from molt5_multitask.metrics.molecules import molecule_scores
from molt5_multitask.metrics.predictions import Predictions, read_predictions
from molt5_multitask.metrics.reactions import (
    ForwardModel,
    RecordedForward,
    reaction_scores,
    round_trip_scores,
)
from molt5_multitask.metrics.scores import Scores, UnavailableError
from molt5_multitask.metrics.text2mol import Text2Mol, load_text2mol, text2mol_scores
from molt5_multitask.metrics.tokens import TokenKind
from molt5_multitask.tasks import TASKS, Seq2SeqTask

ALIASES = {
    "captioning": "molecule_to_text",
    "generation": "text_to_molecule",
    "actions": "paragraph_to_actions",
}
"""Shorter names of tasks."""
PACKAGES = ("rdkit", "nltk", "rapidfuzz", "tokenizers", "numpy", "fcd_torch", "torch")
SMILES_KINDS = ("smiles", "reaction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compute, and where the files are that some metrics need."""

    tokens: TokenKind = "scibert"
    """Tokens of the captions' BLEU and METEOR. Published rows use SciBERT's unless they say so."""
    vocabulary: str | None = None
    """File or folder of the vocabulary of the tokens, or its name on the hub (SciBERT:
    allenai/scibert_scivocab_uncased). Without it BLEU and METEOR of captions are missing."""
    wordnet: str | None = None
    """Folder of WordNet 3.0, or one that holds corpora/wordnet; nltk's own place if not given."""
    meteor: bool = True
    """Compute METEOR, half of the time that captions take."""
    fcd: bool = True
    """Compute the Fréchet ChemNet distance, where its packages are installed (minutes on a CPU)."""


def find_task(name: str) -> Seq2SeqTask:
    """Return a task by its name or alias.

    Raises:
      ValueError: if there is no such task.
    """
    name = ALIASES.get(name, name)
    if name not in TASKS:
        names = [*TASKS, *ALIASES]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no task {name!r}; {hint}the tasks are {', '.join(names)}")
    return TASKS[name]


def evaluate(
    task: str | Seq2SeqTask,
    references: Sequence[str],
    outputs: Sequence[str] | Sequence[Sequence[str]],
    *,
    inputs: Sequence[str] | None = None,
    options: Options = Options(),
    forward: ForwardModel | None = None,
    text2mol: Text2Mol | None = None,
    progress: bool = False,
) -> Scores:
    """Compute every metric of a task that can be computed, and name the others.

    Args:
      task: the task, its name or an alias; the kind of its output decides on the metrics.
      references: expected output by row; SMILES with single backslashes.
      outputs: written output by row, or the best outputs of each row, best first.
      inputs: what the model was given by row, for Text2Mol and the round trip.
      options: what to compute; METEOR and FCD are what costs most.
      forward: model that judges the round trip of retrosynthesis.
      text2mol: model of the Text2Mol metric.
      progress: show progress bars.

    Returns:
      The scores. Accuracies beyond the first output are "top-k"; all else is of the first.

    Raises:
      ValueError: for an unknown task, no rows, sides of different lengths, or a bad resource.
    """
    task = find_task(task) if isinstance(task, str) else task
    beams = [[row] if isinstance(row, str) else list(row) for row in outputs]
    for what, rows in (("outputs", beams), ("inputs", inputs)):
        if rows is not None and len(rows) != len(references):
            raise ValueError(f"{len(references)} references, but {len(rows)} {what}")
    if not beams or not all(beams):
        raise ValueError("there must be one row at least, and one output for each row")
    best = [row[0] for row in beams]
    match task.output_kind:
        case "text":
            scores = caption_scores(
                references,
                best,
                tokens=options.tokens,
                vocabulary=options.vocabulary,
                wordnet=options.wordnet,
                with_meteor=options.meteor,
                progress=progress,
            )
        case "actions":
            scores = action_scores(references, best)
        case _:
            scores = molecule_scores(references, best, progress=progress)
    if task.output_kind == "reaction" or (
        task.output_kind == "smiles" and min(map(len, beams)) > 1
    ):
        scores |= reaction_scores(references, beams, progress=progress)
    if task.output_kind == "smiles" and options.fcd:
        scores |= _or_missing("FCD", lambda: fcd_scores(references, best, progress=progress))
    if (task.input_kind, task.output_kind) == ("smiles", "text"):
        scores |= _or_missing("Text2Mol", lambda: text2mol_scores(best, inputs, text2mol))
    if (task.input_kind, task.output_kind) == ("text", "smiles"):
        scores |= _or_missing("Text2Mol", lambda: text2mol_scores(inputs, best, text2mol))
    if task.name == "retrosynthesis" or (forward is not None and task.output_kind == "reaction"):
        scores |= _or_missing(
            "round trip", lambda: round_trip_scores(inputs, beams, forward, progress=progress)
        )
    return scores | Scores(notes={"versions": versions()})


def _or_missing(name: str, compute: Callable[[], Scores]) -> Scores:
    try:
        return compute()
    except UnavailableError as error:
        return Scores(missing={name: str(error)})


def versions() -> str:
    """Return the versions of the libraries that the numbers may depend on."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Score a file of predictions, tab-separated, with a header.

    Columns: `reference` or `ground truth`; `output`, or `output_1`, `output_2`, ... (best first);
    and `input`, `SMILES` or `description` if there is one.
    """

    predictions: tyro.conf.Positional[pathlib.Path]
    """The file."""
    task: str
    """Task of the predictions: forward, retrosynthesis, paragraph_to_actions (or actions),
    text_to_molecule (or generation), molecule_to_text (or captioning)."""
    out: pathlib.Path | None = None
    """Folder to write to; `NAME_scores` beside the file if not given."""
    name: str | None = None
    """Name of the system in tables and figures; that of the file if not given."""
    backslashes: Literal["auto", "single", "doubled"] = "auto"
    """How the file writes the backslashes of SMILES; by default each column is looked at. What was
    found, and how it was read, is in the report."""
    forward_predictions: pathlib.Path | None = None
    """Predictions of a forward model for every output, for the round trip of retrosynthesis."""
    forward_model: str | None = None
    """Name of that forward model."""
    text2mol: str | None = None
    """Text2Mol plug-in as MODULE:NAME."""
    figures: bool = True
    """Draw the figures."""


def load(arguments: Arguments) -> tuple[Seq2SeqTask, Predictions, dict[str, str]]:
    """Read the file of predictions, and bring its SMILES to single backslashes.

    Returns:
      The task, the predictions, and notes on the backslashes found in each column of SMILES.
    """
    task = find_task(arguments.task)
    found = read_predictions(arguments.predictions)
    form = None if arguments.backslashes == "auto" else arguments.backslashes
    notes = {}

    def single(column: str, texts: Sequence[str]) -> list[str]:
        texts, seen = chem.single_backslashes(texts, form=form)
        notes[f"backslashes of the {column}"] = (
            f"{seen.single:,} single, {seen.doubled:,} doubled; read as {form or seen.form}"
        )
        return texts

    references, outputs, inputs = found.references, found.outputs, found.inputs
    if task.output_kind in SMILES_KINDS:
        references = single("references", references)
        width = len(outputs[0])
        flat = single("outputs", [text for row in outputs for text in row])
        outputs = [flat[i : i + width] for i in range(0, len(flat), width)]
    if task.input_kind in SMILES_KINDS and inputs is not None:
        inputs = single("inputs", inputs)
    return task, Predictions(references=references, outputs=outputs, inputs=inputs), notes


def load_forward(arguments: Arguments) -> RecordedForward | None:
    """Read the predictions of a forward model, if they are given with its name."""
    path, name = arguments.forward_predictions, arguments.forward_model
    if path is None and name is None:
        return None
    if path is None or name is None:
        raise ValueError("--forward_predictions and --forward_model go together: file and name")
    found = read_predictions(path, reference=False)
    if found.inputs is None:
        raise ValueError(f"{path}, line 1: no column 'input' with the precursors")
    inputs, _ = chem.single_backslashes(found.inputs)
    products, _ = chem.single_backslashes([row[0] for row in found.outputs])
    return RecordedForward(name=name, products=dict(zip(inputs, products, strict=True)))


def run(arguments: Arguments) -> pathlib.Path:
    """Score a file, write the report, and return its folder."""
    task, found, notes = load(arguments)
    forward = load_forward(arguments)
    text2mol = None if arguments.text2mol is None else load_text2mol(arguments.text2mol)
    scores = evaluate(
        task,
        found.references,
        found.outputs,
        inputs=found.inputs,
        options=arguments,
        forward=forward,
        text2mol=text2mol,
        progress=True,
    )
    scores |= Scores(notes=notes)
    path = arguments.predictions
    out = arguments.out or path.with_name(f"{path.stem}_scores")
    name = arguments.name or path.stem
    out.mkdir(parents=True, exist_ok=True)
    print(report.write(out, name, task, scores, tokens=arguments.tokens))
    best = [row[0] for row in found.outputs]
    drawn = figures.write(out, name, found.references, best, scores) if arguments.figures else []
    print("written: " + ", ".join([f"{out}/scores.json", f"{out}/scores.md", *drawn]))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
