"""The paper's setting for the base model; see `text_chem_t5_small.py`."""

from common import Experiment
from configs.molt5_multitask import text_chem_t5_small
from molt5_multitask.training import MultitaskT5


def config() -> Experiment[MultitaskT5]:
    """Return the experiment."""
    return text_chem_t5_small.config("t5-base")
