"""Read external files, without blocking on a pipe or device; flush folders. No torch."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: another kind of file has its name (a folder, a pipe, a device), or it cannot be read; a
        sentence
            about the file, without its name.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL in the name
        raise ValueError("not a valid file name") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ValueError("is a directory" if stat.S_ISDIR(mode) else "not a regular file")
    return open(descriptor, "rb")


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """The bytes of a regular file; raises as `open_regular`, and ValueError where it has more than
    `most_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most_bytes is not None and size > most_bytes:
            raise ValueError(f"{size / 2**20:.0f} MiB, more than the {most_bytes / 2**20:.0f} MiB expected")
        try:
            return file.read()
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror})") from None


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
