"""The published recipe on CLIP-B/16; see `siglip_b16.py`."""

from alignment.student import Student
from alignment.vit.model import preset
from common import Experiment
from configs.alignment import siglip_b16


def config() -> Experiment[Student]:
    """Return the experiment."""
    return siglip_b16.config(preset("clip-b16", projection=None), "openai/clip-vit-base-patch16")
