"""Read checkpoints without executing code from them: Detectron and Caffe2 pickles, and every torch file
format."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.machine import Machine
from detection_zoo.zoo.weights.pickle.names import numpy_names
from detection_zoo.zoo.weights.pickle.source import Source, shown
from detection_zoo.zoo.weights.pickle.torch_legacy import (
    MAGIC_NUMBER,
    read_legacy,
    read_pickled_tensors,
    read_tar,
)
from detection_zoo.zoo.weights.pickle.torch_zip import read_zip

_MALFORMED = (
    *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError, MemoryError, RecursionError),
    *(RuntimeError, EOFError, struct.error),
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


@contextmanager
def malformed(path: Path) -> Iterator[None]:
    """Convert errors of Python, numpy or torch about a file's content to a CheckpointError that names the
    file."""
    try:
        yield
    except _MALFORMED as error:
        raise CheckpointError(
            f"{path}: refused: malformed ({type(error).__name__}: {shown(str(error))}); is it cut short?"
            " fetch it again"
        ) from error


def load_pickle(path: Path | str) -> Any:
    """The content of a pickle of numpy arrays and plain containers; Python 2 strings are read as latin1.

    Args:
        path: a Detectron or Caffe2 `.pkl`.

    Returns:
        The value, nearly always a dict; arrays are numpy's, writable and of native byte order.

    Raises:
        CheckpointError: it uses another global (named in the message), is malformed, or would take more
            memory than its size allows.
    """
    path = Path(path)
    if (kind := file_kind(path)) not in ("pickle", "unknown"):  # the oldest protocol has no signature
        raise CheckpointError(f"{path}: not a pickle ({kind}); is it the right file?")
    size = path.stat().st_size
    with malformed(path), path.open("rb") as file:
        return Machine(Source(file, size, str(path)), numpy_names()).run()


def read_torch_file(path: Path | str) -> Any:
    """The content of a torch checkpoint, on the CPU, read by our own reader.

    Args:
        path: a file of `torch.save` of any age, or a plain pickle of tensors.

    Returns:
        What was saved: containers of torch tensors, numpy arrays and scalars; a Name in place of an object
            of a plain kind (argparse.Namespace, a path, a dtype), which is not built.

    Raises:
        CheckpointError: it uses another global (named in the message), is malformed, or would take more
            memory than its size allows.
    """
    path = Path(path)
    kind = file_kind(path)
    with malformed(path):
        if kind == "torch zip":
            return read_zip(path)
        if kind == "torch tar":
            return read_tar(path)
        if kind == "pickle":
            return read_legacy(path) if _has_magic_number(path) else read_pickled_tensors(path)
    raise CheckpointError(f"{path}: not a torch checkpoint ({kind}); is it the right file?")


def read_torch_outline(path: Path) -> Any:
    """The content of a torch zip file with a TensorView in place of each tensor, whose bytes are not read;
    raises as `read_torch_file`."""
    with malformed(path):
        return read_zip(path, tensors=False)


def _has_magic_number(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\x8a\x0a" + MAGIC_NUMBER.to_bytes(10, "little") in file.read(24)
