"""Published results to put a table's own row beside: only numbers that were seen in print.

Decimals as printed. Rows stand beside ours only where the tokens are of the same kind.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from molt5_multitask.metrics.tokens import TokenKind

CAPTIONS = ("BLEU-2", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "METEOR")
MOLECULES = ("BLEU", "exact", "Levenshtein", "MACCS", "RDK", "Morgan", "FCD", "validity")
INSTRUCTIONS = ("exact", "BLEU", "Levenshtein", "RDK", "MACCS", "Morgan", "validity")
TOP = ("top-1", "top-5", "top-10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Published results on one test set, of one kind of tokens."""

    task: str
    """Task of the results."""
    title: str
    """Test set and setting, which the reader must compare with his own."""
    columns: Sequence[str]
    """Metrics, in the order of the columns."""
    rows: Mapping[str, str]
    """Values by system, separated by spaces; `-` where none is published."""
    tokens: TokenKind | None = None
    """Tokens of BLEU and METEOR, where these depend on them."""


TABLES = (
    Table(
        task="molecule_to_text",
        title="ChEBI-20 test set, SciBERT tokens",
        columns=CAPTIONS,
        tokens="scibert",
        rows={
            "T5-base": ".511 .423 .607 .451 .550 .539",
            "T5-large": ".558 .467 .630 .478 .569 .586",
            "MolT5-base (as published)": ".540 .457 .634 .485 .578 .569",
            "MolT5-large (as published)": ".594 .508 .654 .510 .594 .614",
            "Text+Chem T5-base, standard": "- - - .498 - .604",
            "Text+Chem T5-base, augm": ".625 .542 .682 .543 .622 .648",
            "MolXPT": ".594 .505 .660 .511 .597 .626",
            "MolCA, Galactica 1.3B (one quotation)": ".620 .531 .681 .537 .618 .651",
            "MolCA, Galactica 1.3B (another)": ".639 .555 .697 .558 .636 .669",
            "BioT5": ".635 .556 .692 .559 .633 .656",
        },
    ),
    Table(
        task="molecule_to_text",
        title="ChEBI-20 test set, T5 tokens (ICMA and MolReFlect: inferred)",
        columns=CAPTIONS,
        tokens="t5",
        rows={
            "MolReGPT, GPT-4": ".607 .525 .634 .476 .562 .610",
            "ICMA, Mistral-7B": ".651 .581 .686 .550 .625 .661",
            "MolReFlect, Mistral-7B": ".676 .608 .703 .571 .644 .680",
        },
    ),
    Table(
        task="text_to_molecule",
        title="ChEBI-20 test set",
        columns=MOLECULES,
        rows={
            "T5-base": ".762 .069 24.95 .731 .605 .545 2.48 .660",
            "T5-large": ".854 .279 16.72 .823 .731 .670 1.22 .902",
            "MolT5-base (as published)": ".769 .081 24.46 .721 .588 .529 2.18 .772",
            "MolT5-large (as published)": ".854 .311 16.07 .834 .746 .684 1.20 .905",
            "Text+Chem T5-base, augm": "- .322 - - - - - -",
            "TGM-DLM": ".826 .242 17.00 .854 .739 .688 .77 .871",
            "MolReGPT, GPT-4": ".857 .280 17.14 .903 .805 .739 .41 .899",
            "BioT5": ".867 .413 15.10 .886 .801 .734 .43 1.000",
            "BioT5+ (possibly without stereochemistry)": ".872 .522 - - - .779 .35 1.000",
            "ICMA, Mistral-7B": ".855 .460 18.73 .916 .837 .789 - .958",
            "MolReFlect, Mistral-7B": ".903 .510 11.84 .929 .860 .813 - .977",
            "LDMol (trained on further captions)": ".926 .530 - - - .931 .20 .941",
        },
    ),
    Table(
        task="text_to_molecule",
        title="Mol-Instructions, design",
        columns=INSTRUCTIONS,
        rows={"Text+Chem T5, as it is": ".097 .508 41.8 .352 .474 .353 .721"},
    ),
    Table(
        task="forward",
        title="USPTO-480k test set (40,000 rows)",
        columns=("top-1", "top-5"),
        rows={
            "Molecular Transformer, reagents separated": ".905 -",
            "Molecular Transformer, reagents mixed": ".887 -",
            "MEGAN, separated": ".893 -",
            "MEGAN, mixed": ".863 -",
            "Augmented Transformer, separated": ".919 -",
            "Augmented Transformer, mixed": ".904 -",
            "R-SMILES, separated": ".923 .975",
            "R-SMILES, mixed": ".910 .968",
            "Chemformer, separated": ".928 -",
            "Chemformer, mixed": ".913 -",
        },
    ),
    Table(
        task="forward",
        title="Mol-Instructions, forward prediction",
        columns=INSTRUCTIONS,
        rows={"Text+Chem T5, as it is": ".239 .782 20.4 .705 .789 .652 .762"},
    ),
    Table(
        task="retrosynthesis",
        title="USPTO-50k test set of the standard split, class unknown, no reagents",
        columns=TOP,
        rows={
            "LocalRetro": ".534 .859 .924",
            "Augmented Transformer": ".535 .810 .857",
            "R-SMILES": ".563 .862 .910",
            "RetroChimera": ".596 .892 .942",
            "EditRetro": ".608 .860 .903",
        },
    ),
    Table(
        task="retrosynthesis",
        title="Mol-Instructions, retrosynthesis",
        columns=INSTRUCTIONS,
        rows={"Text+Chem T5, as it is": ".141 .765 24.04 .685 .765 .585 .698"},
    ),
    Table(
        task="paragraph_to_actions",
        title="the authors' test set, which is not public",
        columns=("BLEU-2",),
        rows={"Text+Chem T5-small, standard": ".929"},
    ),
)
"""All tables, from the papers or from later papers and repositories that quote them."""
