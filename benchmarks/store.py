"""The store: one immutable JSON file a run, written whole or not at all; a cut or edited one is reported,
never used. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from detection_zoo.benchmarks.spec import SCHEMA_VERSION, Run, StoredFile

RESULTS_FOLDER = Path(__file__).resolve().parent.parent / "results"
DEFAULT_STORE = RESULTS_FOLDER / "runs"
_HEAD, _MIDDLE, _TAIL = b'{"sha256": "', b'", "run": ', b"}\n"


@dataclass(frozen=True)
class Stored:
    """What a store holds: its runs, oldest first, and what is wrong with files that are not used."""

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def new_id(row: str, now: datetime | None = None) -> str:
    """A name for a run: UTC time, row, and eight random digits, so that writers never meet."""
    now = now or datetime.now(UTC)
    return f"{now.strftime('%Y%m%dT%H%M%SZ')}-{row}-{secrets.token_hex(4)}"


def write_run(folder: Path, run: Run) -> Path:
    """Store a run for good.

    Args:
        folder: the store; made where it is missing.
        run: what to store.

    Returns:
        The record's file.

    Raises:
        FileExistsError: a record of that id is there already; records are never changed.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.id}.json"
    if path.exists():
        raise FileExistsError(
            f"{path}: this record exists already and records are never changed; give the run a new id"
        )
    text = run.model_dump_json(exclude_defaults=True).encode()
    write_whole(path, sealed(text))
    return path


def sealed(text: bytes) -> bytes:
    """A record's JSON with the SHA-256 of it in front, in one line."""
    return _HEAD + hashlib.sha256(text).hexdigest().encode() + _MIDDLE + text + _TAIL


def unsealed(path: Path) -> bytes:
    """The JSON of a record's file; raises ValueError where the file is cut short or was changed."""
    content = path.read_bytes()
    start = len(_HEAD) + 64 + len(_MIDDLE)
    if not (
        content.startswith(_HEAD)
        and content[start - len(_MIDDLE) : start] == _MIDDLE
        and content.endswith(_TAIL)
    ):
        raise ValueError(
            f"{path}: the record is cut short or no record; it is left out. Delete the file and measure again"
        )
    text = content[start : -len(_TAIL)]
    if hashlib.sha256(text).hexdigest().encode() != content[len(_HEAD) : len(_HEAD) + 64]:
        raise ValueError(
            f"{path}: the record was changed after it was written (its SHA-256 differs); it is left out."
            " Restore or delete the file"
        )
    return text


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that after any crash either all of it is there or none; raises OSError with nothing
    left behind."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_run(path: Path) -> Run:
    """Read one record; raises ValueError that says what is wrong with the file and what to do."""
    text = unsealed(path)
    version = json.loads(text).get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: the record has schema version {version}, this program reads {SCHEMA_VERSION}; it is"
            " left out. Use the program that wrote it"
        )
    try:
        run = Run.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ValueError(
            f"{path}: field {where}: {error.errors()[0]['msg']}; it is left out. Delete the file and measure"
            " again"
        ) from None
    if path.name != f"{run.id}.json":
        raise ValueError(
            f"{path}: holds the record of {run.id}; it is left out. Give the file its own name back"
        )
    return run


def read_runs(folder: Path) -> Stored:
    """Every run of a store, oldest first; files that are no whole record become problems, and stop
    nothing."""
    stored = Stored()
    if not folder.is_dir():
        return stored
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".part"):
            stored.problems.append(
                f"{path}: a write that never finished; it is left out. Delete the file if no sweep is running"
            )
        elif path.suffix == ".json":
            try:
                stored.runs.append(read_run(path))
            except ValueError as error:
                stored.problems.append(str(error))
    stored.runs.sort(key=lambda run: (run.started, run.id))
    return stored


def store_file(folder: Path, name: str, content: bytes) -> StoredFile:
    """Keep a file that belongs to a run (detections, say) in `folder`, whole, and say what was kept."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / name, content)
    return StoredFile(name=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
