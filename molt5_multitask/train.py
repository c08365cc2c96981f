"""Train the multitask T5, then decode and score held-out rows.

    python -m molt5_multitask.train configs/molt5_multitask/quickstart.py

The work folder gets the log and the checkpoints, the model in Hugging Face's form (`export/`),
the predictions of each task, `results.md`, `results.json` and the learning curves.
"""

import jax

from common import Experiment, cli, train
from common.distributed import to_host
from molt5_multitask import results
from molt5_multitask.training import MultitaskT5


def run(config: Experiment[MultitaskT5]) -> dict[str, float]:
    """Train, or resume, and report.

    Returns:
      The exact match on held-out rows, by task.
    """
    task = config.task
    # Whatever is wrong with the data is said before anything is compiled.
    mixed = task.mixed_data(batch_size=config.batch_size, seed=config.seed)
    if jax.process_index() == 0:
        print(f"{mixed.summary()}\n", flush=True)
    params = to_host(train(config).params)
    scores = results.score_held_out(config, params)
    if jax.process_index() == 0:
        folder = results.export(config, params)
        print(results.write(config, scores))
        print(f"model: {folder}; predictions, results and curves: {config.workdir}")
    return {f"{name}/exact": row["exact match"] for name, row in scores.items()}


if __name__ == "__main__":
    cli.main(run)
