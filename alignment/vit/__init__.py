"""Vision transformers: one model for all families, and its exchange with Hugging Face."""
