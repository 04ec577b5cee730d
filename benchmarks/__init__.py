"""Measure, store, report."""
