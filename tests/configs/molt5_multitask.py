"""T5 configs, shrunk, and files in the forms that they read."""

import dataclasses
import gzip
import json
import os
import pathlib

import jax

from common import Experiment
from molt5_multitask.corpus import SyntheticCorpus
from molt5_multitask.model import init
from molt5_multitask.pretrained import save_pretrained
from molt5_multitask.tasks import TASKS
from molt5_multitask.train import run as run
from molt5_multitask.training import MultitaskT5
from tests.configs.rehearsal import in_calls

CORPUS = SyntheticCorpus(molecules=60, reactions=60, procedures=60, vocabulary=300)


def write_data(folder: pathlib.Path) -> None:
    """Write a small corpus in the authors' form, and as the public data sets have theirs."""
    os.environ["MOLT5_DATA"] = str(folder / "public")
    corpus = CORPUS.make()
    CORPUS.tokenizer(corpus).save(folder / "public" / "tokenizer")
    sides = zip(("train", "valid"), ("train", "test"), ("validation", "test"), corpus, strict=True)
    for authors, reactions, captions, side in sides:
        rows = [
            json.dumps({"source": TASKS[name].prompt + e.input, "target": e.target})
            for name, examples in side.items()
            for e in examples
        ]
        write(folder / "data" / f"{authors}.jsonl", rows)
        stem = folder / "public" / "uspto50k_liu" / reactions
        pairs = side["forward"]
        write(f"{stem}_sources.gz", [" ".join(f"<RX_1>{e.target}") for e in pairs])
        write(f"{stem}_targets.gz", [" ".join(e.input) for e in pairs])
        rows = [f"{i}\t{e.input}\t{e.target}" for i, e in enumerate(side["molecule_to_text"])]
        path = folder / "public" / "chebi20" / f"{captions}.txt"
        write(path, ["CID\tSMILES\tdescription", *rows])


def write(path: str | pathlib.Path, rows: list[str]) -> None:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = ("\n".join(rows) + "\n").encode()
    pathlib.Path(path).write_bytes(gzip.compress(content) if str(path).endswith("gz") else content)


def shrink(config: Experiment[MultitaskT5]) -> Experiment[MultitaskT5]:
    """Return the experiment with a narrow model of one block, on short rows."""
    model = dataclasses.replace(
        config.task.model,
        d_model=64,  # what the widest mesh divides
        d_ff=64,
        heads=2,
        d_kv=8,
        encoder_layers=1,
        decoder_layers=1,
        vocab_size=300,
    )
    changes = {}
    if isinstance(config.task.corpus, SyntheticCorpus):
        changes = {"corpus": CORPUS}
    elif config.task.start_from is not None:  # by its name on the hub
        folder = pathlib.Path("start")
        if not folder.exists():
            save_pretrained(folder, model, init(model, jax.random.key(1)))
        changes = {"start_from": str(folder), "vocabulary": "public/tokenizer"}
    task = dataclasses.replace(
        config.task,
        model=model,
        input_length=128,
        target_length=64,
        eval_rows=5,
        test_rows=2,
        **changes,
    )
    return in_calls(dataclasses.replace(config, task=task))
