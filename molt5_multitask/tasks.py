"""The five tasks: what the model is asked, and what kind of string goes in and comes out.

A sixth task is one more entry: everything downstream takes a `Seq2SeqTask`, or a mapping of them.
The prompts are those of Text+Chem T5 to the character, or its checkpoints would not know them.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Kind = Literal["smiles", "reaction", "text", "actions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqTask:
    """One task of a text-to-text model: the source is `prompt + input`."""

    name: str
    """Our name of the task."""
    prompt: str
    """What stands before the input, with its last space; empty for a model of one task (MolT5)."""
    input_kind: Kind
    """Kind of the input: one molecule, `.`-joined molecules of a reaction, prose, or actions."""
    output_kind: Kind
    """Kind of the output; it decides what an unknown piece in it stands for (`restore.py`)."""


class Example(NamedTuple):
    """One row of training or test data, without its prompt."""

    task: str
    """Name of the task."""
    input: str
    """Input without the prompt; a SMILES has single backslashes."""
    target: str
    """What the model should write."""


TASKS: Mapping[str, Seq2SeqTask] = {
    task.name: task
    for task in (
        Seq2SeqTask(
            name="forward",
            prompt="Predict the product of the following reaction: ",
            input_kind="reaction",
            output_kind="reaction",
        ),
        Seq2SeqTask(
            name="retrosynthesis",
            prompt="Predict the reaction that produces the following product: ",
            input_kind="reaction",
            output_kind="reaction",
        ),
        Seq2SeqTask(
            name="paragraph_to_actions",
            prompt="Which actions are described in the following paragraph: ",
            input_kind="text",
            output_kind="actions",
        ),
        Seq2SeqTask(
            name="text_to_molecule",
            prompt="Write in SMILES the described molecule: ",
            input_kind="text",
            output_kind="smiles",
        ),
        Seq2SeqTask(
            name="molecule_to_text",
            prompt="Caption the following SMILES: ",
            input_kind="smiles",
            output_kind="text",
        ),
    )
}
"""The tasks of the paper, by name."""

CAPTION_MOLECULE = dataclasses.replace(
    TASKS["molecule_to_text"], prompt="Caption the following molecule: "
)
"""Captioning as the authors' demonstration asks for it; their training data says `SMILES`."""


def recognise(
    source: str, tasks: Iterable[Seq2SeqTask] = (*TASKS.values(), CAPTION_MOLECULE)
) -> tuple[Seq2SeqTask, str] | None:
    """Split a source into its task and the input after the prompt; None if no prompt is known."""
    for task in tasks:
        if task.prompt and source.startswith(task.prompt):
            return task, source[len(task.prompt) :]
    return None
