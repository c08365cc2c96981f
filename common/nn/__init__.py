"""Flax NNX layers that several projects share, and the mapping of their weights to safetensors."""
