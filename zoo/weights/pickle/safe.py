"""Read checkpoints without running a byte of them: Detectron and Caffe2 pickles, and every torch file
format."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.machine import Machine
from detection_zoo.zoo.weights.pickle.names import Storage, numpy_names, torch_names
from detection_zoo.zoo.weights.pickle.source import Budget, Source
from detection_zoo.zoo.weights.pickle.storages import storage_of
from detection_zoo.zoo.weights.pickle.torch_legacy import (
    MAGIC_NUMBER,
    read_legacy,
    read_pickled_tensors,
    read_tar,
)

MALFORMED_ZIP = (
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
)


def file_kind(path: Path) -> str:
    """What a checkpoint file is, by its first bytes: 'torch zip', 'torch tar', 'pickle', 'safetensors',
    'HTML' or 'unknown'.

    Raises:
        CheckpointError: the file is missing, empty or not a regular file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; fetch it first (download_weights.py get)")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; fetch it again")
    if head.startswith(b"PK\x03\x04"):
        return "torch zip"
    if head[257:262] == b"ustar":
        return "torch tar"
    if head.lstrip()[:1] == b"<":
        return "HTML"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    return "pickle" if head[:1] == b"\x80" or head[:1] in b"(]}c" else "unknown"


def load_pickle(path: Path | str) -> Any:
    """The content of a pickle of numpy arrays and plain containers; Python 2 strings are read as latin1.

    Args:
        path: a Detectron or Caffe2 `.pkl`.

    Returns:
        The value, nearly always a dict; arrays are numpy's, writable and of native byte order.

    Raises:
        CheckpointError: it names anything else (the message says what), is malformed, or would take more
            memory than its size allows.
    """
    path = Path(path)
    if (kind := file_kind(path)) not in ("pickle", "unknown"):  # the oldest protocol has no mark of its own
        raise CheckpointError(f"{path}: not a pickle ({kind}); is it the right file?")
    size = path.stat().st_size
    with path.open("rb") as file:
        return Machine(Source(file, size, str(path)), numpy_names()).run()


def read_torch_file(path: Path | str) -> Any:
    """The content of a torch checkpoint, on the CPU: zip files by torch with weights_only, older formats by
    our own reader.

    Args:
        path: a file of `torch.save` of any age, or a plain pickle of tensors; zip files are inspected before
            torch sees them.

    Returns:
        What was saved: containers of torch tensors, numpy arrays and scalars.

    Raises:
        CheckpointError: it names anything else (the message says what), is malformed, or would take more
            memory than its size allows.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "torch zip":
        inspect_zip(path)
        return _load_zip(path)
    if kind in ("torch tar", "pickle"):
        read = (
            read_tar
            if kind == "torch tar"
            else read_legacy
            if _has_magic_number(path)
            else read_pickled_tensors
        )
        return read(path)
    raise CheckpointError(f"{path}: not a torch checkpoint ({kind}); is it the right file?")


def _has_magic_number(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\x8a\x0a" + MAGIC_NUMBER.to_bytes(10, "little") in file.read(24)


def inspect_zip(path: Path) -> None:
    """Check a torch zip file without unpacking it: its entries, every name its pickle uses, every tensor
    inside its storage.

    Raises:
        CheckpointError: says what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _inspect_archive(archive, path)
    except MALFORMED_ZIP as error:
        raise CheckpointError(
            f"{path}: refused: malformed zip file ({type(error).__name__}: {error}); is it cut short? fetch"
            " it again"
        ) from error


def _inspect_archive(archive: zipfile.ZipFile, path: Path) -> None:
    entries = {info.filename: info for info in archive.infolist()}
    for info in archive.infolist():
        info.CRC = (
            info.CRC or None
        )  # 0: saved without checksums (torch.serialization.set_crc32_options), so there is none to compare
    for problem in _zip_problems(archive, entries, path.stat().st_size):
        raise CheckpointError(f"{path}: refused: {problem}")
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path}: refused: a zip file with {len(pickles)} data.pkl is not a torch checkpoint"
        )
    root = pickles[0].removesuffix("data.pkl")
    code = [name for name in entries if name.startswith(f"{root}code/") or name == f"{root}constants.pkl"]
    if code:
        raise CheckpointError(
            f"{path}: refused: a TorchScript archive, whose {code[0]} is program code; only tensors are read"
        )

    def persistent(machine: Machine, arguments: tuple) -> Storage:
        storage = storage_of(machine, arguments[0])
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None or entry.file_size != storage.count * storage.item_bytes:
            raise machine.refuse(
                f"storage {storage.key} of {storage.count} elements, which the file does not hold"
            )
        return storage

    label = f"{path} ({pickles[0]})"
    with archive.open(pickles[0]) as file:
        Machine(
            Source(file, entries[pickles[0]].file_size, label),
            torch_names(),
            persistent,
            Budget(path.stat().st_size, label),
        ).run()
    for name in entries:  # zipfile compares the checksum at an entry's end; torch.load does not
        with archive.open(name) as file:
            while file.read(1 << 20):
                pass


def _zip_problems(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], file_bytes: int
) -> Iterator[str]:
    infos = archive.infolist()
    if len(entries) != len(infos):
        yield "a zip file with two entries of one name"
    if archive.comment or not infos or min(info.header_offset for info in infos) != 0:
        yield "a zip file with bytes before or after its entries, which readers may understand differently"
    for info in infos:
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.compress_size != info.file_size
            or info.flag_bits & 1
        ):
            yield (
                f"entry {info.filename!r:.100} is compressed or encrypted; torch stores plainly, this may be"
                " a zip bomb"
            )
        if info.filename.startswith("/") or ".." in info.filename.split("/") or "\\" in info.filename:
            yield f"entry {info.filename!r:.100} points outside the file"
    if sum(info.file_size for info in infos) > file_bytes:
        yield "a zip file whose entries overlap: a zip bomb"


def _load_zip(path: Path) -> Any:
    import numpy as np
    import torch

    numpy_parts = [
        (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
        np._core.multiarray.scalar,
        (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        np._core.multiarray._reconstruct,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in "?bBhHiIlLefdFD"},
    ]
    try:
        with torch.serialization.safe_globals(numpy_parts):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        EOFError,
    ) as error:
        reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        raise CheckpointError(
            f"{path}: torch (weights_only) refuses the file: {reason.strip().splitlines()[0]:.200}"
        ) from None
