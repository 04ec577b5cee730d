"""The folder of fetched weights: files named by their SHA-256, hashes recorded on first use, and a lock for
each file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from detection_zoo.zoo.errors import CheckpointError, DownloadError
from detection_zoo.zoo.home import home_folder
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.regular import open_regular, sync_folder

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Pin:
    """A hash recorded on first use: of which file, from which address, when."""

    key: str
    sha256: str
    bytes: int
    url: str
    row: str
    date: str


def spec_key(spec: WeightSpec) -> str:
    """Identifier of a weight file without a known hash: its first address, else its manual page and name."""
    return spec.urls[0] if spec.urls else f"{spec.manual} {spec.filename or ''}".strip()


def spec_filename(spec: WeightSpec) -> str:
    """The name a file is exported under: the row's, else the last part of the first address; never a
    name from a server."""
    if spec.filename:
        return safe_name(spec.filename)
    address = spec_key(spec)
    member = address.partition("!")[2]
    return safe_name(PurePosixPath(member or unquote(urlsplit(address).path)).name)


def safe_name(name: str) -> str:
    """A file name without folders or special characters, at most 120 characters."""
    kept = "".join(
        c if c.isalnum() or c in "._-+=" else "_" for c in name.replace("\\", "/").rsplit("/", 1)[-1]
    )
    return kept.lstrip(".")[:120] or "weights"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(handle: int) -> list[int]:
    """Inode, size in bytes, and times in ns of an open file: a change of its bytes changes at least one of
    them."""
    found = os.fstat(handle)
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def open_own(path: Path) -> FileIO:
    """Open one of our files to read and append, unbuffered; it is created if it is absent.

    Raises:
        DownloadError: the path is a link (not followed), a folder or a pipe.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink() or path.exists() and not path.is_file():
            raise DownloadError(f"{path}: not a regular file; remove it and run again") from None
        raise DownloadError(f"{path}: cannot be opened ({error.strerror})") from None
    found = os.fstat(handle)
    if (
        not stat.S_ISREG(found.st_mode) or found.st_nlink != 1
    ):  # two names: another process may write through the other
        os.close(handle)
        raise DownloadError(f"{path}: not a regular file; remove it and run again")
    return FileIO(handle, "ab+")


def fresh(part: Path) -> Path:
    """The path of a file to be written, after removing an existing one: left by a killed process, or a
    planted link."""
    part.unlink(missing_ok=True)
    return part


def write_atomic(path: Path, text: str) -> None:
    """Write a text file atomically; the caller is the only writer, or has the lock."""
    part = fresh(path.with_name(f".{path.name}.new"))
    with part.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def read_note(path: Path) -> dict[str, Any]:
    """The JSON object of one of our small files; empty where it is absent, damaged or a link."""
    if path.is_symlink() or not path.is_file():
        return {}
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


