"""Checkpoint formats: how the tensor names of each source map to the names of our models."""
