"""The published recipe on the supervised ViT-L/16, for a pod; see `siglip_b16.py`.

python -m alignment.train aot configs/alignment/vit_l16.py --topology v5e:8x8 --mesh.fsdp 8
"""

from alignment.student import Student
from alignment.vit.model import preset
from common import Experiment
from configs.alignment import siglip_b16


def config() -> Experiment[Student]:
    """Return the experiment."""
    return siglip_b16.config(preset("vit-l16", remat="dots"), "google/vit-large-patch16-224")
