"""Vision-human alignment by distillation (AligNet)."""
