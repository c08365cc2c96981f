"""Diagrams for the derivatives of an MLP: enumeration, counts, formulas, drawings and values.

`python -m born_mlp.diagrams --help` makes galleries and checks the sum rule.
"""

from born_mlp.diagrams.tree import LEG, Diagram, enumerate_diagrams, topologies

__all__ = ["LEG", "Diagram", "enumerate_diagrams", "topologies"]
