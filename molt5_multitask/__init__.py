"""Multitask molecule-text T5 (Text+Chem T5)."""
