"""Write a trained model as a Hugging Face folder with a model card.

    python -m alignment.export runs/alignment/siglip_b16 --out aligned \
        --scores evaluation/scores.json --control control/scores.json

takes config and newest checkpoint from the work folder. transformers loads the backbone with
`AutoModel.from_pretrained`; the triplet head, of which transformers knows nothing, lies beside it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tyro
from etils import epath

from alignment.classifier import Classifier
from alignment.student import Student
from alignment.vit.hf_format import architecture
from alignment.vit.pretrained import save_pretrained
from common import Experiment, cli
from common.checkpoint import Checkpoints
from common.config import from_json
from common.distributed import to_host
from common.files import PathLike, local_folder
from common.nn.weights import write_safetensors
from common.report import provenance, table
from common.setup import prepare
from common.task import Params

HEAD_FILE = "triplet_head.safetensors"
"""The triplet head: `weight` (outputs, features) and `bias`, as torch keeps a linear layer."""

TASKS: Mapping[str, Any] = {"Student": Student, "Classifier": Classifier}
Numbers = Mapping[str, float]


def write(
    path: PathLike,
    experiment: Experiment[Any],
    params: Params,
    numbers: Numbers,
    *,
    control: Numbers | None = None,
) -> None:
    """Write backbone, head and model card: called by all processes, written by the first.

    Args:
      path: folder to write to; made if it is not there.
      experiment: what trained the parameters.
      params: the parameters.
      numbers: what the card says of the model.
      control: the same numbers of the control, to stand beside.
    """
    task = experiment.task
    params = to_host(params)
    if jax.process_index() != 0:
        return
    card = model_card(experiment, numbers, control)
    with local_folder(path) as folder:
        save_pretrained(folder, task.model, params["backbone"], preprocessing=task.preprocessing)
        if isinstance(task, Student):
            head = params["triplet_head"]
            weight = np.ascontiguousarray(head["kernel"].T)
            write_safetensors(folder / HEAD_FILE, {"weight": weight, "bias": head["bias"]})
        (folder / "README.md").write_text(card, "utf-8")


def model_card(
    experiment: Experiment[Any], numbers: Numbers, control: Numbers | None = None
) -> str:
    """Return the model card: what it is, its data, its numbers, and the control."""
    task = experiment.task
    model = task.model
    side = f"{model.image_size} x {model.image_size}"
    parts = ["---\nlibrary_name: transformers\npipeline_tag: image-feature-extraction\n---"]
    if isinstance(task, Student):
        aligned = task.data_set.labels == "uncertainty_distillation"
        data = task.data_set
        parts += [
            "# A vision model aligned with similarity judgments"
            if aligned
            else "# The control of an aligned vision model (UnAligNet)",
            f"A {architecture(model)} vision transformer ({side} pixels, patches of {model.patch}, "
            f"{model.layers} blocks of width {model.width}), fine-tuned from "
            f"`{task.start_from or 'random weights'}` on triplets of images that were labelled by "
            + (
                "a teacher whose representation was fitted to odd-one-out choices."
                if aligned
                else "a teacher that was NOT fitted to odd-one-out choices. It tells what comes "
                "from them and what from more training: compare it with the aligned model."
            ),
            "## Training data",
            table(
                ("what", "where"),
                [
                    ("triplets", f"`{data.train}`"),
                    ("labels", data.labels.replace("_", " ")),
                    ("images", f"`{data.images}`"),
                    ("preprocessing", f"`{task.preprocessing}`"),
                ],
            ),
            f"{experiment.steps:,} steps on {experiment.batch_size} triplets; loss "
            f"{task.loss_config.name} at temperature {task.loss_config.tau:g}; Adam, learning rate "
            f"{experiment.optim.learning_rate:g}, decay towards the start "
            f"{experiment.optim.weight_decay:g}; seed {experiment.seed}.",
        ]
    else:
        parts += [
            "# A vision model trained on class labels",
            f"A vision transformer ({side} pixels, patches of {model.patch}, {model.layers} blocks "
            f"of width {model.width}), trained on the {task.classes} classes of `{task.images}`.",
        ]
    header = ("number", "this model") if control is None else ("number", "this model", "control")
    rows = [
        (name, f"{value:.4g}", *([] if control is None else [_number(control.get(name))]))
        for name, value in numbers.items()
        if not name.startswith("perf/")
    ]
    parts += ["## Numbers", table(header, rows) if rows else "None were given."]
    if control is None and isinstance(task, Student):
        parts.append(
            "No control was given. A gain over the start alone may come from more training: train "
            "the control on the labels `untransformed` and compare."
        )
    if isinstance(task, Student):
        parts += ["## Use", _USE]
    parts.append(f"Written with {provenance()['versions']}.")
    return "\n\n".join(parts) + "\n"


_USE = """```python
import transformers

model = transformers.AutoModel.from_pretrained(".")
```

The triplet head in `triplet_head.safetensors` maps the pooled features to `triplet_logits`. The
preprocessing is that of the table; transformers' processors have no filter like `opencv_cubic`
(the whole image to a square, without antialiasing), so resize by `cv2.resize` where it says so."""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def restore(workdir: PathLike) -> tuple[Experiment[Any], Params]:
    """Read config and newest parameters of a run from its work folder.

    Raises:
      FileNotFoundError: if there is no run.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists() or not (path.parent / "checkpoints").exists():
        raise FileNotFoundError(f"{workdir} is no work folder with config.json and checkpoints")
    kind = json.loads(path.read_text())["task"]["class"].rpartition(".")[2]
    if kind not in TASKS:
        raise ValueError(f"{path} is a run of {kind}; known are {', '.join(TASKS)}")
    experiment: Experiment[Any] = from_json(Experiment[TASKS[kind]], path.read_text())  # type: ignore[valid-type]
    with Checkpoints(workdir, experiment.checkpoint, read_only=True) as checkpoints:
        state = checkpoints.restore(prepare(experiment).abstract_state)
    if state is None:
        raise FileNotFoundError(f"{workdir} holds no checkpoint")
    return experiment, state.eval_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a trained model as a Hugging Face folder with a model card."""

    workdir: tyro.conf.Positional[str]
    """Work folder of the run."""
    out: str
    """Folder to write to."""
    scores: pathlib.Path | None = None
    """JSON of named numbers for the card, such as `alignment.evaluate` writes."""
    control: pathlib.Path | None = None
    """The same numbers of the control."""


def read_numbers(path: pathlib.Path | None) -> Numbers | None:
    """Read the numbers of a JSON object, nested ones by slash-joined names.

    Raises:
      FileNotFoundError, ValueError: naming the file, if it is missing or no JSON object.
    """
    if path is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        found = json.loads(path.read_text())
        return dict(_flat(found, ""))
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is no JSON object of numbers") from None


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    numbers: list[tuple[str, float]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            numbers += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers.append((f"{prefix}{name}", float(value)))
    return numbers


def run(arguments: Arguments) -> None:
    """Export a run."""
    scores, control = read_numbers(arguments.scores), read_numbers(arguments.control)
    experiment, params = restore(arguments.workdir)
    write(arguments.out, experiment, params, scores or {}, control=control)
    print(f"written: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv)


if __name__ == "__main__":
    main()
