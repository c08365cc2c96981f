"""Accuracy and speed of the metrics on MolT5-base's predictions for the ChEBI-20 test set.

    python -m benchmarks.molt5_multitask.metrics

Accuracy: every value beside the one that two other implementations gave (`EXPECTED`). FCD needs
the extra `fcd`.

Speed: all metrics but FCD, against the reference formulas run one row after another in one process,
as MolT5's scripts do: nltk, rouge-score, a BERT tokenizer, RDKit, one edit distance at a time;
molecules are read once for the string metrics and once for the fingerprints, as there. Each run of
a side is a fresh process, the sides alternate, and the speed-up is the median of the paired ratios.
Libraries are imported before the clock starts; vocabulary and WordNet are read while it runs. The
processor time is of all threads.

Writes `metrics.json` and `metrics.md` beside this file.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from molt5_multitask import evaluate
from molt5_multitask.metrics.report import table
from molt5_multitask.metrics.tokens import TokenKind

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
FILES = {"captions": "molt5-base-smiles2caption.txt", "molecules": "molt5-base-caption2smiles.txt"}
VOCABULARIES: dict[TokenKind, str | None] = {
    "scibert": "metrics_assets",
    "t5": "tokenizer",
    "whitespace": None,
}
EXPECTED = {
    "captions, scibert tokens": {
        "BLEU-2": 0.550817,
        "BLEU-4": 0.464362,
        "ROUGE-1": 0.633872,
        "ROUGE-2": 0.484676,
        "ROUGE-L": 0.576754,
        "METEOR": 0.574488,
    },
    "captions, t5 tokens": {"BLEU-2": 0.586891, "BLEU-4": 0.508262, "METEOR": 0.584438},
    "captions, whitespace tokens": {"BLEU-2": 0.528403, "BLEU-4": 0.418261, "METEOR": 0.566944},
    "molecules": {
        "BLEU": 0.783254,
        "exact": 0.081818,
        "Levenshtein": 24.845758,
        "validity": 0.786364,
        "MACCS": 0.788063,
        "RDK": 0.659865,
        "Morgan": 0.602022,
        "FCD": 1.16612,
    },
    "molecules, references doubled": {"BLEU": 0.779404, "Levenshtein": 25.188485},
}
"""Values of RDKit 2026.9.1, nltk 3.10.4, WordNet 3.0, rouge-score 0.1.2, fcd_torch 1.0.7."""
SIDES = ("reference", "ours")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the metrics."""

    data: pathlib.Path = pathlib.Path("../shared/data/molt5_multitask")
    """Folder with `predictions`, `metrics_assets` and `tokenizer`."""
    repeats: int = 3
    """Runs of each side."""
    only: str = ""
    """Used by the script itself: time one side on one file, as `SIDE FILE WORDNET`."""


def read(data: pathlib.Path, file: str) -> tuple[list[str], list[str]]:
    """Return the references and outputs of a file."""
    text = (data / "predictions" / FILES[file]).read_text("utf-8")
    rows = [line.split("\t") for line in text.split("\n")[1:-1]]
    return [row[1] for row in rows], [row[2] for row in rows]


