"""Weight files: fetching, reading safely, renaming, loading."""
