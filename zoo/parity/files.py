"""Files of recorded outputs, read with errors that name them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from detection_zoo.zoo.errors import ZooError


class ParityError(ZooError):
    """A reference folder cannot be read, or there is no adapter for its source."""


class Described(dict[str, Any]):
    """A JSON object that names its file where a field is missing: what a reference folder states
    is needed, not guessed."""

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.path = path

    def __missing__(self, field: str) -> Any:
        raise ParityError(
            f"{self.path}: field {field!r} is missing beside {', '.join(list(self)[:6]) or 'nothing'}; it is"
            " needed to recompute the outputs"
        )


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        path: the file.
        wanted: files that the folder should hold, for the error.

    Raises:
        ParityError: no such file, not JSON, or no object.
    """
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), object_hook=lambda fields: Described(path, fields)
        )
    except FileNotFoundError:
        raise ParityError(f"{path}: no such file; --reference needs a folder with {wanted}") from None
    except json.JSONDecodeError as error:
        raise ParityError(f"{path}: not valid JSON: {error}; is the file cut short?") from None
    if not isinstance(content, dict):
        raise ParityError(f"{path}: holds a {type(content).__name__}, an object is needed")
    return content


def read_arrays(path: Path, wanted: str = "the files of its recording") -> dict[str, np.ndarray]:
    """Every array of a .npz file.

    Raises:
        ParityError: no such file, or it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise ParityError(f"{path}: no such file; --reference needs a folder with {wanted}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ParityError(f"{path}: cannot be read ({error}); is the file cut short?") from None
