"""The synthetic corpus: chemically valid, truthful, split without leaks, the same everywhere."""

import dataclasses
import hashlib
import itertools
import pathlib
import random
import re
import subprocess
import sys

import pytest
from rdkit import Chem
from rdkit.Chem import Descriptors, rdMolDescriptors

from molt5_multitask import chem
from molt5_multitask.corpus import Corpus, SyntheticCorpus, copy_baseline
from molt5_multitask.corpus.captions import caption, groups, substituents
from molt5_multitask.corpus.fragments import ALKYLS, ARYLS, SCAFFOLDS, SUBSTITUENTS
from molt5_multitask.corpus.molecules import assemble
from molt5_multitask.corpus.procedures import procedure
from molt5_multitask.corpus.reactions import REACTIONS, Reaction, draw, react
from molt5_multitask.metrics.actions import ARGUMENTS, is_valid
from molt5_multitask.restore import UNKNOWN
from molt5_multitask.tasks import TASKS, Example

SMALL = SyntheticCorpus(molecules=150, reactions=150, procedures=150, vocabulary=500)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return SMALL.make()


def digest(corpus: Corpus) -> str:
    text = repr([[list(map(tuple, rows)) for rows in part.values()] for part in corpus])
    return hashlib.sha256(text.encode()).hexdigest()


def test_all_tasks_have_examples_on_both_sides(corpus: Corpus) -> None:
    for name in TASKS:
        assert len(corpus.train[name]) + len(corpus.held_out[name]) == 150
        assert 5 <= len(corpus.held_out[name]) <= 30
        for rows in (corpus.train[name], corpus.held_out[name]):
            assert all(e.task == name and e.input and e.target for e in rows)


def test_the_same_in_another_process_whatever_its_hash_seed(corpus: Corpus) -> None:
    """Sets and dictionaries of strings are ordered by a seed that changes from run to run."""
    code = (
        "from tests.molt5_multitask.test_corpus import SMALL, digest\n"
        "corpus = SMALL.make()\n"
        "print(digest(corpus), SMALL.tokenizer(corpus).encode_target('The molecule is CCO.'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "12345", "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[2],
    )
    ids = SMALL.tokenizer(corpus).encode_target("The molecule is CCO.")
    assert done.stdout.strip() == f"{digest(corpus)} {ids}"


def test_another_seed_is_another_corpus() -> None:
    tiny = dataclasses.replace(SMALL, molecules=30, reactions=30, procedures=30)
    a, b = (dataclasses.replace(tiny, seed=seed).make() for seed in (0, 1))
    for name in TASKS:
        assert len(set(a.train[name]) & set(b.train[name])) < 10


def test_no_molecule_product_or_paragraph_is_on_both_sides(corpus: Corpus) -> None:
    def subjects(part: dict[str, list[Example]]) -> set[str]:
        """What an example is about, of all tasks together."""
        return {
            *(e.input for e in part["molecule_to_text"]),
            *(e.target for e in part["text_to_molecule"]),
            *(e.target for e in part["forward"]),
            *(e.input for e in part["retrosynthesis"]),
            *(e.input for e in part["paragraph_to_actions"]),
        }

    assert not subjects(corpus.train) & subjects(corpus.held_out)
    for name in TASKS:
        train = {e.input for e in corpus.train[name]} | {e.target for e in corpus.train[name]}
        if name != "paragraph_to_actions":  # Different wordings may ask for the same actions.
            assert not train & {e.input for e in corpus.held_out[name]}
            assert not train & {e.target for e in corpus.held_out[name]}


def test_both_directions_hold_the_same_pairs(corpus: Corpus) -> None:
    for part in corpus:
        for there, back in (
            ("molecule_to_text", "text_to_molecule"),
            ("forward", "retrosynthesis"),
        ):
            pairs = [(e.input, e.target) for e in part[there]]
            assert pairs == [(e.target, e.input) for e in part[back]]
            # Either side tells the other: an exact match can be learned.
            assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_every_molecule_is_valid_and_canonical(corpus: Corpus) -> None:
    for part in corpus:
        for e in part["molecule_to_text"]:
            assert chem.canonical(e.input) == e.input
        for e in part["forward"]:
            assert chem.canonical(e.target) == e.target
            compounds = e.input.split(".")
            assert compounds == sorted(compounds)
            for compound in compounds:
                fragments = compound.split("~")
                assert fragments == sorted(fragments)
                assert [chem.canonical(f) for f in fragments] == fragments
    assert any("~" in e.input for e in corpus.train["forward"])


