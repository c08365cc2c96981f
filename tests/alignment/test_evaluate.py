"""The command `alignment.evaluate`, and the evaluator during training."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from alignment import evaluate
from alignment.evaluation.during_training import FeatureScores
from alignment.evaluation.inputs import HumanFiles, ModelFiles, PictureFiles
from alignment.evaluation.odd_one_out import odd_one_out
from alignment.evaluation.rsa import rdm
from alignment.features import Features
from alignment.files import write_arrays
from alignment.judgments import Standardisation, Transform
from common.data import OnePass
from common.mesh import MeshConfig, make_mesh

N = 40
"""Images: 4 coarse classes of 2 fine ones of 5 images."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that sees fine classes and noise; people, and the aligned model, see coarse ones."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    fine = np.arange(N) % 8
    coarse = fine // 2
    names = np.array([f"image{i:02d}" for i in range(N)])
    noise = rng.normal(size=(N, 6))
    own = np.hstack([np.eye(8)[fine], 0.2 * np.eye(4)[coarse], 0.4 * noise])
    seen = np.hstack([0.3 * np.eye(8)[fine], 2 * np.eye(4)[coarse], 0.1 * noise])
    for name, features in (("before", own), ("after", seen)):
        Features(
            features=features.astype(np.float32),
            names=names,
            labels=fine,
            label_names=np.array([f"fine{i}" for i in range(8)]),
            coarse=coarse,
            coarse_names=np.array([f"coarse{i}" for i in range(4)]),
        ).write(folder / f"{name}.npz")

    drawn = np.stack([rng.choice(N, 3, replace=False) for _ in range(600)])
    a, b, c = coarse[drawn].T
    drawn = drawn[(a == b) & (a != c)]
    write_arrays(folder / "triplets.npz", {"triplets": drawn})
    answers = np.concatenate([drawn, drawn, drawn[:, [0, 2, 1]]])  # two of three agree
    write_arrays(folder / "answers.npz", {"answers": answers})
    write_arrays(folder / "vice.npz", {"mean": seen.astype(np.float32), "names": names})
    people = np.stack([rdm(seen + 0.3 * rng.normal(size=seen.shape)) for _ in range(3)])
    write_arrays(
        folder / "rdms.npz",
        {"human_rdms": people.astype(np.float32), "category": np.char.add("c", coarse.astype(str))},
    )
    write_arrays(
        folder / "pairs.npz",
        {
            "filename": names,
            "pairs": np.array([[0, 8], [1, 9], [0, 2], [1, 4]]),
            "alignet_favoured": np.array([True, True, False, False]),
        },
    )
    lines = ["level,image1,image2,image3,odd,participant,response_time"]
    for level, rows in (("coarse", drawn[:12]), ("fine", drawn[12:20])):
        lines += [
            f"{level},{names[i]},{names[j]},{names[k]},3,p{p},{1 + p}"
            for i, j, k in rows
            for p in range(2)
        ]
    (folder / "levels.csv").write_text("\n".join(lines) + "\n")
    write_arrays(
        folder / "images.npz",
        {"images": rng.integers(256, size=(N, 8, 8, 3)).astype(np.uint8), "names": names},
    )
    return folder


def arguments(world, out, **changes):
    def files(name):
        path = world / f"{name}.npz"
        return ModelFiles(things=path, rdms=path, pairs=path, levels=path, train=path, test=path)

    settings = {
        "out": out,
        "before": files("before"),
        "after": files("after"),
        "human": HumanFiles(
            triplets=world / "triplets.npz",
            answers=world / "answers.npz",
            answers_at_least=3,
            embedding=world / "vice.npz",
            rdms=world / "rdms.npz",
            pairs=world / "pairs.npz",
            levels=world / "levels.csv",
        ),
        "shots": (1,),
        "repetitions": 2,
    }
    return evaluate.Arguments(**settings | changes)


def test_everything_is_evaluated(world, tmp_path):
    teacher = ModelFiles(things=world / "after.npz")
    pictures = PictureFiles(things=str(world / "images.npz"), test=str(world / "images.npz"))
    evaluate.run(arguments(world, tmp_path, teacher=teacher, pictures=pictures))
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["skipped"] == {}
    sections = content["sections"]
    assert set(sections) == set(evaluate.EVALUATIONS)

    def rise(section, measure):
        scores = sections[section]["scores"]
        return scores["after"][measure] - scores["before"][measure]

    assert rise("odd one out", "accuracy_cosine") > 0.1
    assert rise("uncertainty", "probability_pearson") > 0
    assert sections["uncertainty"]["scores"]["after"]["temperature"] == pytest.approx(1, rel=1e-2)
    assert rise("rsa", "spearman_cosine") > 0.1
    assert rise("levels", "coarse/accuracy_cosine") > 0.1
    assert rise("validation pairs", "auc") >= 0
    change = sections["hierarchy"]["scores"]["after"]
    assert change["change, same superordinate"] < 0 < change["change, different superordinate"]
    assert rise("probes", "coarse, 1-shot") > 0
    assert sections["probes"]["scores"]["after"]["coarse, target classes"] == 1
    ceilings = sections["uncertainty"]["references"]
    assert ceilings["accuracy ceiling, modal_share"] == pytest.approx(2 / 3)

    text = (tmp_path / "results.md").read_text()
    assert "| accuracy_cosine |" in text
    assert "command: " in text
    figures = {p.stem for p in tmp_path.glob("*.png")}
    assert figures == {
        "hierarchy", "levels", "neighbours", "neighbours_things", "rdms", "rsa_scatter"
    }  # fmt: skip


