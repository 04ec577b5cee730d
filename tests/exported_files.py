"""Exported networks that several tests need, made once."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.export import ExportedProgram

from detection_zoo.zoo.export import engines, files
from detection_zoo.zoo.export.whole import WholeDetector

PROGRAMS: dict[str, ExportedProgram] = {}
ONNX: dict[str, bytes] = {}


class Content(pickle.Pickler):
    """Writes tensors by their numbers, so that equal modules give equal bytes."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple, ((str(value.dtype), *value.shape, value.detach().numpy().tobytes()),)
        return NotImplemented


def digest(*given: Any) -> str:
    """Of values and modules with everything in them, weights and settings."""
    stream = io.BytesIO()
    Content(stream).dump(given)
    return hashlib.sha256(stream.getvalue()).hexdigest()


@contextmanager
def exported_once() -> Iterator[None]:
    """Within the block an equal network is exported once in this process: files of all kinds are made from
    one program, and equal ONNX files (of which OpenVINO's are made) are copies of the first."""
    exported, write_onnx = files.exported, files.write_onnx

    def program_of(whole: WholeDetector, shape: Sequence[int]) -> ExportedProgram:
        key = digest(whole, tuple(shape))
        if key not in PROGRAMS:
            PROGRAMS[key] = exported(whole, shape)
        return PROGRAMS[key]

    def write(
        whole: WholeDetector, shape: Sequence[int], path: Path, notes: Any = None, static: bool = False
    ) -> None:
        key = digest(whole, tuple(shape), notes, static)
        if key not in ONNX:
            write_onnx(whole, shape, path, notes, static)
            ONNX[key] = path.read_bytes()
        path.write_bytes(ONNX[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "exported", program_of)
        for module in (files, engines):
            patch.setattr(module, "write_onnx", write)
        yield
