"""Store of records: one immutable JSON file per run, written atomically. Truncated or edited files are
reported and not used. Does not import torch."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from detection_zoo.benchmarks.folders import RUNS
from detection_zoo.benchmarks.spec import Run, StoredFile
from detection_zoo.zoo import regular
from detection_zoo.zoo.errors import first_problem

PROJECT_RESULTS = Path(__file__).resolve().parent.parent / "results"  # of a git checkout; tracked by git
MOST_BYTES = 64 * 2**20  # maximum size of a record; the largest in results/ has 0.2 MB
Record = TypeVar("Record", bound=BaseModel)
_HEAD, _MIDDLE, _TAIL = b'{"sha256": "', b'", "run": ', b"}\n"


@dataclass(frozen=True)
class Stored:
    """Contents of a store: its runs, oldest first, and the problems of files that are not used."""

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def results_folder() -> Path:
    """Return the default output folder: ./results. In the root of a checkout, where
    results/ is tracked by git, it is results/local, which git ignores."""
    folder = Path.cwd() / "results"
    return folder / "local" if folder == PROJECT_RESULTS else folder


def record_folders(kind: str, store: Path | None = None) -> list[Path]:
    """Return the folders from which records of a kind are read.

    Args:
        kind: RUNS, COMPARISONS or KERNELS.
        store: folder of runs; the other kinds are in sibling folders. None: those in ./results, and in the
        root
            of a checkout also the tracked ones.
    """
    if store is not None:
        return [store if kind == RUNS else store.parent / kind]
    own = results_folder()
    return [own / kind, *([own.parent / kind] if own.parent == PROJECT_RESULTS else [])]


def new_id(row: str, now: datetime | None = None) -> str:
    """Return a new run ID: UTC time, row, and eight random digits, so that parallel writers do not
    collide."""
    now = now or datetime.now(UTC)
    return f"{now.strftime('%Y%m%dT%H%M%SZ')}-{row}-{secrets.token_hex(4)}"


def write_record(folder: Path, record: Any) -> Path:
    """Store a record with an `id` (`Run`, `Comparison`) permanently, and return its file; the folder is
    created if missing.

    Raises:
        FileExistsError: a record with this ID exists; records are never changed.
        OSError: the disk is full or not writable; no partial file is left.
    """
    path = folder / f"{record.id}.json"
    if path.exists():
        raise FileExistsError(f"{path}: this record exists already and records are never changed")
    write_whole(path, sealed(record.model_dump_json(exclude_defaults=True).encode()))
    return path


def sealed(text: bytes) -> bytes:
    """Return a record's JSON, preceded by its SHA-256, on one line."""
    return _HEAD + hashlib.sha256(text).hexdigest().encode() + _MIDDLE + text + _TAIL


def unsealed(path: Path) -> bytes:
    """Return the JSON of a record's file; raises ValueError if the file is truncated or was changed."""
    content = read_regular(path)
    start = len(_HEAD) + 64 + len(_MIDDLE)
    if not (
        content.startswith(_HEAD)
        and content[start - len(_MIDDLE) : start] == _MIDDLE
        and content.endswith(_TAIL)
    ):
        raise ValueError(
            f"{path}: truncated, or not a record; it is ignored. Delete the file and measure again"
        )
    text = content[start : -len(_TAIL)]
    if hashlib.sha256(text).hexdigest().encode() != content[len(_HEAD) : len(_HEAD) + 64]:
        raise ValueError(
            f"{path}: the record was changed after it was written (its SHA-256 differs); it is ignored."
            " Restore or delete the file"
        )
    return text


def read_regular(path: Path) -> bytes:
    """Read a record's file; raises ValueError if it is not a regular file (pipe,
    device), is too large or cannot be read."""
    try:
        return regular.read_regular(path, MOST_BYTES)
    except (ValueError, FileNotFoundError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"{path}: {reason}; it is ignored. Move it out of the store") from None


def read_folder(folder: Path, read: Callable[[Path], Any]) -> tuple[list[Any], list[str]]:
    """Read every record of a folder in order of file names; return the records, and a message for each
    unusable file.

    Args:
        folder: may be missing.
        read: reads one file; its ValueError becomes the message.
    """
    records: list[Any] = []
    problems: list[str] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.endswith(".part"):
            problems.append(
                f"{path}: an incomplete write; it is ignored. Delete the file if no benchmark is running"
            )
        elif path.suffix == ".json":
            try:
                records.append(read(path))
            except ValueError as error:
                problems.append(str(error))
    return records, problems


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file atomically, so that a crash leaves the whole file or none; missing folders are created.

    Args:
        path: the file. content: its bytes, or a function that writes them to the open file.

    Raises:
        OSError: the disk is full or not writable; no partial file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    regular.sync_folder(path.parent)


def read_record(path: Path, kind: type[Record] = Run) -> Record:
    """Read one record of `write_record`; raises ValueError that says what is wrong and how to fix it."""
    record = validated(unsealed(path), path, kind)
    if path.name != f"{record.id}.json":
        raise ValueError(f"{path}: holds the record of {record.id}; it is ignored. Rename the file back")
    return record


def validated(text: bytes, path: Path, kind: type[Record]) -> Record:
    """Parse and validate a record's JSON; raises ValueError with the file and the field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        other_version = error.errors()[0]["loc"] == ("schema_version",)
        cure = "Use the version of the project that wrote it" if other_version else "Delete it, measure again"
        raise ValueError(f"{path}: {first_problem(error)}; it is ignored. {cure}") from None


def newest_records(
    kind: str, store: Path | None, read: Callable[[Path], Any], key: Callable[[Any], tuple[Any, ...]]
) -> tuple[list[Any], list[str]]:
    """Return the newest record of each key, sorted by key, and a message for each unusable file; from the
    folders of `record_folders`.

    Args:
        kind, store: as in `record_folders`. read: as in `read_folder`.
        key: what a later record must have in common with an earlier one to replace it.
    """
    parts = [read_folder(folder, read) for folder in record_folders(kind, store)]
    records = sorted((one for found, _ in parts for one in found), key=lambda one: one.started)
    newest = {key(one): one for one in records}
    return [newest[name] for name in sorted(newest)], [text for _, problems in parts for text in problems]


def read_runs(folder: Path) -> Stored:
    """Read every run of a store, oldest first; invalid files are listed as
    problems."""
    runs, problems = read_folder(folder, read_record)
    return Stored(sorted(runs, key=_age), problems)


def stored_runs(store: Path | None = None) -> Stored:
    """Read every run of a store, oldest first; None reads the folders of `record_folders`, each record
    once."""
    parts = [read_runs(folder) for folder in record_folders(RUNS, store)]
    runs = {run.id: run for part in parts for run in part.runs}
    return Stored(sorted(runs.values(), key=_age), [problem for part in parts for problem in part.problems])


def _age(run: Run) -> tuple[str, str]:
    return run.started, run.id


def store_file(folder: Path, name: str, content: bytes) -> StoredFile:
    """Write a file that belongs to a run (such as detections) to `folder`, and return its description."""
    write_whole(folder / name, content)
    return StoredFile(name=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
