"""Triplets of images with soft labels: drawn, labelled by a teacher, written, read in batches."""
