"""Kinds of exported files: their suffixes, and the packages that write and run them. No torch."""

SUFFIXES = {"torch-export": ".pt2", "onnx": ".onnx", "openvino": ".xml", "tensorrt-onnx": ".onnx"}
_ONNX = ("onnx", "onnxscript", "onnxruntime")
PACKAGES = {"torch-export": (), "onnx": _ONNX, "openvino": (*_ONNX, "openvino"), "tensorrt-onnx": _ONNX}
INT8_PACKAGES = (*PACKAGES["openvino"], "nncf")
ENGINE_PACKAGES = {"onnxruntime": _ONNX, "openvino": PACKAGES["openvino"]}
ENGINE_SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}  # of files that --path runs
ENGINE_TYPES = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}
