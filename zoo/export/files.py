"""Exported detectors as files: writing, and the comparison before a file is kept."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.export.onnx_ops import in_onnx, translations
from detection_zoo.zoo.export.runners import ENGINES
from detection_zoo.zoo.export.whole import INPUTS, WholeDetector, description, detections, exported
from detection_zoo.zoo.fast import TOLERANCES, Tolerance, found_again
from detection_zoo.zoo.parts.boxes import box_iou
from detection_zoo.zoo.records import Detections

DECODING = ("torch-export", "onnx", "openvino")  # kinds with decoded key points, of fixed sizes
NOTES = "detection_zoo"  # of a file's metadata: a JSON object
PIXELS = 2.0  # distance of key points that count as found again
LEAST = 0.05  # score of the detections that are compared; of a quantised file it is SCORE
EQUAL = TOLERANCES[torch.float32]  # that a file must keep
QUANTISED = Tolerance(1.0, 0.75, 0.15, 0.8)  # that a file of 8 bits must keep; maps are not compared


@dataclass(frozen=True)
class FileReport:
    """Comparison of a file's detections with its model's: number of the model's detections of at least a
    score, fraction found again, and of those the mean IoU, the mean difference of scores, and the fraction
    of key points within PIXELS; None without key points."""

    least: float
    bound: Tolerance
    detections: int
    share: float
    iou: float
    score: float
    points: float | None = None

    @property
    def good(self) -> bool:
        """Whether the file may be kept."""
        return min(self.share, 1.0 if self.points is None else self.points) >= self.bound.share

    def __str__(self) -> str:
        if not self.detections:
            return f"the model has no detection of score {self.least} or more to compare"
        return (
            f"{self.share:.1%} of {self.detections} detections of score {self.least} or more found again"
            f" (IoU at least {self.bound.iou}, score within {self.bound.score}): mean IoU {self.iou:.4f},"
            f" mean score difference {self.score:.4f}"
            + ("" if self.points is None else f", {self.points:.1%} of key points within {PIXELS:g} pixels")
        )


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
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations, and that dropout is off
        program = in_onnx(
            exported(whole, shape),
            custom_translation_table=translations(whole.model.num_classes, static),
            input_names=INPUTS,
            output_names=whole.outputs,
            optimize=False,
        )
    # the exporter's own optimiser takes as long as all else, and what it adds to this, engines do
    fold_constants(program.model, onnx_shape_inference=False)
    for step in (RemoveUnusedNodesPass, CommonSubexpressionEliminationPass):
        step()(program.model)
    if notes is not None:
        program.model.metadata_props[NOTES] = json.dumps(notes)
    program.save(path)


@contextmanager
def no_usage_statistics() -> Iterator[None]:
    """Within the block OpenVINO and NNCF send no usage statistics to their makers: in jobs of continuous
    integration, which CI=true states, they send none; elsewhere they do unless the user has opted out."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        os.environ.pop("CI")
        if before is not None:
            os.environ["CI"] = before


def write(model: Detector, entry: Any, kind: str, shape: Sequence[int], path: Path) -> None:
    """Write a file of one kind of kinds.SUFFIXES, with the row's description in its metadata.

    Raises:
        ValueError: the detector cannot be exported.
    """
    whole = WholeDetector(model, kind in DECODING)
    notes = description(model, entry, whole, shape)
    if kind == "torch-export":
        extra = {f"{NOTES}.json": json.dumps(notes)}
        torch.export.save(exported(whole, shape), path, extra_files=extra)
    elif kind == "openvino":
        import openvino as ov

        onnx = path.with_suffix(".onnx")
        write_onnx(whole, shape, onnx, notes)
        with no_usage_statistics():
            converted = ov.convert_model(onnx)
        converted.set_rt_info(json.dumps(notes), NOTES)
        ov.save_model(converted, path, compress_to_fp16=False)
        onnx.unlink()
    else:
        write_onnx(whole, shape, path, notes, static=kind == "tensorrt-onnx")


def runner(kind: str, path: Path) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A function that runs a file: images (N, 3, H, W) and sizes (N, 2) to its outputs."""
    if kind == "torch-export":
        import detection_zoo.kernels.nms_labelled
        import detection_zoo.kernels.nms_sorted
        import detection_zoo.zoo.parts.keypoint_head  # noqa: F401  (they register operators of the graph)

        program = torch.export.load(path).module()
        return lambda images, sizes: list(program(images, sizes))
    run = ENGINES["openvino" if kind == "openvino" else "onnxruntime"](path, torch.float32)
    return lambda images, sizes: [torch.from_numpy(each) for each in run(images.numpy(), sizes.numpy())]


def notes_of(path: Path) -> dict[str, Any]:
    """The description in the metadata of an .onnx file or of OpenVINO's .xml; empty where there is none."""
    if path.suffix == ".xml":
        import openvino as ov

        model = ov.Core().read_model(path)
        return json.loads(model.get_rt_info(NOTES).astype(str)) if model.has_rt_info(NOTES) else {}
    import onnx

    own = {each.key: each.value for each in onnx.load(path, load_external_data=False).metadata_props}
    return json.loads(own.get(NOTES, "{}"))


def digest_of_file(path: Path) -> str:
    """SHA-256 in hex of a file, and of OpenVINO's separate file of weights."""
    digest = hashlib.sha256(path.read_bytes())
    if path.suffix == ".xml":
        digest.update(path.with_suffix(".bin").read_bytes())
    return digest.hexdigest()


@torch.inference_mode()
def compare_file(
    model: Detector,
    kind: str,
    path: Path,
    batches: Sequence[tuple[Tensor, Tensor]],
    bound: Tolerance = EQUAL,
    least: float = LEAST,
) -> FileReport:
    """Run a file and its model, and compare their detections.

    Args:
        batches: images (N, 3, H, W) of the file's shape, and sizes (N, 2).
        bound: tolerance of a match. least: minimum score of the compared detections.
    """
    run, whole = runner(kind, path), WholeDetector(model, kind in DECODING)
    marks, near = [torch.zeros(0, dtype=torch.bool)], list[Tensor]()
    for images, sizes in batches:
        outputs = dict(zip(whole.outputs, run(images, sizes), strict=True))
        pairs = zip(model.predict(images, sizes), detections(model, outputs, sizes), strict=True)
        for own, other in pairs:
            marks.append(found_again(own, other, bound, least))
            near.append(_nearest(own.select(own.scores >= least), other))
    found = torch.cat(marks)
    share = float(found.float().mean()) if len(found) else 1.0
    known = torch.cat(near)[found].mean(dim=0).tolist() if found.any() else [1.0, 0.0]
    return FileReport(least, bound, len(found), share, *known)


def _nearest(own: Detections, other: Detections) -> Tensor:
    """Of each detection and the nearest other one of its class (R, 2 or 3): IoU, distance of scores, share of
    key points within PIXELS."""
    if not len(other):
        return torch.zeros(len(own), 2 if own.keypoints is None else 3)
    overlap = box_iou(own.boxes, other.boxes).where(own.labels[:, None] == other.labels, -1.0)
    iou, at = overlap.max(dim=1)
    columns = [iou, (own.scores - other.scores[at]).abs()]
    if own.keypoints is not None and other.keypoints is not None:
        apart = (own.keypoints - other.keypoints[at])[..., :2].norm(dim=2)  # (R, P)
        columns.append((apart <= PIXELS).float().mean(dim=1))
    return torch.stack(columns, dim=1)
