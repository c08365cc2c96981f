"""The published recipe on the supervised ViT-B/16; see `siglip_b16.py`."""

from alignment.student import Student
from alignment.vit.model import preset
from common import Experiment
from configs.alignment import siglip_b16


def config() -> Experiment[Student]:
    """Return the experiment."""
    return siglip_b16.config(preset("vit-b16"), "google/vit-base-patch16-224")
