"""Train a student (or a classifier to start one from), then export it.

    python -m alignment.train configs/alignment/siglip_b16.py

The work folder gets the log, the checkpoints, and the model in Hugging Face's form (`export/`).
"""

from typing import Any

import jax

from alignment.classifier import Classifier
from alignment.export import write
from alignment.student import Student
from common import Experiment, cli, train


def run(config: Experiment[Student] | Experiment[Classifier], **options: Any) -> dict[str, float]:
    """Train, or resume, and export.

    Args:
      config: the run.
      options: passed to `common.train`.

    Returns:
      The last metrics.
    """
    if not isinstance(config, Experiment):
        raise ValueError(
            f"this is a config of {type(config).__name__}: run it by python -m alignment.pipeline"
        )
    result = train(config, **options)
    if config.workdir is not None:
        write(f"{config.workdir}/export", config, result.params, result.metrics)
        if jax.process_index() == 0:
            print(f"model: {config.workdir}/export; log and checkpoints: {config.workdir}")
    return result.metrics


if __name__ == "__main__":
    cli.main(run)
