"""Detectors: a backbone, a neck and heads, assembled from zoo.parts."""
