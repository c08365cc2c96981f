"""The control without pretraining: the recipe from random weights; see `siglip_b16.py`."""

from alignment.student import Student
from alignment.vit.model import preset
from common import Experiment
from configs.alignment import siglip_b16


def config() -> Experiment[Student]:
    """Return the experiment."""
    return siglip_b16.config(preset("siglip-b16"), start_from=None)
