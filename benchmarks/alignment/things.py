"""The real data of the teacher's benchmarks: THINGS objects, human choices, embeddings."""

import collections
import csv
import dataclasses
import functools
import itertools
import pathlib

import jax
import numpy as np
from scipy.stats import spearmanr

from alignment import judgments
from alignment.evaluation.hierarchy import Hierarchy
from alignment.judgments import Standardisation, correct, pair_logits, unit_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Things:
    """Files of the shared data, read when asked for."""

    folder: pathlib.Path
    """The folder `data/alignment`; its README says what is what."""

    @functools.cached_property
    def names(self) -> np.ndarray:
        """Names of the 1,854 objects."""
        return judgments.read_names(self.folder / "things_spose/unique_id.txt")

    @functools.cached_property
    def clip(self) -> np.ndarray:
        """CLIP ViT-B/32 features, as downloaded."""
        return np.load(self.folder / "things_features/clip-vit-base-p32-embeddings.npy")

    @functools.cached_property
    def features(self) -> np.ndarray:
        """CLIP ViT-B/32 features, standardised."""
        return Standardisation.of(self.clip)(self.clip).astype(np.float32)

    @functools.cached_property
    def vice(self) -> np.ndarray:
        """The published VICE embedding."""
        return np.load(self.folder / "vice/vice_things_final_embedding.npy")

    @functools.cached_property
    def spose(self) -> tuple[np.ndarray, np.ndarray]:
        """The published SPoSE embeddings of 49 and 66 dimensions."""
        name = "things_spose/spose_embedding_{}d_sorted.txt"
        return tuple(np.loadtxt(self.folder / name.format(d), dtype=np.float32) for d in (49, 66))  # type: ignore[return-value]

    @functools.cached_property
    def word2vec(self) -> np.ndarray:
        """word2vec vectors of the concepts' names, of length 1."""
        found = np.load(self.folder / "things_features/word2vec-embeddings.npy")
        return np.asarray(unit_rows(found))

    @functools.cached_property
    def wordnet(self) -> np.ndarray:
        """Which nouns of WordNet a concept is one of (section 7.2 of the specification), (n, 128).

        Principal components of the nouns that hold for at least 3 and less than 98 % of the
        concepts, weighted by the log of their rarity. 62 concepts have no noun.
        """
        hierarchy = Hierarchy.read(self.folder / "breeds_hierarchy/wordnet/class_hierarchy.txt")
        with (self.folder / "vice/things_concepts.tsv").open() as file:
            nouns = [row["WordNet ID"] for row in csv.DictReader(file, delimiter="\t")]
        above = [{n, *hierarchy.ancestors(n)} if n in hierarchy.nodes else set() for n in nouns]
        counts = collections.Counter(itertools.chain(*above))
        kept = sorted(n for n, count in counts.items() if 3 <= count < 0.98 * len(nouns))
        found = np.array([[n in nodes for n in kept] for nodes in above])
        weighted = found * np.log(len(nouns) / found.sum(0))
        left, scale, _ = np.linalg.svd(weighted - weighted.mean(0), full_matrices=False)
        return left[:, :128] * scale[:128]

    @functools.cached_property
    def diagnostic(self) -> tuple[np.ndarray, np.ndarray]:
        """1,001 repeated triplets, and the share of their most frequent answer."""
        with (self.folder / "things_triplets/triplets-delta.csv").open() as file:
            rows = list(csv.DictReader(file))
        triplets = [[int(row[name]) for name in ("id_lo", "id_mid", "id_hi")] for row in rows]
        return np.array(triplets, np.int32), np.array([float(row["prop_max"]) for row in rows])

    @functools.cached_property
    def distributions(self) -> tuple[np.ndarray, np.ndarray]:
        """347 triplets with at least 100 answers, and the share of each pair."""
        path = self.folder / "things_triplets/things_triplets_with_subject.npz"
        with np.load(path, allow_pickle=False) as file:
            answers = file["study2_testcase"][:, :3].astype(np.int32)
        row = np.unique(judgments.unordered(answers), return_inverse=True)[1]
        often = np.flatnonzero(np.bincount(row) >= 100)
        triplets = np.stack([np.sort(answers[row == r][0]) for r in often])
        # The pairs (0, 1), (0, 2), (1, 2) leave out the objects 2, 1, 0.
        shares = [
            [(answers[row == r][:, 2] == odd).mean() for odd in triplet[::-1]]
            for r, triplet in zip(often, triplets, strict=True)
        ]
        return triplets, np.array(shares)

    @functools.cached_property
    def human_path(self) -> pathlib.Path:
        """File of the human triplets."""
        return self.folder / "things_triplets/things_human_triplets_300k.npz"

    @functools.cached_property
    def human(self) -> np.ndarray:
        """Human triplets without those of `diagnostic` and `distributions`."""
        found = judgments.read_triplets(self.human_path, len(self.names))
        found = judgments.leave_out(found, self.diagnostic[0])
        return judgments.leave_out(found, self.distributions[0])

    def uncertainty(self, features: np.ndarray) -> dict[str, float]:
        """Compare choice probabilities with those of people.

        Returns:
          "entropy", Spearman's correlation of the entropies of the 347; "KL", KL(human || model) of
          the same, nats; "max p", Spearman's correlation of the largest probability with the share
          of the most frequent answer, of the 1,001.
        """
        triplets, shares = self.distributions
        log_p = np.asarray(jax.nn.log_softmax(pair_logits(features, triplets)), np.float64)
        logs = np.log(np.where(shares > 0, shares, 1))
        entropies = -(np.exp(log_p) * log_p).sum(1), -(shares * logs).sum(1)
        repeated, modal = self.diagnostic
        largest = np.asarray(jax.nn.softmax(pair_logits(features, repeated))).max(1)
        return {
            "entropy": float(spearmanr(*entropies).statistic),
            "KL": float((shares * (logs - log_p)).sum(1).mean()),
            "max p": float(spearmanr(largest, modal).statistic),
        }

    def judge(self, features: np.ndarray, triplets: np.ndarray) -> dict[str, float]:
        """Return accuracies and negative log-likelihood on triplets, and `uncertainty`."""
        logits = pair_logits(features, triplets)
        return {
            "dot": float(correct(logits).mean()),
            "cosine": float(correct(pair_logits(unit_rows(features), triplets)).mean()),
            "NLL": float(-jax.nn.log_softmax(logits)[:, 0].mean()),
            **self.uncertainty(features),
        }
