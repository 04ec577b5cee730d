"""Models side by side: processes, interleaved blocks, verdicts, records."""
