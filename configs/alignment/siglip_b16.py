"""The published student: SigLIP-B/16, fine-tuned on the AligNet triplets.

The folder that the environment variable ALIGNET_DATA names, `data/alignet` without it, holds the
triplets, as published or as `alignment.triplets` writes them, with `val_SAMPLING.npz` of the three
evaluated samplings; IMAGENET_TRAIN, `data/imagenet/train` without it, the images. The control
(UnAligNet) is the same run on the labels of the raw teacher:

    python -m alignment.train configs/alignment/siglip_b16.py \
        --task.data_set.labels untransformed --workdir runs/alignment/siglip_b16_control

As published: 512 triplets a step, Jensen-Shannon divergence at temperature 100, Adam with decay
towards the start, coefficient 1.0 on all parameters, 3e-5 after 5,000 steps and a cosine down to 0
at step 100,000, float32, seed 42, no clipping, no augmentation.
"""

import os

from alignment.student import Student
from alignment.triplets.batches import TripletImages
from alignment.vit.model import ViTConfig, preset
from common import CheckpointConfig, Experiment, LogConfig, OptimConfig


def config(
    model: ViTConfig | None = None, start_from: str | None = "google/siglip-base-patch16-224"
) -> Experiment[Student]:
    """Return the experiment, for SigLIP-B/16 or another backbone."""
    return Experiment(
        task=Student(
            model=model or preset("siglip-b16"),
            start_from=start_from,
            data_set=TripletImages(
                root=os.environ.get("ALIGNET_DATA", "data/alignet"),
                images=os.environ.get("IMAGENET_TRAIN", "data/imagenet/train"),
            ),
        ),
        steps=100_000,
        batch_size=512,
        seed=42,
        optim=OptimConfig(
            name="adamw",
            learning_rate=3e-5,
            warmup_steps=5000,
            weight_decay=1.0,
            decay_to_init=True,
        ),
        checkpoint=CheckpointConfig(every=10_000, keep=3),
        log=LogConfig(every=100),
    )
