"""Train the multitask T5: `python -m molt5_multitask.train CONFIG.py`."""

from typing import Any

from common import Experiment, cli, train
from molt5_multitask.training import MultitaskT5


def run(config: Experiment[MultitaskT5]) -> Any:
    """Train."""
    return train(config)


if __name__ == "__main__":
    cli.main(run)