def test_nothing_can_be_copied(corpus: Corpus) -> None:
    assert copy_baseline(corpus.held_out) == dict.fromkeys(TASKS, 0.0)
    rows = {"a": [Example("a", "x", "x"), Example("a", "x", "y")]}
    assert copy_baseline(rows) == {"a": 0.5}


def test_the_vocabulary_writes_everything(corpus: Corpus) -> None:
    tokenizer = SMALL.tokenizer(corpus)
    assert tokenizer.vocab_size == SMALL.vocabulary
    for part in corpus:
        for name, rows in part.items():
            for e in rows:
                ids = tokenizer.encode_target(e.target)
                assert 2 not in ids
                assert tokenizer.decode_output(TASKS[name], ids) == e.target
                assert 2 not in tokenizer.encode_source(TASKS[name], e.input)


def test_rows_are_short(corpus: Corpus) -> None:
    tokenizer = dataclasses.replace(SMALL, vocabulary=1024).tokenizer(corpus)
    for name, rows in corpus.train.items():
        assert max(tokenizer.encode_many([e.target for e in rows]).lengths) <= 64, name
        sources = tokenizer.encode_sources(TASKS[name], [e.input for e in rows])
        assert max(sources.lengths) <= 80, name


@pytest.mark.parametrize("field", ["molecules", "reactions"])
def test_more_than_the_pieces_give_is_refused(field: str) -> None:
    few = dataclasses.replace(
        SMALL,
        ring_systems=3,
        substituents=1,
        groups=1,
        reaction_classes=3,
        molecules=5,
        reactions=2,
    )
    with pytest.raises(ValueError, match=rf"{field}: only \d+ different ones of 100"):
        dataclasses.replace(few, **{field: 100}).make()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reaction_classes", 17, r"corpus\.reaction_classes = 17 must lie between 1 and 16"),
        ("substituents", 0, r"corpus\.substituents = 0 must lie between 1 and 27"),
        ("held_out", 1.0, r"corpus\.held_out = 1\.0 is a share between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **{field: value})


# Molecules and captions


def test_every_piece_is_valid_and_bonded_once() -> None:
    for name, smiles in SCAFFOLDS.items():
        assert Chem.MolFromSmiles(smiles) is not None, name
    for smiles in (*SUBSTITUENTS.values(), *ARYLS, *ALKYLS):
        mol = Chem.MolFromSmiles("*" + smiles)
        assert mol is not None, smiles
        assert mol.GetAtomWithIdx(0).GetDegree() == 1, smiles
    for pieces in (SUBSTITUENTS.values(), ARYLS, ALKYLS):
        assert len({chem.canonical("*" + smiles) for smiles in pieces}) == len(pieces)


def test_assembled_molecules_are_named_as_they_were_assembled() -> None:
    rng = random.Random(0)
    for _ in range(200):
        mol = assemble(rng, ring_systems=10, substituents=len(SUBSTITUENTS), most=3)
        ring, placed = substituents(mol)
        assert 1 <= len(placed) <= 3
        # Built from the name, it is the same molecule again.
        smiles = SCAFFOLDS[ring]
        for locant, name in placed:
            smiles = re.sub(
                rf"\[(\w)H2?:{locant}\](\d*)",
                rf"\1\2({SUBSTITUENTS[name]})".replace("\\C", "\\\\C"),
                smiles,
            )
        smiles = re.sub(r"\[(\w)H2?:\d\]", r"\1", smiles)
        assert chem.canonical(smiles) == Chem.MolToSmiles(mol)


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("Clc1ccccc1F", ("benzene", [(1, "chloro"), (2, "fluoro")])),
        ("Clc1cccc(F)c1", ("benzene", [(1, "chloro"), (3, "fluoro")])),
        # The lowest locants: 2, 4 and not 4, 6.
        ("Cc1cc(O)ccn1", ("pyridine", [(2, "methyl"), (4, "hydroxy")])),
        ("COc1ccc2ccccc2c1", ("naphthalene", [(2, "methoxy")])),
        (r"C/C=C\c1cccs1", ("thiophene", [(2, "(Z)-prop-1-enyl")])),
        ("C/C=C/c1cccs1", ("thiophene", [(2, "(E)-prop-1-enyl")])),
    ],
)
def test_names_of_known_molecules(smiles: str, expected: object) -> None:
    assert substituents(Chem.MolFromSmiles(smiles)) == expected


