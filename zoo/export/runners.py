"""Programs that run an exported file in this process: ONNX Runtime and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}  # as OpenVINO names them


def onnxruntime(path: Path, dtype: torch.dtype) -> Run:
    """ONNX Runtime on a CPU, with as many threads as torch has."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images, sizes: session.run(None, {"images": images, "sizes": sizes})


def openvino(path: Path, dtype: torch.dtype) -> Run:
    """OpenVINO on a CPU, with as many threads as torch has, in float32 or bfloat16."""
    import openvino as ov

    options = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = ov.Core().compile_model(path, "CPU", options)
    return lambda images, sizes: list(compiled({"images": images, "sizes": sizes}).values())


ENGINES = {"onnxruntime": onnxruntime, "openvino": openvino}
