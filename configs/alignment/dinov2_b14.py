"""The published recipe on DINOv2-B/14, positions resampled to 16 x 16; see `siglip_b16.py`."""

from alignment.student import Student
from alignment.vit.model import preset
from common import Experiment
from configs.alignment import siglip_b16


def config() -> Experiment[Student]:
    """Return the experiment."""
    return siglip_b16.config(preset("dinov2-b14", image_size=224), "facebook/dinov2-base")