def test_captions_are_true() -> None:
    mol = Chem.MolFromSmiles("COC(=O)c1ccc(C#N)nc1")
    assert caption(mol) == (
        "The molecule is a pyridine that carries a cyano group at position 2 and a methoxycarbonyl"
        " group at position 5. It is an ester and a nitrile. It contains two nitrogen atoms and two"
        " oxygen atoms."
    )
    assert groups(Chem.MolFromSmiles("CC(=O)O")) == ["a carboxylic acid"]
    assert groups(Chem.MolFromSmiles("OCc1ccccc1")) == ["an alcohol"]
    assert groups(Chem.MolFromSmiles("NC(C)=O")) == ["an amide"]
    assert groups(Chem.MolFromSmiles("C1CCOC1")) == []


def test_captions_count_the_atoms(corpus: Corpus) -> None:
    numbers = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    for e in corpus.train["molecule_to_text"][:100]:
        formula = rdMolDescriptors.CalcMolFormula(Chem.MolFromSmiles(e.input))
        for symbol, name in (
            ("N", "nitrogen"),
            ("O", "oxygen"),
            ("S", "sulfur"),
            ("F", "fluorine"),
        ):
            said = re.search(rf"(\w+) {name} atom", e.target)
            true = re.search(rf"{symbol}(?![a-z])(\d*)", formula)
            count = int(true[1] or 1) if true else 0
            assert (numbers.index(said[1]) if said else 0) == count


def test_captions_vary() -> None:
    rng = random.Random(1)
    captions = [
        caption(assemble(rng, ring_systems=10, substituents=20, most=3)) for _ in range(200)
    ]
    for words in (" bearing ", " substituted by ", " that carries ", " the class of "):
        assert 10 < sum(words in text for text in captions) < 190


def test_a_molecule_that_has_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the known ring systems"):
        caption(Chem.MolFromSmiles("CCO"))
    with pytest.raises(ValueError, match="has no name"):
        caption(Chem.MolFromSmiles("CCCCCCc1ccccc1"))


# Reactions


def test_there_are_at_least_twelve_reactions_with_names_of_their_own() -> None:
    assert len({reaction.name for reaction in REACTIONS}) == len(REACTIONS) >= 12
    assert len({reaction.reagents for reaction in REACTIONS}) == len(REACTIONS)


@pytest.mark.parametrize("reaction", REACTIONS, ids=lambda r: r.name.replace(" ", "_"))
def test_every_combination_of_a_reaction_gives_one_valid_product(reaction: Reaction) -> None:
    rng = random.Random(0)
    for _ in range(20):
        reactants = [
            block.replace("{ar}", rng.choice(ARYLS)).replace("{alk}", rng.choice(ALKYLS))
            for block in reaction.blocks
        ]
        product = react(reaction, reactants)
        assert chem.canonical(product) == product
        assert "." not in product
        # A transformation, not a copy, and no atoms from nowhere.
        assert product not in {chem.canonical(r) for r in reactants}

        def heavy(smiles: str) -> int:
            return Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()

        assert heavy(product) <= sum(map(heavy, reactants)) + 1  # hydrolysis takes up an oxygen


