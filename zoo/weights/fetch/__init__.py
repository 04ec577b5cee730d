"""Download weight files: hosts, resume, hashes, cache. No torch."""
