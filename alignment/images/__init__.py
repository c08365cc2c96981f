"""Images: where they come from, and what is done to them before a model sees them."""
