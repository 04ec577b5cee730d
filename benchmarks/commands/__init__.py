"""The commands of bench.py: each parses its arguments, calls and prints."""
