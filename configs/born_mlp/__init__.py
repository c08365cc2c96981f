"""Experiments of `born_mlp`."""
