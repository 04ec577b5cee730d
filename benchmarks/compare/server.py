"""Imported by the server of the workers before anything else: the server ends with the command, also while it
still imports torch, and its workers end with it."""

from detection_zoo.benchmarks.run.isolation import end_with_parent

end_with_parent()
