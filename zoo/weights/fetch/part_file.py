"""A partial download: hashed while it is written, and resumable by a later process."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.weights.fetch.cache import CHUNK_BYTES, open_own, read_note, write_atomic
from detection_zoo.zoo.weights.fetch.request import Watch


class PartFile:
    """A partial download, hashed while it is written, with a record of its address and version.

    Args:
        path: the `.part` file; its state is in `.part.json` in the same folder.
        with_md5: also compute the MD5.
    """

    def __init__(self, path: Path, with_md5: bool) -> None:
        self.path, self.state_path, self.with_md5 = path, path.with_name(path.name + ".json"), with_md5
        self.file = open_own(path)  # unbuffered: received bytes survive a killed process
        self.state = read_note(self.state_path)
        self._hash_existing()

    def _hash_existing(self) -> None:
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False) if self.with_md5 else None
        self.offset, self.resumed = 0, False
        if not self.state:
            self.file.truncate(0)
        while chunk := os.pread(self.file.fileno(), CHUNK_BYTES, self.offset):
            self._update(chunk)
        self.resumed = self.offset > 0

    def _update(self, chunk: bytes) -> None:
        self.sha256.update(chunk)
        if self.md5:
            self.md5.update(chunk)
        self.offset += len(chunk)

    def restart(self, **state: Any) -> None:
        """Truncate the file and store the address and version it belongs to."""
        self.file.truncate(0)
        self.file.seek(0)
        self.offset, self.resumed, self.state = 0, False, state
        self._hash_existing()
        write_atomic(self.state_path, json.dumps(state))

    def write(self, chunk: bytes) -> None:
        """Append bytes; raises DownloadError where the disk is full."""
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise DownloadError(
                f"cannot write {self.path}: {error.strerror}; free some space and run again to resume"
            ) from None
        self._update(chunk)

    def fill(self, file: BinaryIO, watch: Watch, total: int | None, limit: int) -> None:
        """Append a whole file of at most `limit` bytes; raises KeyboardInterrupt where the watch stops it."""
        while chunk := file.read(CHUNK_BYTES):
            if watch.stop.is_set():
                raise KeyboardInterrupt
            if self.offset + len(chunk) > limit:
                raise DownloadError(f"the member unpacks to more than {limit:,} bytes: refused")
            self.write(chunk)
            watch.progress(self.offset, total)
        self.state["whole_by"] = "size"

    def close(self, sync: bool = False) -> None:
        """Close the file; with `sync`, flush it to disk first."""
        if not self.file.closed:
            if sync:
                os.fsync(self.file.fileno())
            self.file.close()

    def discard(self) -> None:
        """Remove the file and its state: its content is unusable."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Remove the state, after the file is complete or removed."""
        for path in (self.state_path, self.state_path.with_name(f".{self.state_path.name}.new")):
            path.unlink(missing_ok=True)
