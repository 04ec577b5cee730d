"""Recompute what the reference folders of maskrcnn-benchmark, of its VoVNet fork and of the VoVNet classifier
record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnn
from detection_zoo.zoo.detectors.retinanet import RetinaNet
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.parity.base import Output, Reference, Skip, step_outputs
from detection_zoo.zoo.parity.benchmark_batches import Batch
from detection_zoo.zoo.parity.benchmark_model import LoadedModel
from detection_zoo.zoo.parity.benchmark_training import add_optimiser, add_training
from detection_zoo.zoo.parity.near_ties import DetectionChoices, settle_areas, settle_ties
from detection_zoo.zoo.parity.vovnet_imagenet import CLASSIFIER_FORMAT, imagenet_outputs
from detection_zoo.zoo.parts.detections import select_detections
from detection_zoo.zoo.parts.frames import frames
from detection_zoo.zoo.parts.keypoint_head import decode_heatmaps
from detection_zoo.zoo.parts.mask_head import class_masks, paste_masks
from detection_zoo.zoo.parts.proposals import Proposals
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler
from detection_zoo.zoo.parts.trace import trace
from detection_zoo.zoo.records import Detections

Outputs = dict[str, Output | Skip]
# of scores: the most is twice what an instruction set and number of threads moved a score by, beside double
# precision (9.8e-6: V-39 with SSE41 and two threads)
GAPS = (2e-6, 2e-5)
# outputs of an input -> path of the module that computes them
STAGES = {
    "stem": "backbone.stem",
    "fpn": "neck",
    "rpn.logits|rpn.deltas": "rpn.head",
    "retina.logits|retina.deltas": "head",
}
ROIS = {
    "roi.pooled": "box.pooler",
    "roi.features": "box.trunk",
    "roi.class_logits|roi.box_deltas": "box.predictor",
}
BRANCHES = {
    "mask.features": "mask.convs",
    "mask.logits": "mask",
    "mask.pooled": "mask.pooler",
    "keypoint.pooled": "keypoint.pooler",
    "keypoint.features": "keypoint.convs",
    "keypoint.heatmaps": "keypoint",
}
DETECTOR_FORMAT = "maskrcnn_benchmark_pth"


def outputs(
    reference: Reference, entry: ModelEntry | None, dtype: str, checkpoint_format: str | None
) -> Outputs:
    """Every output of a folder, by its recorded name.

    Args:
        reference: the folder.
        entry: row to build; none: what the folder's own settings describe.
        dtype: "float32" or "float64".
        checkpoint_format: default: the source's own.
    """
    kind = getattr(torch, dtype)
    if not reference.has_checkpoint:
        return step_outputs(reference, kind)
    if any(described["name"].startswith("classifier.") for described in reference.description["tensors"]):
        return imagenet_outputs(reference, entry, kind, checkpoint_format or CLASSIFIER_FORMAT)
    return _Folder(reference, entry, kind, checkpoint_format or DETECTOR_FORMAT).outputs()


def score_gap(reference: Reference, boxes: str) -> float:
    """Scores nearer than this may change places: ten times what the original's own float32 and float64 scores
    of that list differ by (root mean square), as far as it is within `GAPS`.

    Args:
        boxes: recorded name of the boxes; the scores have the same prefix.
    """
    for name in (f"{boxes.removesuffix('boxes')}{part}" for part in ("scores", "objectness")):
        if name in reference.recorded:
            own = reference.meta["outputs"].get(name, {}).get("float64_difference", 0.0)
            scores = reference.recorded[name]["samples"].astype("float64")
            return float(np.clip(10 * own * np.sqrt(np.mean(scores**2)), *GAPS))
    return GAPS[0]


class _Folder(LoadedModel):
    """One detector folder: every output it records."""

    def outputs(self) -> Outputs:
        with torch.no_grad():
            for name, batch in self.batches.items():
                if self.records(f"{name}."):
                    self._inference(name, batch)
        if (training := self.meta.get("training")) and self.records("train."):
            add_training(self, training)
        if optimiser := self.meta.get("optimiser"):
            add_optimiser(self, optimiser)
        self._anchors()
        return self.computed

    def _inference(self, name: str, batch: Batch) -> None:
        model = self.model
        with trace(model, *STAGES.values(), "backbone") as seen:
            if isinstance(model, RetinaNet):
                raw = model.raw(batch.images, batch.sizes)
                for i, found in enumerate(model.postprocess(raw, batch.sizes)):
                    self._detections(f"{name}.detections.image{i}", found)
            else:
                features = model.features(batch.images)
                model.rpn.head(list(features.values()))
        body = {"body": "backbone" if hasattr(model.neck, "levels") else "neck"}
        self._traced(name, STAGES | body, seen)
        if isinstance(model, RetinaNet):
            return
        model.features = lambda images: features  # those of this batch
        self._proposals(name, batch)
        del model.features
        fixed = self.meta["inputs"].get("fixed_boxes")
        parts = [f"{name}.{part}." for part in ("roi", "mask", "keypoint")]
        if fixed and fixed["on"] == name and self.records(*parts):
            self._fixed_boxes(name, batch, features, fixed)

    def _traced(self, name: str, table: Mapping[str, str], seen: Mapping[str, Any]) -> None:
        """Outputs of one input from a table: output -> path in the trace, of a map, of the maps of levels, or
        of two lists, whose names the output joins by "|"."""
        for outputs, path in table.items():
            if path not in seen:
                continue
            parts = seen[path] if "|" in outputs else [seen[path]]
            for output, value in zip(outputs.split("|"), parts, strict=True):
                levels = list(value.values()) if isinstance(value, dict) else value
                if isinstance(levels, Tensor):
                    self.add_map(f"{name}.{output}", levels)
                    continue
                for i, level in enumerate(levels):
                    self.add_map(f"{name}.{output}.{i}", level)

    def _proposals(self, name: str, batch: Batch) -> None:
        model = self.model
        if not self.records(f"{name}.proposals.", f"{name}.detections."):
            return
        with self.near_proposals() as choices:
            raw = model.raw(batch.images, batch.sizes)
            moved = self.settled(choices, lambda: self._file_proposals(name, choices.again()))
            if not self.records(f"{name}.detections."):
                return
            raw = model.raw(batch.images, batch.sizes) if moved else raw
        scored = model.scored_boxes(raw, frames(batch.sizes, None, True))
        with self._near_detections() as choices:

            def file() -> None:
                choices.start()
                for i, each in enumerate(scored):
                    self._detections(f"{name}.detections.image{i}", choices(*each))

            self.settled(choices, file)
            choices.start()
            detections = model.postprocess(raw, batch.sizes)
        for i, found in enumerate(detections):
            order = self._order(f"{name}.detections.image{i}.boxes", found.scores, found.boxes)[0]
            if found.masks is not None:
                self._masks(
                    f"{name}.detections.image{i}",
                    found.masks[order],
                    found.boxes[order],
                    batch.sizes[i].tolist(),
                    "mask_probs",
                )
            if found.keypoints is not None:
                self.add_list(f"{name}.detections.image{i}.keypoints", found.keypoints[order], "x y")
                self.add_list(
                    f"{name}.detections.image{i}.keypoint_logits", found.extra["keypoint_logits"][order]
                )

    def _file_proposals(self, name: str, found: Sequence[Proposals]) -> None:
        for i, proposals in enumerate(found):
            boxes = f"{name}.proposals.image{i}.boxes"
            order, moved = self._order(boxes, proposals.scores, proposals.boxes)
            self.add_boxes(boxes, proposals.boxes[order], moved)
            self.add_list(f"{name}.proposals.image{i}.objectness", proposals.scores[order])

    @contextmanager
    def _near_detections(self) -> Iterator[DetectionChoices]:
        """Within the block the model's detections are selected by the object that is given."""
        model = self.model
        model.choose = choices = DetectionChoices(model.choose, model.coder.offset, model.detection_rule)
        try:
            yield choices
        finally:
            del model.choose

    def _detections(self, name: str, found: Detections) -> Tensor:
        """Detections by falling score; returns that order."""
        order, moved = self._order(f"{name}.boxes", found.scores, found.boxes)
        self.add_boxes(f"{name}.boxes", found.boxes[order], moved)
        self.add_list(f"{name}.scores", found.scores[order])
        self.add_exact(f"{name}.labels", found.labels[order] + 1)
        return order

    def _order(self, name: str, scores: Tensor, boxes: Tensor) -> tuple[Tensor, int]:
        """Rows by falling score, and how many of them changed places: near ties in the order of the recorded
        boxes of that name, whole or by column."""
        order = scores.sort(descending=True, stable=True).indices
        recorded, columns = (
            self.reference.recorded,
            [f"{name}.{column}" for column in ("x1", "y1", "x2", "y2")],
        )
        if name in recorded and len(recorded[name]["samples"]) == 4 * int(recorded[name]["shape"][0]):
            rows = recorded[name]["samples"].reshape(-1, 4)
        elif all(column in recorded and int(recorded[column]["stride"]) == 1 for column in columns):
            rows = np.stack([recorded[column]["samples"] for column in columns], axis=1)
        else:
            return order, 0
        gap = score_gap(self.reference, name)
        settled = settle_ties(scores[order].numpy(), boxes[order].numpy(), rows, gap)
        return order[torch.from_numpy(settled)], int((settled != np.arange(len(settled))).sum())

    def _masks(
        self, name: str, masks: Tensor, boxes: Tensor, size: Sequence[int], probabilities: str
    ) -> None:
        self.add_map(f"{name}.{probabilities}", masks[:, None])

        def paste(by: float, probabilities: Tensor) -> Tensor:
            threshold, kind = self.model.threshold + by, self.model.interpolation
            area = size[0], size[1]
            return paste_masks(probabilities, boxes, area, threshold=threshold, interpolation=kind)

        pasted = paste(0.0, masks)
        for part, axis in (("row_sums", 2), ("column_sums", 1)):
            whole = f"{name}.pasted.{part}"
            near = partial(paste, probabilities=masks.double())
            sums, note = settle_areas(near, self.reference, whole, pasted.sum(dim=axis), axis)
            self.computed[whole] = Output(sums, 0.0, note=note)

    def _fixed_boxes(
        self, name: str, batch: Batch, features: dict[str, Tensor], fixed: Mapping[str, Any]
    ) -> None:
        model, boxes = self.model, [torch.tensor(fixed["xyxy"], dtype=self.kind)]
        labels, size = torch.tensor(fixed["labels"]) - 1, batch.sizes[0].tolist()
        pooler: RoiAlignPooler = model.box.pooler
        self.add_exact(f"{name}.roi.levels", pooler.level_indices(boxes))
        with trace(model, *ROIS.values(), *BRANCHES.values(), "box.pooler") as seen:
            _, logits, deltas = model.box(features, boxes)
            self._traced(name, ROIS, seen)
            if isinstance(model, MaskRcnn):
                mask_logits = model.mask(model.mask_features(features, boxes))
                pooled = {"mask.pooled": "mask.pooler" if "mask.pooler" in seen else "box.pooler"}
                self._traced(name, BRANCHES | pooled, seen)
            if isinstance(model, KeypointRcnn):
                heatmaps = model.keypoint(model.keypoint.pooler(features, boxes))
                self._traced(name, BRANCHES, seen)
        found = select_detections(
            logits, deltas, boxes, [size], coder=model.coder, rule=model.detection_rule
        )[0]
        self._detections(f"{name}.roi.detections.image0", found)
        if isinstance(model, MaskRcnn):
            masks = class_masks(mask_logits, labels).to(self.kind)
            self._masks(f"{name}.mask", masks, boxes[0], size, "probs")
        if isinstance(model, KeypointRcnn):
            if not self.records(f"{name}.keypoint.keypoints", f"{name}.keypoint.scores"):
                return
            places, values, _ = decode_heatmaps(heatmaps, boxes[0])
            self.add_list(f"{name}.keypoint.keypoints", places, "x y")
            self.add_list(f"{name}.keypoint.scores", values)

    def _anchors(self) -> None:
        """Cell anchors beside the buffers of the checkpoint."""
        generator = self.model.anchors if isinstance(self.model, RetinaNet) else self.model.rpn.anchors
        stored = {
            entry["name"]: entry["values"]
            for entry in self.reference.description.get("not_filled", [])
            if "values" in entry
        }
        for name, values in stored.items():
            level = int(name.rsplit(".", 1)[1])
            self.computed[f"checkpoint.{name.removeprefix('module.')}"] = Output(
                generator.cells()[level], 1e-7, values
            )
