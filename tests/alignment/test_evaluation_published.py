"""Reference numbers of the specification, on the shared data."""

import csv

import numpy as np
import pytest
from scipy.stats import spearmanr

from alignment.evaluation.answers import Answers
from alignment.evaluation.hierarchy import Hierarchy
from alignment.evaluation.odd_one_out import odd_one_out
from alignment.evaluation.rsa import correlate, differs, noise_ceiling, rdm
from alignment.evaluation.uncertainty import against_answers
from alignment.files import read_arrays
from alignment.judgments import read_triplets

OBJECTS = 1854


@pytest.fixture(scope="module")
def triplets(shared_alignment):
    path = shared_alignment / "things_triplets" / "things_human_triplets_300k.npz"
    return read_triplets(path, OBJECTS)


@pytest.fixture(scope="module")
def answers(shared_alignment):
    return Answers.read(
        shared_alignment / "things_triplets" / "things_triplets_with_subject.npz",
        "study2_testcase",
        OBJECTS,
        at_least=100,
    )


@pytest.fixture(scope="module")
def vice(shared_alignment):
    return np.load(shared_alignment / "vice" / "vice_things_final_embedding.npy")


@pytest.fixture(scope="module")
def kriegeskorte(shared_alignment):
    return read_arrays(shared_alignment / "kriegeskorte92" / "kriegeskorte92_tidy.npz")


@pytest.mark.parametrize(
    ("file", "accuracy", "nll"),
    [
        ("things_spose/spose_embedding_66d_sorted.txt", 0.6445, 0.8081),
        ("things_spose/spose_embedding_49d_sorted.txt", 0.6369, 0.8210),
        ("things_features/pred49_RN50x64.txt", 0.6082, 0.8694),
    ],
)
def test_dot_product_accuracy_and_nll(shared_alignment, triplets, file, accuracy, nll):
    scores = odd_one_out(np.loadtxt(shared_alignment / file, dtype=np.float32), triplets)
    assert scores["accuracy_dot"] == pytest.approx(accuracy, abs=5.1e-5)
    assert scores["nll"] == pytest.approx(nll, abs=5.1e-5)


@pytest.mark.parametrize(
    ("file", "accuracy"),
    [("clip-vit-base-p32-embeddings.npy", 0.5035), ("word2vec-embeddings.npy", 0.4667)],
)
def test_cosine_accuracy(shared_alignment, triplets, file, accuracy):
    scores = odd_one_out(np.load(shared_alignment / "things_features" / file), triplets)
    assert scores["accuracy_cosine"] == pytest.approx(accuracy, abs=5.1e-5)


def test_vice(triplets, vice, answers):
    scores = odd_one_out(vice, triplets) | against_answers(vice, answers)
    expected = {
        "accuracy_dot": (0.6344, 4),
        "nll": (0.8255, 4),
        "probability_pearson": (0.821, 3),
        "entropy_spearman": (0.563, 3),
        "kl": (0.0926, 4),
    }
    for name, (value, digits) in expected.items():
        assert scores[name] == pytest.approx(value, abs=0.51 * 10**-digits), name


def test_ceilings_of_the_347_triplets(answers):
    assert len(answers.triplets) == 347
    found = answers.ceilings()
    assert found["modal_share"] == pytest.approx(0.5647, abs=5.1e-5)
    assert found["leave_one_out"] == pytest.approx(0.5592, abs=5.1e-5)
    assert found["pairwise_agreement"] == pytest.approx(0.4529, abs=5.1e-5)


def test_modal_shares_of_1001_triplets(shared_alignment, vice):
    """The file says how often the most frequent answer was given, not which one it was."""
    path = shared_alignment / "things_triplets" / "triplets-delta.csv"
    table = list(csv.DictReader(path.read_text().splitlines()))
    rows = np.array([[int(line[c]) for c in ("id_lo", "id_mid", "id_hi")] for line in table])
    shares = [float(line["prop_max"]) for line in table]
    products = np.stack(
        [(vice[rows[:, a]] * vice[rows[:, b]]).sum(1) for a, b in ((0, 1), (0, 2), (1, 2))], 1
    )
    p = np.exp(products) / np.exp(products).sum(1, keepdims=True)
    assert spearmanr(p.max(1), shares).statistic == pytest.approx(0.785, abs=5.1e-4)


def test_ceilings_of_the_92_images(kriegeskorte):
    lower, upper = noise_ceiling(kriegeskorte["human_rdms"].astype(np.float64))
    assert lower == pytest.approx(0.478, abs=5.1e-4)
    assert upper == pytest.approx(0.575, abs=5.1e-4)


def test_models_of_the_92_images(kriegeskorte):
    human = kriegeskorte["human_rdms"].mean(0)
    assert correlate(differs(kriegeskorte["is_animal"]), human) == pytest.approx(0.588, abs=5.1e-4)
    pixels = kriegeskorte["images"].reshape(92, -1).astype(np.float64)
    assert correlate(rdm(pixels, "correlation"), human) == pytest.approx(0.107, abs=5.1e-4)


@pytest.mark.parametrize(
    ("file", "known"), [("class_hierarchy.txt", 890), ("wordnet/class_hierarchy.txt", 1000)]
)
def test_hierarchies_hold_the_classes_of_imagenet(shared_alignment, file, known):
    tree = Hierarchy.read(shared_alignment / "breeds_hierarchy" / file)
    wnids = read_arrays(shared_alignment / "imagenet_sample" / "imagenet_1000x64px.npz")["wnid"]
    inside = [wnid for wnid in wnids.tolist() if wnid in tree.nodes]
    assert len(inside) == known
    assert {tree.path(wnid)[0] for wnid in inside} == {"n00001740"}
