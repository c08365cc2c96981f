"""Variational interpretable concept embeddings (VICE) of human odd-one-out choices."""
