"""Run benchmarks: one row, a sweep, several processes or machines."""
