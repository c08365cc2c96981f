import pytest

from molt5_multitask.tasks import CAPTION_MOLECULE, TASKS, Seq2SeqTask, recognise


def test_prompts_are_those_of_the_published_checkpoints() -> None:
    assert {name: task.prompt for name, task in TASKS.items()} == {
        "forward": "Predict the product of the following reaction: ",
        "retrosynthesis": "Predict the reaction that produces the following product: ",
        "paragraph_to_actions": "Which actions are described in the following paragraph: ",
        "text_to_molecule": "Write in SMILES the described molecule: ",
        "molecule_to_text": "Caption the following SMILES: ",
    }
    assert CAPTION_MOLECULE.prompt == "Caption the following molecule: "
    assert CAPTION_MOLECULE.name == "molecule_to_text"


@pytest.mark.parametrize("task", [*TASKS.values(), CAPTION_MOLECULE])
def test_a_source_is_split_into_task_and_input(task: Seq2SeqTask) -> None:
    assert recognise(task.prompt + "CCO: x") == (task, "CCO: x")


def test_a_source_without_a_known_prompt_is_not_guessed() -> None:
    assert recognise("CCO") is None
    assert recognise("caption the following SMILES: CCO") is None
    # The space after the colon belongs to the prompt.
    assert recognise("Caption the following SMILES:CCO") is None


def test_a_task_without_a_prompt_never_matches() -> None:
    bare = Seq2SeqTask(name="molt5", prompt="", input_kind="smiles", output_kind="text")
    assert recognise("CCO", [bare]) is None


def test_a_sixth_task_is_one_entry() -> None:
    yields = Seq2SeqTask(
        name="yield", prompt="Predict the yield: ", input_kind="reaction", output_kind="text"
    )
    assert recognise("Predict the yield: CCO", [*TASKS.values(), yields]) == (yields, "CCO")
