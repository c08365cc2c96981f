"""Vision-human alignment by distillation (AligNet)."""

import common  # noqa: F401 - sets what XLA must know before its first use