GOLDEN = {
    "amide coupling": (["O=C(O)c1ccccc1", "NCCC"], "CCCNC(=O)c1ccccc1"),
    "esterification": (["O=C(O)c1ccccc1", "OCC"], "CCOC(=O)c1ccccc1"),
    "Suzuki coupling": (["Brc1ccccc1", "OB(O)c1ccncc1"], "c1ccc(-c2ccncc2)cc1"),
    "reductive amination": (["O=Cc1ccccc1", "NCC"], "CCNCc1ccccc1"),
    "Buchwald-Hartwig amination": (["Brc1ccccc1", "NCC"], "CCNc1ccccc1"),
    "nucleophilic aromatic substitution": (
        ["O=[N+]([O-])c1ccccc1F", "NCC"],
        "CCNc1ccccc1[N+](=O)[O-]",
    ),
    "Williamson ether synthesis": (["Oc1ccccc1", "BrCC"], "CCOc1ccccc1"),
    "sulfonamide formation": (["O=S(=O)(Cl)c1ccccc1", "NCC"], "CCNS(=O)(=O)c1ccccc1"),
    "urea formation": (["O=C=Nc1ccccc1", "NCC"], "CCNC(=O)Nc1ccccc1"),
    "Boc removal": (["CC(C)(C)OC(=O)NCc1ccccc1"], "NCc1ccccc1"),
    "Boc protection": (
        ["NCc1ccccc1", "CC(C)(C)OC(=O)OC(=O)OC(C)(C)C"],
        "CC(C)(C)OC(=O)NCc1ccccc1",
    ),
    "nitro reduction": (["O=[N+]([O-])c1ccccc1"], "Nc1ccccc1"),
    "ester hydrolysis": (["COC(=O)c1ccccc1"], "O=C(O)c1ccccc1"),
    "azide-alkyne cycloaddition": (["C#Cc1ccccc1", "CCN=[N+]=[N-]"], "CCn1cc(-c2ccccc2)nn1"),
    "ketone reduction": (["CC(=O)c1ccccc1"], "CC(O)c1ccccc1"),
    "Heck reaction": (["Brc1ccccc1", "C=CC(=O)OC"], "COC(=O)/C=C/c1ccccc1"),
}


@pytest.mark.parametrize("reaction", REACTIONS, ids=lambda r: r.name.replace(" ", "_"))
def test_reactions_give_the_textbook_product(reaction: Reaction) -> None:
    reactants, product = GOLDEN[reaction.name]
    assert react(reaction, reactants) == product


def test_what_does_not_react_is_refused() -> None:
    with pytest.raises(ValueError, match=r"amide coupling of \['CCO', 'CCO'\] gives \[\]"):
        react(REACTIONS[0], ["CCO", "CCO"])


def test_reactions_are_drawn_without_repetition_from_the_classes_asked_for() -> None:
    pairs = list(draw(random.Random(0), groups=2, classes=5))
    assert len(pairs) == 5 * 2 * 2
    assert len(set(pairs)) == len(pairs)
    assert {pair.name for pair in pairs} == {reaction.name for reaction in REACTIONS[:5]}
    assert [p for p, _ in itertools.groupby(pair.name for pair in pairs)] != [
        reaction.name for reaction in REACTIONS[:5]
    ]


def test_products_are_small(corpus: Corpus) -> None:
    for e in corpus.train["forward"]:
        assert Descriptors.MolWt(Chem.MolFromSmiles(e.target)) < 450


# Procedures


def test_procedures_follow_the_action_language() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(2_000):
        prose, actions = procedure(rng)
        assert prose.endswith(".")
        assert prose[0].isupper() or prose[0].isdigit()
        assert "{" not in prose + actions
        assert is_valid(actions), actions
        seen |= {re.match(r"[A-Z]+", action)[0] for action in actions.split("; ")}  # type: ignore[index]
        # Quantities are copied, none invented.
        for quantity in re.findall(r"\(([^)]*)\)", actions):
            assert f"({quantity})" in prose
    assert seen == set(ARGUMENTS)


def test_the_same_paragraph_always_means_the_same_actions() -> None:
    rng = random.Random(0)
    meanings: dict[str, str] = {}
    for _ in range(3_000):
        prose, actions = procedure(rng, most=1)
        assert meanings.setdefault(prose, actions) == actions
    assert len(meanings) < 3_000


def test_the_vocabulary_has_the_ids_that_t5_needs(corpus: Corpus) -> None:
    tokenizer = SMALL.tokenizer(corpus)
    assert tokenizer.encode_target(f"<pad></s>{UNKNOWN}") == [0, 1, 2, 1]
