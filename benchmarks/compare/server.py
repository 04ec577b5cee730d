"""Imported first by the fork server of the workers, so that it and its workers end with the
command, even while it imports torch."""

from detection_zoo.benchmarks.run.isolation import end_with_parent

end_with_parent()
