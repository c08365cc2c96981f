"""Experiments of `molt5_multitask`."""