def test_what_is_missing_is_named_and_the_rest_is_done(world, tmp_path, capsys):
    only = ModelFiles(things=world / "before.npz")
    human = HumanFiles(triplets=world / "triplets.npz", rdms=world / "rdms.npz")
    evaluate.run(
        arguments(world, tmp_path, before=only, after=ModelFiles(), human=human, figures=False)
    )
    content = json.loads((tmp_path / "results.json").read_text())
    assert list(content["sections"]) == ["odd one out"]
    assert content["skipped"]["rsa"].startswith("no features: give --before.rdms")
    assert content["skipped"]["levels"] == "no human judgments: give --human.levels"
    assert "skipped levels: no human judgments" in capsys.readouterr().out
    assert "- levels: no human judgments" in (tmp_path / "results.md").read_text()


def test_nothing_to_evaluate(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to evaluate \(odd one out: no human"):
        evaluate.run(evaluate.Arguments(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_transform_makes_a_teacher(world, tmp_path):
    """Of the features before, it keeps those of the coarse class."""
    weights = np.zeros((18, 4), np.float32)
    weights[:12] = np.vstack([np.repeat(np.eye(4), 2, axis=0), np.eye(4)])
    Transform(
        weights=weights,
        bias=np.zeros(4, np.float32),
        standardisation=Standardisation(mean=0.0, std=1.0),
    ).write(tmp_path / "transform.npz")
    teacher = ModelFiles(things=world / "before.npz", transform=tmp_path / "transform.npz")
    human = HumanFiles(triplets=world / "triplets.npz")
    sections = evaluate.run(arguments(world, tmp_path, teacher=teacher, human=human, figures=False))
    assert sections["odd one out"].scores["teacher"]["accuracy_dot"] == 1


def test_files_that_do_not_fit(world, tmp_path):
    other = Features(
        features=np.ones((N, 2), np.float32),
        names=np.array([f"image{i:02d}" for i in range(N)][::-1]),
    )
    other.write(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"other.npz holds the same objects in another order"):
        evaluate.run(arguments(world, tmp_path, after=ModelFiles(things=tmp_path / "other.npz")))
    write_arrays(tmp_path / "few.npz", {"human_rdms": np.zeros((2, 5, 5), np.float32)})
    human = HumanFiles(rdms=tmp_path / "few.npz")
    with pytest.raises(ValueError, match="is about 5 images, the features about 40"):
        evaluate.run(arguments(world, tmp_path, human=human))


def test_human_similarities_are_turned_into_dissimilarities(world, tmp_path):
    x = Features.read(world / "before.npz").features
    write_arrays(tmp_path / "similar.npz", {"human_similarities": 5 - rdm(x)})
    human = HumanFiles(rdms=tmp_path / "similar.npz")
    sections = evaluate.run(arguments(world, tmp_path / "out", human=human, figures=False))
    assert sections["rsa"].scores["before"]["spearman_cosine"] == pytest.approx(1)
    assert not sections["rsa"].references  # no people, no ceiling
    write_arrays(tmp_path / "similar.npz", {"matrix": rdm(x)})
    with pytest.raises(ValueError, match="neither `human_rdms` nor `human_similarities`"):
        evaluate.run(arguments(world, tmp_path / "out", human=human))


def test_figure_of_triplets_where_all_differ(tmp_path):
    """People take 2 for the odd one, the teacher 0, the student 1."""
    names = np.array(["cat", "dog", "car"])
    directions = {"teacher": [0.0, 1.0, 1.2], "after": [0.0, 1.0, 0.2], "before": [0, 1, 2.0]}
    models = {}
    for model, angles in directions.items():
        x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
        Features(features=x, names=names).write(tmp_path / f"{model}.npz")
        models[model] = ModelFiles(things=tmp_path / f"{model}.npz")
    write_arrays(tmp_path / "triplets.npz", {"triplets": np.array([[0, 1, 2]])})
    human = HumanFiles(triplets=tmp_path / "triplets.npz")
    evaluate.run(evaluate.Arguments(out=tmp_path / "out", human=human, **models))
    assert (tmp_path / "out" / "differing_triplets.png").is_file()


def test_command_line(world, tmp_path):
    out = tmp_path / "out"
    files = ["--before.things", str(world / "before.npz")]
    human = ["--human.triplets", str(world / "triplets.npz")]
    evaluate.main(["--out", str(out), *files, *human, "--no-figures"])
    assert sorted(p.name for p in out.iterdir()) == ["results.json", "results.md"]


def test_during_training_every_image_counts_once(world):
    """Eleven images in batches of eight over eight devices: the filling must not show."""
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    triplets = np.array([[0, 5, 10], [1, 2, 3], [8, 9, 10]])
    evaluator = FeatureScores(
        name="human",
        every=10,
        images=OnePass({"image": x}, batch_size=8),
        embed=lambda params, batch: batch["image"] @ params,
        scores=lambda features: odd_one_out(features, triplets),
    )
    params = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    found = evaluator(params, make_mesh(MeshConfig()))
    assert found == pytest.approx(odd_one_out(x @ np.asarray(params), triplets), rel=1e-5)
