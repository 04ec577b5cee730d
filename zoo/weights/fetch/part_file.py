"""A partial download: hashed while it grows, and resumable by a later process."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.weights.fetch.cache import CHUNK_BYTES, open_own, write_atomic


class PartFile:
    """A partial download, hashed while it grows, with a record of the address and version it belongs to.

    Args:
        path: the `.part` file; its state lies beside it in `.part.json`.
        with_md5: also compute the MD5.
    """

    def __init__(self, path: Path, with_md5: bool) -> None:
        self.path, self.state_path, self.with_md5 = path, path.with_name(path.name + ".json"), with_md5
        self.file = open_own(path)  # unbuffered: what came is on its way to the disk, should we be killed
        self.state: dict[str, Any] = self._read_state()
        self._hash_existing()

    def _read_state(self) -> dict[str, Any]:
        if self.state_path.is_symlink() or not self.state_path.is_file():
            return {}
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return {}
        return state if isinstance(state, dict) else {}

    def _hash_existing(self) -> None:
        self.sha256, self.md5 = (
            hashlib.sha256(),
            (hashlib.md5(usedforsecurity=False) if self.with_md5 else None),
        )
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
        """Empty the file and note what it will be a part of."""
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

    def close(self, sync: bool = False) -> None:
        """Close the file; with `sync`, after its bytes are on the disk."""
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
        """Remove the state, when the file is whole or gone."""
        for path in (self.state_path, self.state_path.with_name(f".{self.state_path.name}.new")):
            path.unlink(missing_ok=True)
