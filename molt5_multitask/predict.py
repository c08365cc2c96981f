r"""Predict with a model: a file of inputs, or one text.

    python -m molt5_multitask.predict --task forward --model runs/my_run --input file.csv
    python -m molt5_multitask.predict --task molecule_to_text --model runs/my_run --text CCO

A file gives `NAME_TASK.tsv` beside it, with the best outputs and their scores; a run that was
killed goes on where it was when started again. The library call is `predict`.
"""

import dataclasses
import hashlib
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from common import cli
from common.config import to_dict
from common.mesh import MeshConfig, make_mesh
from common.progress import Progress
from molt5_multitask import chem
from molt5_multitask.data.inputs import Inputs, read_inputs
from molt5_multitask.evaluate import SMILES_KINDS
from molt5_multitask.predictions_file import PredictionsFile
from molt5_multitask.predictor import Options, Prediction, Predictor, asked_task, load, predict
from molt5_multitask.pretrained import TOKENIZER_FILES
from molt5_multitask.tasks import Seq2SeqTask, recognise

__all__ = ["Arguments", "Options", "Prediction", "Predictor", "main", "predict", "predict_file"]

logger = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Predict with a model, from a file of inputs or for one text."""

    task: str
    """Task: forward, retrosynthesis, paragraph_to_actions (or actions), text_to_molecule (or
    generation), molecule_to_text (or captioning)."""
    model: str
    """Folder of a checkpoint or of a training run, or name on the hub."""
    input: str | None = None
    """File of inputs without prompts: .csv, .tsv, .txt (one a line) or .jsonl."""
    text: str | None = None
    """One input, whose outputs are printed."""
    output: pathlib.Path | None = None
    """File to write to; NAME_TASK.tsv beside the inputs if not given. It is continued if it was
    begun with the same model and settings."""
    column: str | None = None
    """Column of the inputs; the only one, `input` or `source` if not given."""
    reference: str | None = None
    """Column of references to take over, for the evaluation; `reference` if there is one."""
    mesh: MeshConfig = MeshConfig()
    """Devices to split batches over; all by default."""


def predict_file(arguments: Arguments) -> pathlib.Path:
    """Predict for a file; return the file of predictions.

    Raises:
      ValueError: for bad inputs, files that do not fit, or an output made with other settings.
    """
    assert arguments.input is not None
    task = asked_task(arguments.task, arguments)
    inputs = read_inputs(arguments.input, column=arguments.column, reference=arguments.reference)
    texts = without_prompts(inputs, task)
    mesh = make_mesh(arguments.mesh)
    checkpoint, tokenizer = load(arguments.model)
    predictor = Predictor(
        checkpoint.config, checkpoint.params, tokenizer, task, options=arguments, mesh=mesh
    )
    source = pathlib.Path(arguments.input)
    path = arguments.output or source.with_name(f"{source.name.split('.')[0]}_{task.name}.tsv")
    given = [texts] if inputs.references is None else [texts, inputs.references]
    file = PredictionsFile(
        path,
        header(arguments, references=len(given) > 1),
        record(arguments, task, texts, checkpoint.folder),
        inputs=texts,
    )
    if file.done:
        print(f"{path}: {file.done:,} of {len(texts):,} rows are done", file=sys.stderr)
    encoded = predictor.encode(texts)
    with Progress(len(texts), start=file.done, description=task.name, unit="row") as progress:
        stream = predictor.stream(
            encoded, start=file.done, progress=lambda done: progress.update(done, {})
        )
        for found in stream:
            rows = enumerate(found, file.done)
            file.append([[*(side[i] for side in given), *fields(row)] for i, row in rows])
    return path


def without_prompts(inputs: Inputs, task: Seq2SeqTask) -> list[str]:
    """Return the inputs without prompts, which some may have, and with single backslashes.

    Raises:
      ValueError: if an input begins with the prompt of another task.
    """
    texts = list(inputs.texts)
    prompted = 0
    for i, text in enumerate(texts):
        asked, rest = recognise(text, [task]) or recognise(text) or (None, text)
        if asked is None:
            continue
        if asked.name != task.name:
            raise ValueError(
                f"{inputs.file}, line {inputs.lines[i]}: the input begins with the prompt of the "
                f"task {asked.name}, and asked is {task.name}"
            )
        prompted += 1
        texts[i] = rest.strip()
    if prompted:
        logger.warning(
            "%s of %s inputs begin with a prompt already, which is not doubled: the one used is %r",
            f"{prompted:,}",
            f"{len(texts):,}",
            task.prompt,
        )
    return chem.single_backslashes(texts)[0] if task.input_kind in SMILES_KINDS else texts


def header(options: Options, *, references: bool) -> list[str]:
    """Return the names of the columns."""
    groups = ("output", "score", "rank", "valid") if options.valid_first else ("output", "score")
    names = [f"{group}_{i}" for group in groups for i in range(1, options.best + 1)]
    return ["input", *(["reference"] if references else []), *names]


def fields(found: Prediction) -> list[str]:
    """Return the columns of a prediction."""
    columns = [*found.outputs, *(f"{score:.6f}" for score in found.scores)]
    if found.valid is not None:
        columns += [*map(str, found.ranks), *(str(int(valid)) for valid in found.valid)]
    return columns


def record(
    options: Options, task: Seq2SeqTask, texts: Sequence[str], folder: pathlib.Path
) -> dict[str, Any]:
    """Return all that predictions depend on, as plain JSON."""
    model = hashlib.sha256()
    for pattern in ("config.json", *TOKENIZER_FILES, *WEIGHTS):
        for path in sorted(folder.glob(pattern)):
            with path.open("rb") as file:
                model.update(hashlib.file_digest(file, "sha256").digest())
    return {
        "task": task.name,
        "prompt": task.prompt,
        "model sha256": model.hexdigest(),
        "method": to_dict(options.method),
        "valid_first": options.valid_first,
        "max_length": options.max_length,
        "max_input_length": options.max_input_length,
        "dtype": options.dtype,
        "inputs": len(texts),
        "inputs sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
    }


def validity(path: pathlib.Path) -> str:
    """Say what putting valid outputs first has changed in a file of predictions."""
    head, *lines = path.read_text().removesuffix("\n").split("\n")
    names = head.split("\t")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    moved = sum(row["rank_1"] != "1" for row in rows)
    valid = sum(row["valid_1"] == "1" for row in rows)
    return (
        f"first output valid in {valid:,} of {len(rows):,} rows, in {moved:,} of them because a "
        "valid one was put first"
    )


def predict_text(arguments: Arguments) -> None:
    """Predict for one text, and print the outputs with their scores."""
    assert arguments.text is not None
    task = asked_task(arguments.task, arguments)
    inputs = Inputs(file="--text", texts=[arguments.text], lines=[1], references=None)
    texts = without_prompts(inputs, task)
    options = dataclasses.replace(arguments, rows=1)
    found = predict(texts, task=task, model=arguments.model, options=options)[0]
    for i, (score, output) in enumerate(zip(found.scores, found.outputs, strict=True)):
        mark = "" if found.valid is None or found.valid[i] else "\tnot valid"
        print(f"{score:.4f}\t{output}{mark}")


def run(arguments: Arguments) -> None:
    """Predict for the file or the text."""
    if (arguments.input is None) == (arguments.text is None):
        raise ValueError("give either --input, a file, or --text, one input")
    if arguments.text is not None:
        predict_text(arguments)
        return
    path = predict_file(arguments)
    if arguments.valid_first:
        print(validity(path))
    print(f"written: {path}, {path.name}.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
