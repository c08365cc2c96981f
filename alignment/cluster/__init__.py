"""Clusters of images by k-means over features."""
