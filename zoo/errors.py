"""The project's own errors: each message states what is wrong, where (file and row), and what to do."""

import importlib
import sys
from typing import Any

if __name__ == "zoo.errors":  # in a checkout, under the folder's name: the errors are the same classes
    sys.modules[__name__] = importlib.import_module("detection_zoo.zoo.errors")


class ZooError(Exception):
    """Base of the errors that a command reports in one line, without a traceback, and ends with exit code
    1."""


class ManifestError(ZooError):
    """A manifest cannot be read, or a row in it is wrong, missing or ambiguous."""


class UnknownName(ManifestError):
    """An argument names a row, source or record that does not exist; a command ends with exit code 2."""


class DownloadError(ZooError):
    """A file could not be fetched, or what was received is not the file of the manifest."""


class CheckpointError(ZooError):
    """A checkpoint cannot be read safely, or does not fit the model that it is loaded into."""


class DatasetError(ZooError):
    """A dataset folder, an annotation file or an image is missing or malformed."""


def in_one_line(error: ZooError | OSError) -> str:
    """The message that a command prints of an error: its own, or of the system's "path: what is wrong"
    without the number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error)


def first_problem(error: Any) -> str:
    """The first error of a pydantic ValidationError: "field a.b: what is wrong"; without a field if it is
    about the whole value."""
    first = error.errors()[0]
    return (f"field {'.'.join(map(str, first['loc']))}: " if first["loc"] else "") + first["msg"]
