"""Fields of JSON records: read a file, get one field of all records and convert it; errors name the
record."""

from __future__ import annotations

import gc
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.regular import open_regular, read_regular

LARGEST = 1e9  # pixels: beyond it, areas would not be finite
_MOST_PIECES = 8  # of a file that is read in pieces, held together
_TOGETHER = 2**10  # lists packed at once, so that their numbers stay in the CPU's cache
_BETWEEN_RECORDS = re.compile(rb"\}\s*,\s*\{")
_JSON_NAMES = {dict: "object", list: "list"}


class FieldError(Exception):
    """The expected value of a field; raised by `convert` functions."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause Python's cycle collector: it would scan millions of new records repeatedly,
    without finding cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def dataset_bytes(path: Path, most_bytes: int | None = None) -> bytes:
    """The bytes of a file of a dataset.

    Raises:
        FileNotFoundError: it is not there.
        DatasetError: it is no regular file, cannot be read, or has more than `most_bytes`.
    """
    try:
        return read_regular(path, most_bytes)
    except ValueError as error:
        raise DatasetError(f"{str(path)!r:.300}: {error}; correct the path, or remove it") from None


def dataset_text(path: Path) -> str:
    """The text of a file of a dataset, a byte order mark removed; raises as `dataset_bytes`, and DatasetError
    where it is not UTF-8."""
    data = dataset_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}: line {line}: not in utf-8 ({error.reason}); write the file as utf-8"
        ) from None


def read_json(path: Path, kind: type, title: str, confused: str) -> Any:
    """Read a JSON file whose outermost value must be a `kind`.

    Args:
        path: the file; title: what it should be; confused: a question about what else the file may be.

    Raises:
        DatasetError: the file is missing, not JSON (or nested deeper than 200 levels), or has another
            type.
    """
    from pydantic_core import from_json

    try:
        data = dataset_bytes(path)
        encoding = json.detect_encoding(data[:4])
        with no_collection():
            value = from_json(data if encoding == "utf-8" else data.decode(encoding), cache_strings="keys")
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such {title}; put it there, or give another path") from None
    except ValueError as error:  # UnicodeDecodeError among them
        raise DatasetError(
            f"{path}: not valid JSON ({error}); the {title} is empty, damaged or cut short, get it again"
        ) from None
    if not isinstance(value, kind):
        raise DatasetError(
            f"{path}: a {title} is a JSON {_JSON_NAMES[kind]}, this is a {type(value).__name__}; {confused}"
        )
    return value


def json_records(path: Path, piece_bytes: int = 2**18) -> Iterator[list[dict[str, Any]]]:
    """The records of a JSON list piece by piece, to limit memory: together they equal the result of
    `read_json`, or an error is raised.

    The text is cut between "}" and "{" around a comma. A cut inside a text or a nested list leaves a piece
    whose quotes or brackets do not close, which is an error.

    Args:
        path: the file.
        piece_bytes: a piece has about as many.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not a list of objects in UTF-8 that can be split; `read_json` gives the reason.
    """
    from pydantic_core import from_json

    with open_regular(path) as file:
        piece = file.read(piece_bytes).lstrip()
        if piece[:1] != b"[":
            raise ValueError("no list of JSON objects")
        piece = piece[1:]
        while more := file.read(piece_bytes):
            piece += more
            if len(piece) > _MOST_PIECES * piece_bytes:
                raise ValueError("a record is longer than some pieces")
            cut = _BETWEEN_RECORDS.search(piece, max(len(piece) - piece_bytes // 2, 0))
            if cut is not None:
                yield from_json(b"[%b]" % piece[: cut.start() + 1], cache_strings="keys")
                piece = piece[cut.end() - 1 :]
    piece = piece.rstrip()
    if piece[-1:] != b"]":
        raise ValueError("no list of JSON objects")
    yield from_json(b"[%b" % piece, cache_strings="keys")


class Records:
    """The JSON objects of one list of a file, with their location for error messages.

    Args:
        records: what the file has as the list.
        where: "FILE: list", to which "[row]" is added.
        show_id: add the record's own id to messages.

    Raises:
        DatasetError: it is no list of objects.
    """

    def __init__(self, records: Any, where: str, *, show_id: bool = False) -> None:
        self.where, self.show_id = where, show_id
        if not isinstance(records, list):
            raise DatasetError(f"{where} is {shown(records)}, expected a list")
        if not set(map(type, records)) <= {dict}:
            row = next(row for row, record in enumerate(records) if type(record) is not dict)
            raise DatasetError(f"{where}[{row}] is {shown(records[row])}, expected a JSON object")
        self.records: list[dict[str, Any]] = records

    def __len__(self) -> int:
        return len(self.records)

    def error(self, row: int, text: str) -> DatasetError:
        """An error that names the file and the record."""
        own = self.records[row].get("id") if self.show_id else None
        return DatasetError(f"{self.where}[{row}]{'' if own is None else f' (id {shown(own)})'}: {text}")

    def column(self, field: str, types: set[type], convert: Callable[[Any], Any]) -> list[Any]:
        """One field of all records.

        Args:
            field: its name.
            types: if all values are of these types, they are returned unchanged.
            convert: makes the value from anything else (None where the field is missing), or raises
                FieldError with the expected value.

        Raises:
            DatasetError: names file, record and field of the first value that cannot be converted.
        """
        values = [record.get(field) for record in self.records]
        if set(map(type, values)) <= types:
            return values
        for row, value in enumerate(values):
            try:
                values[row] = convert(value)
            except FieldError as error:
                if field not in self.records[row]:
                    raise DatasetError(f"{self.where}[{row}]: field {field!r} is missing; {error}") from None
                raise self.error(row, f"field {field!r} is {shown(value)}, {error}") from None
        return values

    def ids(self, title: str) -> list[int | str]:
        """The ids of all records; raises DatasetError where one is missing or occurs twice."""
        values = self.column("id", {int}, identity)
        if len(set(values)) < len(values):
            seen: set[int | str] = set()
            for row, value in enumerate(values):
                if value in seen:
                    raise DatasetError(
                        f"{self.where}[{row}]: {title} id {value} occurs twice; ids are unique"
                    )
                seen.add(value)
        return values

    def places(self, field: str, place: dict[int | str, int], unknown: str) -> np.ndarray:
        """(R,) int64: index in a list of each record's `field`, an id.

        Args:
            field: name of the field.
            place: of each id.
            unknown: the message for an id that is not there, with {} in its place.
        """
        values = self.column(field, {int, str}, identity)
        found = [place.get(value, -1) for value in values]
        if -1 in found:  # "7" may stand for 7
            values = [identity(value) if type(value) is str and value.strip() else value for value in values]
            found = [place.get(value, -1) for value in values]
        if -1 in found:
            row = found.index(-1)
            raise self.error(row, unknown.format(shown(values[row])))
        return np.array(found, np.int64)


def shown(value: Any) -> str:
    """A value for a message, cut to 60 characters."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} too large to print"


