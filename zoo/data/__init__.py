"""Datasets and the preprocessing that a checkpoint was trained with."""
