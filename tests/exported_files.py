"""Exported networks that several tests need, made once."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry

from detection_zoo.zoo.export import files, onnx_ops
from detection_zoo.zoo.export.whole import WholeDetector

PROGRAMS: dict[str, ExportedProgram] = {}
ONNX: dict[tuple[int, ...], tuple[Any, Any]] = {}
TABLES = cache(onnx_ops.translations)
REGISTRY = cache(ONNXRegistry.from_torchlib)


def registry(opset_version: int) -> ONNXRegistry:
    """torch's own translations, to which every export adds; to collect them takes half a second."""
    copied = copy.copy(REGISTRY(opset_version))
    copied.functions = {target: list(known) for target, known in copied.functions.items()}
    return copied


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
    one program, and ONNX files (of which OpenVINO's are made) from one ONNX program of each kind."""
    exported, to_onnx = files.exported, torch.onnx.export

    def program_of(whole: WholeDetector, shape: Sequence[int]) -> ExportedProgram:
        key = digest(whole.model, whole.outputs, tuple(shape))
        if key not in PROGRAMS:
            PROGRAMS[key] = exported(whole, shape)
        return PROGRAMS[key]

    def onnx_of(program: Any, *, custom_translation_table: Any, **settings: Any) -> Any:
        given = program, custom_translation_table
        key = tuple(id(one) for one in given)
        if key not in ONNX:  # holds what it was made of, so that nothing else gets its id
            graph = program._graph_module
            program._graph_module = copy.deepcopy(graph)  # torch changes it
            ONNX[key] = to_onnx(program, custom_translation_table=custom_translation_table, **settings), given
            program._graph_module = graph
        made = ONNX[key][0]
        made.model.metadata_props.clear()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "exported", program_of)
        patch.setattr(files, "translations", TABLES)
        patch.setattr(torch.onnx, "export", onnx_of)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))
        yield
