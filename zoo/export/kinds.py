"""Kinds of exported files: their suffixes, and the packages that write and run them. No torch."""

from importlib.util import find_spec

SUFFIXES = {"torch-export": ".pt2", "onnx": ".onnx", "openvino": ".xml", "tensorrt-onnx": ".onnx"}
_ONNX = ("onnx", "onnxscript", "onnxruntime")
PACKAGES = {"torch-export": (), "onnx": _ONNX, "openvino": (*_ONNX, "openvino"), "tensorrt-onnx": _ONNX}
INT8_PACKAGES = (*PACKAGES["openvino"], "nncf")
ENGINE_PACKAGES = {"onnxruntime": _ONNX, "openvino": PACKAGES["openvino"]}
ENGINE_SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}  # of files that --path runs
ENGINE_TYPES = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}


def engine_problem(path: str, device: str, dtype: str) -> str | None:
    """Why this machine cannot run a path of a BenchmarkSpec on a device in a dtype; None if it can."""
    if path not in ENGINE_PACKAGES:
        return None
    if missing := [name for name in ENGINE_PACKAGES[path] if find_spec(name) is None]:
        return f"{path} needs {', '.join(missing)}: pip install 'detection-zoo[export]'"
    if device != "cpu":
        return f"{path} runs on a CPU here; choose device cpu"
    if dtype not in ENGINE_TYPES[path]:
        return f"{path} computes in {' or '.join(ENGINE_TYPES[path])} here, not {dtype}"
    return None
