"""Turn configuration files of other projects into manifest rows."""
