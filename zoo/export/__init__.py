"""Detectors as files that other engines run."""
