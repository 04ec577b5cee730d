"""Exported detectors as files: what is written, and the comparison before a file is called good."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.export.onnx_ops import OPSET, translations
from detection_zoo.zoo.export.runners import ENGINES
from detection_zoo.zoo.export.whole import INPUTS, WholeDetector, description, detections, exported
from detection_zoo.zoo.fast import TOLERANCES, found_again
from detection_zoo.zoo.records import Detections

NOTES = "detection_zoo"  # of a file's metadata: a JSON object
LEAST = 0.05  # score of the detections that are compared


def write_onnx(
    whole: WholeDetector,
    shape: Sequence[int],
    path: Path,
    notes: dict[str, Any] | None = None,
    static: bool = False,
) -> None:
    """Write an ONNX file for images of one shape (N, 3, H, W).

    Args:
        notes: for the file's metadata. static: no operator inside has a size that depends on values but
            NonMaxSuppression (TensorRT).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations, and that dropout is off
        program = torch.onnx.export(
            exported(whole, shape),
            dynamo=True,
            custom_translation_table=translations(whole.model.num_classes, static),
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=whole.outputs,
            verbose=False,
        )
    if notes is not None:
        program.model.metadata_props[NOTES] = json.dumps(notes)
    program.save(path)


def write(model: Detector, entry: Any, kind: str, shape: Sequence[int], path: Path) -> None:
    """Write a file of one kind of kinds.SUFFIXES, with the row's description in its metadata.

    Raises:
        ValueError: the detector cannot be exported.
    """
    whole = WholeDetector(model)
    notes = description(model, entry, whole, shape)
    if kind == "torch-export":
        extra = {f"{NOTES}.json": json.dumps(notes)}
        torch.export.save(exported(whole, shape), path, extra_files=extra)
    elif kind == "openvino":
        import openvino as ov

        onnx = path.with_suffix(".onnx")
        write_onnx(whole, shape, onnx, notes)
        converted = ov.convert_model(onnx)
        converted.set_rt_info(json.dumps(notes), NOTES)
        ov.save_model(converted, path, compress_to_fp16=False)
        onnx.unlink()
    else:
        write_onnx(whole, shape, path, notes, static=kind == "tensorrt-onnx")


def runner(kind: str, path: Path) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """What runs a file: images (N, 3, H, W) and sizes (N, 2) to its outputs."""
    if kind == "torch-export":
        import detection_zoo.kernels.nms_labelled
        import detection_zoo.kernels.nms_sorted  # noqa: F401  (both register operators of the graph)

        program = torch.export.load(path).module()
        return lambda images, sizes: list(program(images, sizes))
    run = ENGINES["openvino" if kind == "openvino" else "onnxruntime"](path, torch.float32)
    return lambda images, sizes: [torch.from_numpy(each) for each in run(images.numpy(), sizes.numpy())]


@torch.inference_mode()
def compare_file(
    model: Detector, kind: str, path: Path, batches: Sequence[tuple[Tensor, Tensor]]
) -> tuple[int, float]:
    """Run a file beside its model.

    Args:
        batches: images (N, 3, H, W) of the file's shape, and sizes (N, 2).
    Returns:
        How many detections of a score of at least LEAST the model has, and the share that the file has too.
    """
    run, whole = runner(kind, path), WholeDetector(model)
    pairs: list[tuple[Detections, Detections]] = []
    for images, sizes in batches:
        outputs = dict(zip(whole.outputs, run(images, sizes), strict=True))
        pairs += zip(model.predict(images, sizes), detections(model, outputs, sizes), strict=True)
    marks = torch.cat([found_again(*pair, TOLERANCES[torch.float32], LEAST) for pair in pairs])
    return len(marks), float(marks.float().mean()) if len(marks) else 1.0
