"""Names of the folders below a results folder. Imports nothing, for commands that need no record."""

RUNS, COMPARISONS, KERNELS = "runs", "comparisons", "kernels"
