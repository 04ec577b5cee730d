"""Benchmarks: measure models, store the records, generate reports."""
