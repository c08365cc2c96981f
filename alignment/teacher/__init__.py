"""The teacher: an affine map of frozen features, fitted to human similarity judgments."""
