import itertools

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import MACCSkeys, rdFingerprintGenerator

from molt5_multitask import chem
from molt5_multitask.metrics.molecules import molecule_scores, same_inchi
from molt5_multitask.metrics.text import bleu

MOLECULES = [
    *("CCO", "OCC", "CC(=O)O", "CC(=O)[O-]", "CC(=O)[O-].[Na+]", "[Na+].[O-]C(C)=O", "[2H]CCO"),
    *("Oc1ccccn1", "O=c1cccc[nH]1", "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "CC([NH3+])C(=O)[O-]"),
    *("C/C=C/C", "C/C=C\\C", "CC=CC", "CC(O)=CC", "CCC(C)=O", "[CH3]", "C", "[Fe+2]", "[Fe]", "*C"),
    *("c1ccc2ccccc2c1", "C1CCCCCCC1", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "N[C@@H](Cc1ccccc1)C(O)=O"),
]
"""With salts, charges, tautomers, isotopes, stereoisomers, radicals, metals and a dummy atom."""


def test_equal_inchi_is_found_with_and_without_the_short_cut():
    mols = [chem.parse(smiles) for smiles in MOLECULES]
    keys = [Chem.MolToInchi(mol) for mol in mols]
    equal = 0
    for i, j in itertools.product(range(len(mols)), repeat=2):
        expected = keys[i] == keys[j] != ""
        assert same_inchi(mols[i], mols[j]) is expected, (MOLECULES[i], MOLECULES[j])
        equal += expected and i != j
    assert equal == 6  # ethanol, the salt and the tautomers, each both ways


def test_empty_molecules_and_missing_ones_are_no_match():
    empty = chem.parse("")
    assert not same_inchi(empty, empty)
    assert not same_inchi(None, None)


def test_similarities_are_rdkits_one_pair_at_a_time():
    # Among all pairs are equal ones, stereoisomers, isotopes, and molecules without any bit.
    smiles = [*MOLECULES, "[H][H]", "[C][C]", "[13CH3]CO"]
    references, outputs = zip(*itertools.product(smiles, repeat=2), strict=True)
    scores = molecule_scores(references, outputs)
    counts = rdFingerprintGenerator.GetMorganGenerator(radius=2)
    fingerprints = {
        "MACCS": MACCSkeys.GenMACCSKeys,
        "RDK": Chem.RDKFingerprint,
        "Morgan": counts.GetSparseCountFingerprint,
    }
    for name, fingerprint in fingerprints.items():
        expected = [
            DataStructs.TanimotoSimilarity(*(fingerprint(Chem.MolFromSmiles(s)) for s in pair))
            for pair in zip(references, outputs, strict=True)
        ]
        np.testing.assert_array_equal(scores.per_row[name], expected)
        assert scores.values[name] == pytest.approx(np.mean(expected))


def test_invalid_outputs_are_misses_but_outside_the_similarities():
    scores = molecule_scores(["CCO", "CCO", "CCO", "CCO"], ["OCC", "C1CC", "CCN", "CC(C)(C)(C)C"])
    assert scores.values["exact"] == 0.25
    assert scores.values["validity"] == 0.5
    assert scores.values["Levenshtein"] == (2 + 2 + 1 + 10) / 4
    assert np.isnan(scores.per_row["MACCS"]).tolist() == [False, True, False, True]
    amine = scores.per_row["Morgan"][2]
    assert 0 < amine < 1
    assert scores.values["Morgan"] == pytest.approx((1 + amine) / 2)


def test_an_empty_output_is_valid_but_no_match():
    scores = molecule_scores(["CCO", ""], ["", ""])
    assert scores.values["validity"] == 1
    assert scores.values["exact"] == 0
    assert scores.counts["empty outputs"] == 2


def test_no_valid_output_leaves_the_similarities_undefined():
    scores = molecule_scores(["CCO"], ["C1CC"])
    assert scores.values["validity"] == 0
    assert all(np.isnan(scores.values[name]) for name in ("MACCS", "RDK", "Morgan"))


def test_unreadable_references_are_counted_and_matched_by_nothing():
    scores = molecule_scores(["C1CC", "CCO"], ["C1CC", "CCO"])
    assert scores.counts["unreadable references"] == 1
    assert scores.values["exact"] == 0.5
    assert scores.values["Morgan"] == 1


def test_levenshtein_and_bleu_are_of_the_raw_strings():
    scores = molecule_scores(["CCO"], ["OCC"])
    assert scores.values["exact"] == 1
    assert scores.values["Levenshtein"] == 2
    assert scores.values["BLEU"] < 0.1


def test_reference_values_of_the_shared_molecules(shared_data):
    file = shared_data / "predictions" / "molt5-base-caption2smiles.txt"
    rows = [line.split("\t") for line in file.read_text("utf-8").split("\n")[1:-1]]
    _, references, outputs = zip(*rows, strict=True)
    scores = molecule_scores(references, outputs)
    assert scores.counts["rows"] == 3300
    assert scores.counts["valid outputs"] == 2595
    expected = {
        "BLEU": 0.783254,
        "exact": 0.081818,
        "Levenshtein": 24.845758,
        "validity": 0.786364,
        "MACCS": 0.788063,
        "Morgan": 0.602022,
    }
    assert {name: scores.values[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert scores.values["RDK"] == pytest.approx(0.659865, abs=0.01)  # moves with RDKit's version


def test_doubled_references_would_give_other_values_and_are_brought_back(shared_data):
    file = shared_data / "predictions" / "molt5-base-caption2smiles.txt"
    rows = [line.split("\t") for line in file.read_text("utf-8").split("\n")[1:-1]]
    _, references, outputs = zip(*rows, strict=True)
    doubled = [reference.replace("\\", "\\\\") for reference in references]
    assert bleu(doubled, outputs, orders=(4,))[4] == pytest.approx(0.779404, abs=1e-6)
    single, found = chem.single_backslashes(doubled)
    assert found.form == "doubled"
    assert single == list(references)