def plain_numbers(lists: Sequence[list[Any]]) -> np.ndarray | None:
    """All numbers of some lists one after another, float64; None if one is not a finite number up to 1e9, or
    is a text or bool."""
    parts = [_packed(lists[start : start + _TOGETHER]) for start in range(0, len(lists) or 1, _TOGETHER)]
    return None if any(part is None for part in parts) else np.concatenate(parts)


def _packed(lists: Sequence[list[Any]]) -> np.ndarray | None:
    """The same of some lists. `struct` refuses all that is no number but for truth values, which become 0 or
    1: this is faster than checking the type of each."""
    numbers: list[Any] = []
    for each in lists:
        numbers += each
    try:
        values = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers))
    except (struct.error, OverflowError):  # the second: a whole number of hundreds of digits
        return None
    if not -LARGEST <= values.min(initial=0) <= values.max(initial=0) <= LARGEST:
        return None
    perhaps = np.flatnonzero((values == 0) | (values == 1)).tolist()
    return values if {bool, np.bool_}.isdisjoint(map(type, map(numbers.__getitem__, perhaps))) else None


def identity(value: Any) -> int | str:
    """An id: a whole number (7, 7.0 and "7" are the same) or a text."""
    if type(value) is int and abs(value) < 2**63:
        return value
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if type(value) is str and value.strip():
        text = value.strip()
        return int(text) if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 19 else text
    raise FieldError("expected an integer or a string")


def pixels(value: Any) -> int:
    """A side in whole pixels."""
    number = identity(value) if type(value) in (int, float, str) else 0
    if type(number) is not int or not 1 <= number < 2**31:
        raise FieldError("expected a number of pixels")
    return number


def text(value: Any) -> str:
    """A text that is not empty."""
    if type(value) is not str or not value or "\0" in value:
        raise FieldError("expected a string")
    return value


def label(value: Any) -> str:
    """A class's name; a whole number becomes its digits."""
    return text(str(value) if type(value) is int and abs(value) < 2**63 else value)


def flag(value: Any) -> int:
    """0 or 1; missing, null and empty are 0, and "0", "false", "no" as text."""
    if isinstance(value, str):
        value = {"": 0, "0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}.get(
            value.strip().lower(), value
        )
    if value is None:
        return 0
    if isinstance(value, bool | int | float) and value in (0, 1):
        return int(value)
    raise FieldError("expected 0 or 1")


def number_or_none(value: Any) -> float | None:
    """A finite number of at least 0, also as text; None where it is missing or null."""
    if value is None:
        return None
    try:
        found = (
            float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        )
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= LARGEST**2:
        raise FieldError("expected a finite number of at least 0, or null")
    return found


def box(value: Any) -> list[float]:
    """x, y, width, height in pixels; numbers, sides of at least 0."""
    found = plain_numbers([value]) if type(value) is list and len(value) == 4 else None
    if found is None or found[2:].min() < 0:
        raise FieldError("expected four finite numbers x, y, width, height")
    return value
