"""MLP Taylor coefficients from diagrams and the Born-series perturbation theory.

Independent implementation of the idea published by B. Kaspschak and U.-G. Meissner,
"A Neural Network Perturbation Theory Based on the Born Series" (arXiv 2009.03192).
"""

import common  # noqa: F401 - sets what XLA must know before its first use
