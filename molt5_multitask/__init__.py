"""Multitask molecule-text T5 (Text+Chem T5)."""

import common  # noqa: F401 - sets what XLA must know before its first use
