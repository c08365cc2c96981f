"""A small T5 on public data: USPTO-50k in both directions and ChEBI-20 captions in both.

The files lie in the folder that the environment variable MOLT5_DATA names, `data/molt5` without it:
`uspto50k_liu/{train,test}_{sources,targets}.gz` (Liu et al. 2017; class token, then characters
separated by spaces), `chebi20/{validation,test}.txt` (MolT5's TSV form; the training split takes
the place of `validation.txt` where one has it), and the T5 vocabulary in `tokenizer/`. Training
rows that share a molecule with a test row are dropped.
"""

import os

from common import CheckpointConfig, Experiment, LogConfig, OptimConfig
from molt5_multitask.data.files import FileCorpus
from molt5_multitask.data.readers import MoleculeCaptions, SpacedReactions
from molt5_multitask.model import preset
from molt5_multitask.training import MultitaskT5


def config() -> Experiment[MultitaskT5]:
    """Return the experiment."""
    folder = os.environ.get("MOLT5_DATA", "data/molt5")

    def reactions(split: str) -> SpacedReactions:
        stem = f"{folder}/uspto50k_liu/{split}"
        return SpacedReactions(products=f"{stem}_sources.gz", reactants=f"{stem}_targets.gz")

    def captions(split: str) -> MoleculeCaptions:
        return MoleculeCaptions(path=f"{folder}/chebi20/{split}.txt")

    return Experiment(
        task=MultitaskT5(
            model=preset(
                "t5-small",
                d_model=256,
                d_ff=1024,
                heads=4,
                encoder_layers=3,
                decoder_layers=3,
                vocab_size=32100,
                dropout=0.0,
            ),
            corpus=FileCorpus(
                train=(reactions("train"), captions("validation")),
                held_out=(reactions("test"), captions("test")),
            ),
            vocabulary=f"{folder}/tokenizer",
            input_length=256,
            target_length=256,
            eval_every=500,
            eval_rows=128,
        ),
        steps=2000,
        batch_size=8,
        optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=200, clip_norm=1.0),
        checkpoint=CheckpointConfig(every=250),
        log=LogConfig(every=50),
    )
