import pytest
from rdkit import Chem

from molt5_multitask import chem

PHENOL = "Oc1ccccc1"


def test_quiet_parsing_leaves_no_log_line_and_the_log_as_it_was(capfd):
    assert chem.parse("C1CC") is None
    assert capfd.readouterr().err == ""
    assert Chem.MolFromSmiles("C1CC") is None
    assert "unclosed ring" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("smiles", "valid"),
    [("CCO", True), ("", True), ("c1ccccc1O", True), ("C1CC", False), ("C(C)(C)(C)(C)C", False)],
)
def test_validity_is_that_of_rdkit_sanitisation(smiles, valid):
    assert chem.is_valid(smiles) is valid


def test_canonical_smiles():
    assert chem.canonical("c1ccccc1O") == PHENOL
    assert chem.canonical("C/C=C\\C") == "C/C=C\\C"
    assert chem.canonical("C/C=C\\C", stereo=False) == "CC=CC"
    assert chem.canonical("c1ccccc") is None


def test_tilde_separates_fragments_and_is_no_bond():
    assert chem.canonical("[Na+]~[OH-]") == "[Na+].[OH-]"
    mol = chem.parse("C~C")
    assert mol is not None
    assert mol.GetNumBonds() == 0


def test_inchi_knows_tautomers_of_acids_and_the_empty_molecule(capfd):
    def inchi(smiles):
        return chem.inchi(chem.parse(smiles))

    assert inchi("CCO") == "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"
    assert inchi("OC(=O)c1ccccc1") == inchi("c1ccccc1C(O)=O")
    assert inchi("") == ""
    assert capfd.readouterr().err == ""


def test_molecules_of_a_side_are_an_unmapped_set():
    expected = {"CO", "[Na+]", "[OH-]"}
    assert chem.molecules("[CH3:1][OH:2].CO.[Na+]~[OH-]") == expected
    assert chem.molecules("[OH-].[Na+].OC") == expected
    assert chem.molecules("") == frozenset()
    assert chem.molecules("CO.C1CC") is None
    # A ring bond may run across a dot: the parts of the string are not the molecules.
    assert chem.molecules("C1.C1") == {"CC"}
    # A mapped explicit hydrogen is the same molecule.
    assert chem.molecules("[CH3:1][H:2]") == {"C"}


def test_molecules_refuses_text_after_the_smiles():
    assert chem.molecules(" CCO ") == {"CCO"}
    assert chem.molecules("CCO and water") is None


def test_the_largest_molecule_has_most_heavy_atoms_not_characters():
    assert chem.largest(["[O-][Cl+3]([O-])([O-])[O-]", "c1ccccc1"]) == "c1ccccc1"
    assert chem.largest(["CO", "CN"]) == chem.largest(["CN", "CO"]) == "CO"
    assert chem.largest([]) is None


@pytest.mark.parametrize(
    "smiles",
    [
        *("CCO", "[H][H]", "[2H]C([2H])Cl", "[H+]", "[NH4+]", "BrCCBr", "c1cc[nH]c1", "[Na+]"),
        *("*C", "[O-][Cl+3]([O-])([O-])[O-]", "C[C@@H](N)[13CH3]", "[SeH2]", "[Hg]", "[He]", "P"),
    ],
)
def test_heavy_atoms_are_counted_in_the_string_as_in_the_molecule(smiles):
    mol = chem.parse(smiles)
    assert mol is not None
    text = Chem.MolToSmiles(mol)
    assert len(chem.HEAVY_ATOM.findall(text)) == mol.GetNumHeavyAtoms()


def test_doubled_backslashes_are_found_by_column_and_halved_once():
    doubled = ["CCO", r"C/C=C\\C", r"F\\C=C\\F"]
    single, found = chem.single_backslashes(doubled)
    assert found == chem.Backslashes(form="doubled", single=0, doubled=3)
    assert single == ["CCO", r"C/C=C\C", r"F\C=C\F"]
    again, found = chem.single_backslashes(single)
    assert found == chem.Backslashes(form="single", single=3, doubled=0)
    assert again == single


def test_backslash_form_of_a_column_without_any_and_of_a_mixed_one():
    assert chem.backslashes(["CCO", ""]).form == "none"
    mixed = [r"C\C=C\C", r"C\\C"]  # one bad row of a model does not change the form
    kept, found = chem.single_backslashes(mixed)
    assert (found.form, found.single, found.doubled) == ("single", 2, 1)
    assert kept == mixed
    assert chem.single_backslashes(mixed, form="doubled")[0] == [r"C\C=C\C", r"C\C"]


def test_chebi20_test_set_is_doubled_and_comes_back_as_in_the_prediction_file(shared_data):
    rows = (shared_data / "chebi20" / "test.txt").read_text("utf-8").splitlines()[1:]
    doubled = [row.split("\t")[1] for row in rows]
    single, found = chem.single_backslashes(doubled)
    assert found.form == "doubled"
    assert found.single == 0
    assert sum("\\" in smiles for smiles in single) == 484
    file = shared_data / "predictions" / "molt5-base-smiles2caption.txt"
    written = [row.split("\t")[0] for row in file.read_text("utf-8").splitlines()[1:]]
    assert set(single) == set(written)  # the two files differ in their order
