"""RSA on the 92 images of Kriegeskorte et al. against 16 people, with noise ceilings.

    python -m benchmarks.alignment.rsa92
    python -m benchmarks.alignment.rsa92 --features clip=clip92.npz aligned=aligned92.npz

Pixels, the category model "animal or not" and the model matrices that come with the data; and any
features of the 92 images, in their order (`python -m alignment.embed` makes such files). Models
are compared with the mean over people; the ceilings compare one person with the mean of the others
and with that of all.

Writes `rsa92.json`, `rsa92.md` and figures beside this file.
"""

import dataclasses
import json
import pathlib

import numpy as np
import tyro
from scipy.io import loadmat
from scipy.stats import spearmanr

from alignment.evaluation import figures
from alignment.evaluation.rsa import check_rdms, correlate, differs, noise_ceiling, rdm
from alignment.features import Features
from alignment.files import read_arrays
from common.report import provenance, table

OUTPUT = pathlib.Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare models with people on 92 images."""

    data: pathlib.Path = pathlib.Path("../shared/data/alignment/kriegeskorte92")
    """Folder of the data."""
    features: tuple[str, ...] = ()
    """NAME=FILE of features of the 92 images."""
    draws: int = 1000
    """Bootstrap samples of the images for the intervals."""


def models(arguments: Arguments, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the dissimilarity matrix of each model."""
    pixels = arrays["images"].reshape(len(arrays["images"]), -1).astype(np.float64)
    found = {
        "pixels": rdm(pixels, "correlation"),
        "animal or not": differs(arrays["is_animal"]),
    }
    file = loadmat(arguments.data / "92_modelRDMs.mat", squeeze_me=True)["Models"]
    for entry in file:
        matrix = np.asarray(entry["RDM"], np.float64)
        if matrix.shape == found["pixels"].shape:
            found[f"data: {entry['name']}"] = matrix
    for item in arguments.features:
        name, equals, path = item.partition("=")
        if not equals:
            raise ValueError(f"--features takes NAME=FILE, not {item!r}")
        features = Features.read(path)
        if len(features.features) != len(pixels):
            raise ValueError(f"{path} is about {len(features.features)} images, not {len(pixels)}")
        found[name] = rdm(features.features)
    return found


def interval(model: np.ndarray, human: np.ndarray, draws: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the Spearman correlation, over images.

    Pairs of an image with itself, which a draw makes, are left out.
    """
    rng = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        rows = rng.integers(len(model), size=len(model))
        a, b = np.triu_indices(len(rows), 1)
        a, b = rows[a], rows[b]
        kept = a != b
        pairs = a[kept], b[kept]
        values.append(spearmanr(model[pairs], human[pairs]).statistic)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def main(arguments: Arguments) -> None:
    path = arguments.data / "kriegeskorte92_tidy.npz"
    arrays = read_arrays(path, required=("images", "human_rdms", "category", "is_animal"))
    human = check_rdms(arrays["human_rdms"], source=str(path))
    mean = human.mean(0)
    matrices = models(arguments, arrays)
    rows = {
        name: {
            "spearman": correlate(matrix, mean),
            "interval": interval(matrix, mean, arguments.draws),
            "pearson": correlate(matrix, mean, "pearson"),
            "spearman, mean over people": float(np.mean([correlate(matrix, p) for p in human])),
        }
        for name, matrix in matrices.items()
    }
    content = {
        "models": rows,
        "ceilings": {
            kind: dict(zip(("lower", "upper"), noise_ceiling(human, kind), strict=True))
            for kind in ("spearman", "pearson")
        },
        "provenance": provenance(),
    }
    OUTPUT.write_text(json.dumps(content, indent=2) + "\n")
    OUTPUT.with_suffix(".md").write_text(markdown(content))
    shown = {name: m for name, m in matrices.items() if not name.startswith("data: ")}
    for name, figure in (
        ("scatter", figures.rsa_scatter(mean, shown)),
        ("rdms", figures.rdm_panels({**shown, "human": mean}, arrays["category"].tolist())),
    ):
        figure.savefig(OUTPUT.with_name(f"rsa92_{name}.png"), dpi=150)
    print(markdown(content))


def markdown(content: dict) -> str:
    """Return the table."""
    rows = [
        [
            name,
            f"{m['spearman']:.3f}",
            f"{m['interval'][0]:.3f} to {m['interval'][1]:.3f}",
            f"{m['pearson']:.3f}",
            f"{m['spearman, mean over people']:.3f}",
        ]
        for name, m in content["models"].items()
    ]
    for which, meaning in (("lower", "mean of the others"), ("upper", "mean of all")):
        spearman, pearson = (content["ceilings"][k][which] for k in ("spearman", "pearson"))
        rows.append(
            [f"one person, with the {meaning}", f"{spearman:.3f}", "", f"{pearson:.3f}", ""]
        )
    found = content["provenance"]
    header = ["model", "Spearman", "95 %, images", "Pearson", "Spearman with one person, mean"]
    return (
        "\n\n".join(
            [
                "# RSA on 92 images, 16 people",
                table(header, rows),
                f"`{found['command']}`, {found['machine']}, {found['date']}, {found['versions']}",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