def clock(parts: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Run functions one after another; return the wall and processor seconds of each."""
    found = {}
    for name, function in parts.items():
        wall, processor = time.perf_counter(), time.process_time()
        function()
        found[name] = {
            "wall": time.perf_counter() - wall,
            "processor": time.process_time() - processor,
        }
    return found


def reference_captions(
    data: pathlib.Path, wordnet: str, refs: list[str], outs: list[str]
) -> dict[str, Callable[[], Any]]:
    """The formulas of the captions, one row at a time."""
    import nltk
    from nltk.corpus import wordnet as synonyms
    from nltk.translate.bleu_score import corpus_bleu
    from nltk.translate.meteor_score import meteor_score
    from rouge_score import rouge_scorer
    from transformers import BertTokenizer

    nltk.data.path.insert(0, wordnet)
    vocabulary = next((data / "metrics_assets").glob("*vocab.txt"))
    cut: dict[str, list[list[str]]] = {}

    def tokens() -> None:
        tokenizer = BertTokenizer(vocab=str(vocabulary))
        for side, texts in (("refs", refs), ("outs", outs)):
            cut[side] = [tokenizer.tokenize(t, truncation=True, max_length=512) for t in texts]

    def bleu(order: int) -> float:
        return corpus_bleu([[r] for r in cut["refs"]], cut["outs"], weights=(1 / order,) * order)

    def meteor() -> float:
        pairs = zip(cut["refs"], cut["outs"], strict=True)
        return float(np.mean([meteor_score([ref], out) for ref, out in pairs]))

    def rouge() -> list[Any]:
        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
        return [scorer.score(out, ref) for ref, out in zip(refs, outs, strict=True)]

    return {
        "tokens": tokens,
        "BLEU-2, BLEU-4": lambda: (bleu(2), bleu(4)),
        "reading WordNet": lambda: synonyms.synsets("acid"),
        "METEOR": meteor,
        "ROUGE": rouge,
    }


def reference_molecules(refs: list[str], outs: list[str]) -> dict[str, Callable[[], Any]]:
    """The formulas of the molecules, one row at a time."""
    from nltk.translate.bleu_score import corpus_bleu
    from rapidfuzz.distance import Levenshtein
    from rdkit import Chem, DataStructs, RDLogger
    from rdkit.Chem import MACCSkeys, rdFingerprintGenerator

    RDLogger.DisableLog("rdApp.*")
    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=2).GetSparseCountFingerprint
    pairs: list[Any] = []

    def strings() -> Any:
        return (
            corpus_bleu([[list(ref)] for ref in refs], [list(out) for out in outs]),
            np.mean([Levenshtein.distance(*pair) for pair in zip(refs, outs, strict=True)]),
        )

    def exact() -> int:
        hits = 0
        for ref, out in zip(refs, outs, strict=True):
            a, b = Chem.MolFromSmiles(ref), Chem.MolFromSmiles(out)
            if a is not None and b is not None:
                hits += Chem.MolToInchi(a) == Chem.MolToInchi(b)
        return hits

    def parse() -> None:
        for ref, out in zip(refs, outs, strict=True):
            pair = (Chem.MolFromSmiles(ref), Chem.MolFromSmiles(out))
            if pair[1] is not None:
                pairs.append(pair)

    def mean(fingerprint: Any) -> float:
        found = [DataStructs.TanimotoSimilarity(*map(fingerprint, pair)) for pair in pairs]
        return float(np.mean(found))

    return {
        "BLEU, Levenshtein": strings,
        "exact, validity": exact,
        "parsing for the fingerprints": parse,
        "MACCS": lambda: mean(MACCSkeys.GenMACCSKeys),
        "RDK": lambda: mean(Chem.RDKFingerprint),
        "Morgan": lambda: mean(morgan),
    }


def ours(data: pathlib.Path, file: str, wordnet: str, *, fcd: bool = False) -> dict[str, float]:
    """Score a file with `evaluate`."""
    task = "captioning" if file == "captions" else "generation"
    options = evaluate.Options(vocabulary=str(data / "metrics_assets"), wordnet=wordnet, fcd=fcd)
    return dict(evaluate.evaluate(task, *read(data, file), options=options).values)


def time_side(side: str, file: str, wordnet: str, data: pathlib.Path) -> dict[str, Any]:
    """Time one side on one file in this process."""
    warnings.simplefilter("ignore")
    import nltk.translate.meteor_score  # noqa: F401  both sides import it before the clock starts

    if side == "ours":
        return clock({"all": lambda: ours(data, file, wordnet)})
    refs, outs = read(data, file)
    if file == "captions":
        return clock(reference_captions(data, wordnet, refs, outs))
    return clock(reference_molecules(refs, outs))


def accuracy(data: pathlib.Path, wordnet: str) -> list[list[str]]:
    """Compare every value with the expected one."""
    found: dict[str, Any] = {"molecules": ours(data, "molecules", wordnet, fcd=True)}
    for kind, vocabulary in VOCABULARIES.items():
        options = evaluate.Options(
            tokens=kind,
            vocabulary=None if vocabulary is None else str(data / vocabulary),
            wordnet=wordnet,
        )
        captions = evaluate.evaluate("captioning", *read(data, "captions"), options=options)
        found[f"captions, {kind} tokens"] = captions.values
    refs, outs = read(data, "molecules")
    doubled = [ref.replace("\\", "\\\\") for ref in refs]
    wrong = evaluate.evaluate("generation", doubled, outs, options=evaluate.Options(fcd=False))
    found["molecules, references doubled"] = wrong.values
    rows = []
    for what, metrics in EXPECTED.items():
        for metric, expected in metrics.items():
            value = found[what].get(metric)
            got = ["not installed", ""] if value is None else [f"{value:.6f}", ""]
            if value is not None:
                got[1] = f"{abs(value - expected):.1e}"
            rows.append([what, metric, f"{expected:g}", *got])
    return rows


def speed(arguments: Arguments, wordnet: str) -> dict[str, Any]:
    """Time both sides in turn, each run in a process of its own."""
    runs: dict[str, dict[str, list[Any]]] = {f: {s: [] for s in SIDES} for f in FILES}
    for repeat in range(arguments.repeats):
        for file in FILES:
            for side in SIDES:
                command = [
                    *(sys.executable, "-m", "benchmarks.molt5_multitask.metrics"),
                    *("--data", str(arguments.data), "--only", f"{side} {file} {wordnet}"),
                ]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[file][side].append(json.loads(done.stdout.splitlines()[-1]))
                total = sum(part["wall"] for part in runs[file][side][-1].values())
                print(f"run {repeat + 1}, {file}, {side}: {total:.1f} s", flush=True)
    return runs


def speed_rows(runs: dict[str, Any]) -> list[list[str]]:
    """Return the medians of both sides, and the median of the paired ratios."""

    def totals(file: str, side: str, key: str) -> list[float]:
        return [sum(part[key] for part in run.values()) for run in runs[file][side]]

    def row(name: str, wall: list[list[float]], processor: list[list[float]]) -> list[str]:
        ratios = [a / b for a, b in zip(*wall, strict=True)]
        seconds = [statistics.median(values) for values in (*wall, *processor)]
        return [
            name,
            *(f"{value:.1f}" for value in seconds),
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
        ]

    walls = {file: [totals(file, side, "wall") for side in SIDES] for file in FILES}
    cores = {file: [totals(file, side, "processor") for side in SIDES] for file in FILES}

    def both(values: dict[str, list[list[float]]]) -> list[list[float]]:
        return [
            [a + b for a, b in zip(*pair, strict=True)]
            for pair in zip(*values.values(), strict=True)
        ]

    rows = [row(file, walls[file], cores[file]) for file in FILES]
    return [*rows, row("both files", both(walls), both(cores))]


def part_rows(runs: dict[str, Any]) -> list[list[str]]:
    """Return the median wall seconds of each formula of the reference."""
    return [
        [file, part, f"{statistics.median(run[part]['wall'] for run in sides['reference']):.2f}"]
        for file, sides in runs.items()
        for part in sides["reference"][0]
    ]


def main() -> None:
    """Measure, and write the tables."""
    arguments = tyro.cli(Arguments)
    if arguments.only:
        side, file, wordnet = arguments.only.split(" ", 2)
        print(json.dumps(time_side(side, file, wordnet, arguments.data)))
        return
    with tempfile.TemporaryDirectory() as wordnet:
        assets = arguments.data / "metrics_assets"
        with tarfile.open(assets / "nltk_wordnet30_corpus.tar.gz") as archive:
            archive.extractall(wordnet, filter="data")
        runs = speed(arguments, wordnet)
        accurate = accuracy(arguments.data, wordnet)
    about = {
        "machine": f"{processor_name()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": evaluate.versions(),
        "command": "python -m benchmarks.molt5_multitask.metrics",
    }
    OUTPUT.write_text(json.dumps({**about, "runs": runs, "accuracy": accurate}, indent=1) + "\n")
    head = [
        "# Metrics on MolT5-base's predictions for the ChEBI-20 test set (3,300 rows each)",
        f"{about['machine']}; {about['date']}; {about['versions']}.",
        f"    {about['command']}",
        "## Speed, all metrics but FCD",
        f"Seconds, medians of {arguments.repeats} alternating runs in fresh processes; the "
        "speed-up is the median of the paired ratios of wall times, with the range. Where the "
        "reference has less processor (CPU) than wall time, the machine was busy with other work.",
        table(
            ["file", "reference, wall", "ours, wall", "reference, CPU", "ours, CPU", "speed-up"],
            speed_rows(runs),
        ),
        "What the reference formulas cost, wall seconds:",
        table(["file", "formula", "seconds"], part_rows(runs)),
        "## Accuracy",
        table(["file", "metric", "expected", "ours", "difference"], accurate),
    ]
    OUTPUT.with_suffix(".md").write_text("\n\n".join(head) + "\n")


def processor_name() -> str:
    """Return the name of the processor."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