class WeightCache:
    """A folder of weights.

    Args:
        home: the folder; created on first write. `sha256/` has the files, `parts/` unfinished downloads,
            `pins.jsonl` the recorded hashes, `verified/` the inode, size and times of hashed files.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or home_folder()).absolute()
        self.files, self.parts, self.locks = self.home / "sha256", self.home / "parts", self.home / "locks"
        self.converted, self.verified = self.home / "converted", self.home / "verified"
        self.record = self.home / "pins.jsonl"

    def prepare(self) -> None:
        """Create the folders; raises DownloadError if that fails."""
        try:
            for folder in (self.files, self.parts, self.locks, self.converted):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadError(
                f"{self.home}: cannot create the weight folder ({error.strerror}); set DETECTION_ZOO_HOME or"
                " --home to a folder you own"
            ) from None

    def file(self, sha256: str) -> Path:
        """The path for the file with this hash, whether or not it exists."""
        return self.files / sha256

    def part(self, spec: WeightSpec) -> Path:
        """The path of the unfinished download of this file."""
        return self.parts / f"{self._short(spec)}.part"

    def _short(self, spec: WeightSpec) -> str:
        return hashlib.sha256((spec.sha256 or spec_key(spec)).encode()).hexdigest()[:24]

    def pins(self) -> dict[str, Pin]:
        """Recorded hashes by key; a later line replaces an earlier one, and a line with an empty hash removes
        it."""
        pins: dict[str, Pin] = {}
        for number, line in enumerate(self._lines(), start=1):
            try:
                pin = Pin(**json.loads(line))
            except (ValueError, TypeError):
                raise DownloadError(
                    f"{self.record}: line {number} is not a record of a hash; remove the line"
                ) from None
            if pin.sha256:
                pins[pin.key] = pin
            else:
                pins.pop(pin.key, None)
        return pins

    def _lines(self) -> list[str]:
        if not os.path.lexists(self.record):
            return []
        if self.record.is_symlink() or not self.record.is_file():
            raise DownloadError(f"{self.record}: not a regular file; remove it and run again")
        text = self.record.read_text(encoding="utf-8")
        # an incomplete last line was written by a killed process: it is ignored
        return text[: text.rfind("\n") + 1].splitlines()

    def pin_of(self, spec: WeightSpec, pins: dict[str, Pin] | None = None) -> Pin | None:
        """The hash recorded for a file under any of its addresses, or none."""
        pins = self.pins() if pins is None else pins
        return next((pins[key] for key in (spec_key(spec), *spec.urls) if key in pins), None)

    def expected_sha256(self, spec: WeightSpec, pins: dict[str, Pin] | None = None) -> str | None:
        """The hash the manifest states, else the one recorded on first use, else none."""
        if spec.sha256:
            return spec.sha256
        pin = self.pin_of(spec, pins)
        return pin.sha256 if pin else None

    def find(self, spec: WeightSpec, pins: dict[str, Pin] | None = None) -> Path | None:
        """The fetched file of a row, or none. Its content was verified when it was stored; before
        reading it, call `require_sound`."""
        sha256 = self.expected_sha256(spec, pins)
        path = self.file(sha256) if sha256 else None
        return path if path and path.is_file() else None

    def digest_of(self, path: Path) -> str:
        """SHA-256 of the content of a stored file: computed once, and again after its inode, size or times
        change.

        Args:
            path: in this cache.
        """
        with path.open("rb") as file:
            before = _stamp(file.fileno())
            note = read_note(self.verified / path.name)
            if note.get("stamp") == before and isinstance(note.get("sha256"), str):
                return note["sha256"]
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if _stamp(file.fileno()) == before:
                self._write_note(path, sha256, before)
        return sha256

    def require_sound(self, path: Path, row: str) -> str:
        """The SHA-256 of a stored file, which is its name.

        Raises:
            CheckpointError: its content has changed since it was stored.
        """
        if (sha256 := self.digest_of(path)) != path.name:
            raise CheckpointError(
                f"{path}: damaged, its SHA-256 is {sha256}; run `download_weights.py verify`, then"
                f" `download_weights.py get {row}`"
            )
        return sha256

    def _write_note(self, path: Path, sha256: str, stamp: list[int]) -> None:
        try:
            self.verified.mkdir(exist_ok=True)
            with self.lock(f"verified-{path.name[:24]}"):
                write_atomic(self.verified / path.name, json.dumps({"sha256": sha256, "stamp": stamp}))
        except OSError:
            return  # read-only folder: the file is hashed again next time

    def forget(self, path: Path) -> None:
        """Remove a stored file, its verification record and its conversions."""
        for old in (path, self.verified / path.name, *self.converted.glob(f"{path.name}.*")):
            old.unlink(missing_ok=True)

    def remember(self, spec: WeightSpec, sha256: str, size_bytes: int, url: str, row: str) -> None:
        """Append the hash of a file to the record; an empty hash removes the file's record."""
        pin = Pin(
            spec_key(spec), sha256, size_bytes, url, row, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        self.prepare()
        with self.lock("pins"), open_own(self.record) as file:
            file.truncate(self.record.read_bytes().rfind(b"\n") + 1)  # removes an incomplete last line
            file.write(json.dumps(asdict(pin)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def store(self, part: Path, sha256: str) -> Path:
        """Rename a complete, verified and synced file to its hash, atomically."""
        target = self.file(sha256)
        part.chmod(0o444)
        os.replace(part, target)
        sync_folder(self.files)
        with target.open("rb") as file:  # its bytes were hashed while they were received
            self._write_note(target, sha256, _stamp(file.fileno()))
        return target

    @contextmanager
    def lock(
        self, name: str, waiting: Callable[[], None] = lambda: None, stop: threading.Event | None = None
    ) -> Iterator[None]:
        """Hold a lock between processes; the system releases it when a process dies.

        Args:
            name: what is locked.
            waiting: called once if another process has the lock.
            stop: ends the waiting, by KeyboardInterrupt.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.locks / f"{name}.lock", thread_local=False)
        timeout_s = 0.0
        while not lock.is_locked:
            try:
                lock.acquire(timeout=timeout_s, poll_interval=0.05)
            except Timeout:
                if not timeout_s:
                    waiting()
                timeout_s = 0.5
                if stop and stop.is_set():
                    raise KeyboardInterrupt from None
        try:
            yield
        finally:
            lock.release()

    def lock_file(
        self,
        spec: WeightSpec,
        waiting: Callable[[], None] = lambda: None,
        stop: threading.Event | None = None,
    ) -> AbstractContextManager[None]:
        """The lock of one weight file, as `lock`."""
        return self.lock(self._short(spec), waiting, stop)
