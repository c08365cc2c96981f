"""A synthetic corpus for the five tasks, made with RDKit: training without any download."""

from molt5_multitask.corpus.corpus import Corpus, SyntheticCorpus, copy_baseline

__all__ = ["Corpus", "SyntheticCorpus", "copy_baseline"]
