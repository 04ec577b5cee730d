"""Zip files, read entry by entry after a check of their layout, so that all readers agree on the contents."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from detection_zoo.zoo.errors import CheckpointError

LARGEST_DIRECTORY_BYTES = 8 << 20  # about 80,000 entries; the largest checkpoint of the manifests has 1,200
BLOCK_BYTES = 1 << 20
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LOCAL, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_MALFORMED = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    OverflowError,
    struct.error,
    zlib.error,
)


class ZipEntries:
    """The entries of a checked zip file. `sizes`: bytes of each by name, unpacked."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.path, self._archive = path, archive
        self._infos = {info.filename: info for info in archive.infolist()}
        self.sizes = {name: info.file_size for name, info in self._infos.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def read(self, name: str) -> bytearray:
        """The bytes of an entry, writable; the checksum is compared.

        Raises:
            CheckpointError: there is no such entry, or it is damaged.
        """
        data = bytearray(self.sizes.get(name, 0))
        start = 0
        for block in self._blocks(name):
            if start + len(block) > len(data):
                raise CheckpointError(
                    f"{self.path}: refused: entry {name!r:.100} is longer than its directory states"
                )
            data[start : start + len(block)] = block
            start += len(block)
        if start != len(data):
            raise CheckpointError(f"{self.path}: entry {name!r:.100} is cut short; fetch it again")
        return data

    def check(self, name: str) -> None:
        """Compare the checksum of an entry; raises CheckpointError as `read`."""
        for _ in self._blocks(name):
            pass

    def _blocks(self, name: str) -> Iterator[bytes]:
        if name not in self._infos:
            raise CheckpointError(f"{self.path}: has no entry {name!r:.100}; is it the right file?")
        info = self._infos[name]
        if not info.CRC:  # written without a checksum
            info.CRC = None  # type: ignore[assignment]
        with malformed_zip(self.path), self._archive.open(info) as file:
            while block := file.read(BLOCK_BYTES):
                yield block


@contextmanager
def malformed_zip(path: Path) -> Iterator[None]:
    """Convert the standard library's errors about a zip file to a CheckpointError with the file's name."""
    try:
        yield
    except _MALFORMED as error:
        raise CheckpointError(
            f"{path}: refused: malformed zip file ({type(error).__name__}: {error!s:.200}); is it cut short?"
            " fetch it again"
        ) from error


@contextmanager
def zip_entries(path: Path, growth: int = 1) -> Iterator[ZipEntries]:
    """Open a zip file of the standard layout: contiguous entries with unique names, then the directory, then
    the end record.

    Args:
        path: the file.
        growth: the largest ratio of the entries' size to the file's; 1: no entry may be compressed.

    Raises:
        CheckpointError: the file is malformed; names the reason.
    """
    with path.open("rb") as file:
        with malformed_zip(path):
            directory_start, count = _directory(file, path)
            archive = zipfile.ZipFile(file)
        with archive:
            infos = archive.infolist()
            if len(infos) != count:
                raise CheckpointError(
                    f"{path}: refused: its directory lists {len(infos)} entries, its end record {count}"
                )
            _check_entries(infos, path, growth)
            with malformed_zip(path):
                _check_layout(file, infos, directory_start, path)
            yield ZipEntries(archive, path)


def _directory(file: BinaryIO, path: Path) -> tuple[int, int]:
    """Offset of the directory and number of its entries, after comparing both end records."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 22))
    end = file.read(22)
    if end[:4] != _END or end[20:] != b"\0\0":
        text = "malformed zip file: cut short, or bytes before or after its entries, which readers may"
        raise CheckpointError(f"{path}: refused: {text} understand differently; fetch it again")
    disks, first, here, count, length, start = struct.unpack("<HHHHII", end[4:20])
    end_start, values = size - 22, (disks, first, here, count, length, start)
    file.seek(max(0, size - 42))
    locator = file.read(20)
    if size >= 42 and locator[:4] == _LOCATOR_64:
        _, record_start, _ = struct.unpack("<IQI", locator[4:])
        end_start = size - 42 - 56
        file.seek(max(0, end_start))
        record = file.read(56)
        wide = struct.unpack("<IIQQQQ", record[16:]) if len(record) == 56 else ()
        small = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        agree = len(wide) == len(values) and all(
            value in pair for value, pair in zip(values, zip(wide, small, strict=True), strict=True)
        )
        if (
            record_start != end_start
            or record[:4] != _END_64
            or record[4:12] != b"\x2c" + bytes(7)
            or not agree
        ):
            raise CheckpointError(
                f"{path}: refused: a zip file with two end records that differ, which readers may understand"
                " differently"
            )
        disks, first, here, count, length, start = wide
    if disks or first or here != count or start + length != end_start:
        raise CheckpointError(
            f"{path}: refused: a zip file with bytes before or after its entries, which readers may"
            " understand differently"
        )
    if length > LARGEST_DIRECTORY_BYTES:
        raise CheckpointError(f"{path}: refused: a zip directory of {length:,} bytes, a memory bomb")
    return start, count


def _check_entries(infos: list[zipfile.ZipInfo], path: Path, growth: int) -> None:
    """Check that names are unique and have no path outside the file, and that sizes are possible."""
    size = path.stat().st_size
    names: set[str] = set()
    for info in infos:
        name = info.filename
        if name in names:
            raise CheckpointError(f"{path}: refused: a zip file with two entries of one name ({name!r:.100})")
        names.add(name)
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if info.flag_bits & 1 or not (stored or growth > 1 and info.compress_type == zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{path}: refused: entry {name!r:.100} is compressed or encrypted; this kind of file is"
                " stored plainly, this may be a zip bomb"
            )
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise CheckpointError(f"{path}: refused: entry {name!r:.100} points outside the file")
    if sum(info.file_size for info in infos) > growth * size:
        raise CheckpointError(
            f"{path}: refused: the entries are more than {growth} times as large as the file: a zip bomb"
        )


def _check_layout(file: BinaryIO, infos: list[zipfile.ZipInfo], directory_start: int, path: Path) -> None:
    """Check that entries are contiguous, with the names and compression that the directory states."""
    position = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        file.seek(info.header_offset)
        header = file.read(30)
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        flags, method = struct.unpack("<HH", header[6:10])
        name = file.read(name_bytes).decode("utf-8" if flags & 0x800 else "cp437")
        if (
            header[:4] != _LOCAL
            or info.header_offset != position
            or name != info.orig_filename
            or (flags, method) != (info.flag_bits, info.compress_type)
        ):
            raise CheckpointError(
                f"{path}: refused: entry {info.filename!r:.100} differs from the directory's record in"
                " position, name or compression; entries overlap, or the file is damaged"
            )
        position += 30 + name_bytes + extra_bytes + info.compress_size
        file.seek(position)
        if flags & 8:
            mark = file.read(4) == _DESCRIPTOR
            position += 4 * mark + (20 if _is_wide(file, info, position + 4 * mark) else 12)
    if position != directory_start:
        raise CheckpointError(f"{path}: refused: a zip file with bytes between its entries and its directory")


def _is_wide(file: BinaryIO, info: zipfile.ZipInfo, start: int) -> bool:
    """Whether the sizes after an entry's data are 8-byte numbers."""
    file.seek(start + 4)
    return file.read(16) == struct.pack("<QQ", info.compress_size, info.file_size)
