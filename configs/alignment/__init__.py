"""Experiments of `alignment`."""
