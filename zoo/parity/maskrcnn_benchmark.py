"""Recompute what the reference folders of maskrcnn-benchmark, of its VoVNet fork and of the VoVNet classifier
record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.build import assemble, shapes_only
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.detectors.faster_rcnn import RcnnTraining
from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnn
from detection_zoo.zoo.detectors.retinanet import RetinaNet
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip, step_outputs
from detection_zoo.zoo.parity.benchmark_batches import Batch, Tolerances, batches
from detection_zoo.zoo.parity.benchmark_settings import (
    departures,
    entry_from_settings,
    schedule_from_settings,
)
from detection_zoo.zoo.parity.near_ties import (
    Choices,
    DetectionChoices,
    ProposalChoices,
    settle,
    settle_areas,
    settle_ties,
)
from detection_zoo.zoo.parts.detections import select_detections
from detection_zoo.zoo.parts.frames import frames
from detection_zoo.zoo.parts.keypoint_head import decode_heatmaps
from detection_zoo.zoo.parts.mask_head import class_masks, paste_masks
from detection_zoo.zoo.parts.matching import BalancedSampler
from detection_zoo.zoo.parts.proposals import Proposals, select_proposals
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler
from detection_zoo.zoo.parts.trace import trace
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import BACKBONES
from detection_zoo.zoo.training.recipe import learning_rate, parameter_groups
from detection_zoo.zoo.weights.load import checkpoint_format as format_of
from detection_zoo.zoo.weights.load import copy_into, load_arrays
from detection_zoo.zoo.weights.rename import Translation

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
DETECTOR_FORMAT, CLASSIFIER_FORMAT = "maskrcnn_benchmark_pth", "vovnet_imagenet_pth"


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
        return _classifier(reference, entry, kind, checkpoint_format or CLASSIFIER_FORMAT)
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


class _Folder:
    """One detector folder: its model, loaded, and every output it records."""

    def __init__(
        self, reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint: str
    ) -> None:
        self.reference, self.meta, self.kind = reference, reference.meta, kind
        self.tolerances, self.computed = Tolerances.of(reference), {}
        row, model = self._model(entry)
        self.translation = format_of(checkpoint).translate(reference.checkpoint())
        copy_into(model, self.translation, f"stand-in checkpoint of {reference.folder} ({checkpoint})")
        self.model, self.schedule = model.to(kind).eval(), self._schedule(entry or row)
        divisor = row.conventions.image.size_divisor if row.conventions else 1
        self.batches = {
            name: replace(batch, images=batch.images.to(kind))
            for name, batch in batches(reference, divisor).items()
        }

    def _model(self, entry: ModelEntry | None) -> tuple[ModelEntry, nn.Module]:
        """The row's model; where no row fits the recorded settings, the model that these describe."""
        if not self.meta.get("settings"):
            entry = entry or entry_from_settings(self.reference)
            return entry, assemble(entry)
        recorded = entry_from_settings(self.reference)
        if entry is None:
            self.reference.notes.append(
                f"no manifest row has source_config {self.reference.config!r}: built from the recorded"
                " settings"
            )
            return recorded, assemble(recorded)
        with shapes_only():
            differing = list(departures(assemble(entry), assemble(recorded)))
        if entry.conventions is None or entry.conventions.image != recorded.conventions.image:
            differing.append("conventions.image")
        if not differing:
            return entry, assemble(entry)
        built = "built as the row is" if self.reference.asked else "built from the recorded settings"
        some = ", ".join(differing[:8]) + (f", ... ({len(differing)} in all)" if len(differing) > 8 else "")
        self.reference.notes.append(f"row {entry.name} departs from the recorded settings in {some}: {built}")
        return (entry, assemble(entry)) if self.reference.asked else (recorded, assemble(recorded))

    def _schedule(self, row: ModelEntry) -> Schedule | None:
        own = load_manifests().schedules[row.schedule] if row.schedule else None
        if not self.meta.get("settings"):
            return own
        recorded = schedule_from_settings(self.meta["settings"])
        if own is not None and own.model_copy(update={"short_sides": [], "note": None}) != recorded:
            self.reference.notes.append(
                f"schedule {row.schedule} of row {row.name} departs from the recorded solver settings, which"
                " were used"
            )
        return recorded

    def outputs(self) -> Outputs:
        with torch.no_grad():
            for name, batch in self.batches.items():
                if self._wants(f"{name}."):
                    self._inference(name, batch)
        if (training := self.meta.get("training")) and self._wants("train."):
            self._training(training)
        if optimiser := self.meta.get("optimiser"):
            self._optimiser(optimiser)
        self._anchors()
        recorded = self.reference.recorded
        return {
            name: output
            for name, output in self.computed.items()
            if name in recorded or getattr(output, "expected", None) is not None
        }

    def _wants(self, *prefixes: str) -> bool:
        """Whether anything is recorded under one of these prefixes; the rest need not be computed."""
        return any(name.startswith(prefixes) for name in self.reference.recorded)

    # ---- outputs ----

    def _map(self, name: str, value: Tensor) -> None:
        """A map or head output, and its mean over channels."""
        self.computed[name] = Output(value, self.tolerances.maps)
        if value.ndim == 4:
            self.computed[f"{name}.channel_mean"] = Output(value.mean(dim=1), self.tolerances.maps)

    def _list(self, name: str, value: Tensor, columns: str = "", moved: int = 0) -> None:
        """Rows of numbers, also by column; moved: how many rows a near tie has in the recorded order."""
        note = f"{moved} rows of nearly equal scores are in the recorded order" if moved else None
        self.computed[name] = Output(value, self.tolerances.lists, note=note)
        for i, column in enumerate(columns.split()):
            self.computed[f"{name}.{column}"] = Output(value[..., i], self.tolerances.lists, note=note)

    def _exact(self, name: str, value: Any) -> None:
        self.computed[name] = Output(value, 0.0)

    def _boxes(self, name: str, value: Tensor, moved: int = 0) -> None:
        self._list(name, value, "x1 y1 x2 y2", moved)

    # ---- inference ----

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
        self._proposals(name, batch)
        fixed = self.meta["inputs"].get("fixed_boxes")
        if fixed and fixed["on"] == name:
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
                    self._map(f"{name}.{output}", levels)
                    continue
                for i, level in enumerate(levels):
                    self._map(f"{name}.{output}.{i}", level)

    def _proposals(self, name: str, batch: Batch) -> None:
        model = self.model
        if not self._wants(f"{name}.proposals.", f"{name}.detections."):
            return
        with self._near_proposals() as choices:
            raw = model.raw(batch.images, batch.sizes)
            if self._settled(choices, lambda: self._file_proposals(name, choices.again())):
                raw = model.raw(batch.images, batch.sizes)
        scored = model.scored_boxes(raw, frames(batch.sizes, None, True))
        with self._near_detections() as choices:

            def file() -> None:
                choices.start()
                for i, each in enumerate(scored):
                    self._detections(f"{name}.detections.image{i}", choices(*each))

            self._settled(choices, file)
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
                self._list(f"{name}.detections.image{i}.keypoints", found.keypoints[order], "x y")
                self._list(
                    f"{name}.detections.image{i}.keypoint_logits", found.extra["keypoint_logits"][order]
                )

    def _file_proposals(self, name: str, found: Sequence[Proposals]) -> None:
        for i, proposals in enumerate(found):
            boxes = f"{name}.proposals.image{i}.boxes"
            order, moved = self._order(boxes, proposals.scores, proposals.boxes)
            self._boxes(boxes, proposals.boxes[order], moved)
            self._list(f"{name}.proposals.image{i}.objectness", proposals.scores[order])

    @contextmanager
    def _near_proposals(self) -> Iterator[ProposalChoices]:
        """Within the block the model's proposals are selected by the object that is given."""
        self.model.rpn.select = choices = ProposalChoices()
        try:
            yield choices
        finally:
            self.model.rpn.select = select_proposals

    @contextmanager
    def _near_detections(self) -> Iterator[DetectionChoices]:
        """Within the block the model's detections are selected by the object that is given."""
        model = self.model
        model.choose = choices = DetectionChoices(model.choose, model.coder.offset, model.detection_rule)
        try:
            yield choices
        finally:
            del model.choose

    def _settled(self, choices: Choices, file: Callable[[], None]) -> bool:
        """Keep outputs with near ties decided as recorded; returns whether any were decided otherwise."""

        def compute() -> Outputs:
            before, self.computed = self.computed, {}
            file()
            found, self.computed = self.computed, before
            return {name: output for name, output in found.items() if name in self.reference.recorded}

        self.computed |= settle(compute, choices, self.reference, str(self.kind).removeprefix("torch."))
        return bool(choices.nudges)

    def _detections(self, name: str, found: Detections) -> Tensor:
        """Detections by falling score; returns that order."""
        order, moved = self._order(f"{name}.boxes", found.scores, found.boxes)
        self._boxes(f"{name}.boxes", found.boxes[order], moved)
        self._list(f"{name}.scores", found.scores[order])
        self._exact(f"{name}.labels", found.labels[order] + 1)
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
        self._map(f"{name}.{probabilities}", masks[:, None])

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
        self._exact(f"{name}.roi.levels", pooler.level_indices(boxes))
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
            if not self._wants(f"{name}.keypoint.keypoints", f"{name}.keypoint.scores"):
                return
            places, values, _ = decode_heatmaps(heatmaps, boxes[0])
            self._list(f"{name}.keypoint.keypoints", places, "x y")
            self._list(f"{name}.keypoint.scores", values)

    # ---- training ----

    def _training(self, training: Mapping[str, Any]) -> None:
        model, batch = self.model.train(), self.batches[training["batch"]]
        targets = [parse_target(described) for described in training["targets"]]
        if not isinstance(model, RetinaNet):
            for drawn in (
                model.sampler.pick,
                model.rpn.sampler.pick,
                getattr(model, "keypoint_sampler", None),
            ):
                if isinstance(drawn, BalancedSampler):
                    drawn.draw = "first"
        if isinstance(model, RetinaNet):
            losses, names = (
                self._dense_training(batch, targets),
                {"loss_class": "loss_retina_cls", "loss_box": "loss_retina_reg"},
            )
        else:
            with self._near_proposals() as choices:
                step = model.training_step(batch.images, batch.sizes, targets)
                if self._settled(choices, lambda: self._training_proposals(choices.again(), targets)):
                    step = model.training_step(batch.images, batch.sizes, targets)
            self._sampled(step, targets)
            losses, names = (
                step.losses,
                {
                    "loss_rpn_objectness": "loss_objectness",
                    "loss_rpn_box": "loss_rpn_box_reg",
                    "loss_class": "loss_classifier",
                    "loss_box": "loss_box_reg",
                    "loss_mask": "loss_mask",
                    "loss_keypoint": "loss_kp",
                },
            )
        for name, value in losses.items():
            self._list(f"train.{names[name]}", value.reshape(1))
        torch.stack(list(losses.values())).sum().backward()
        parameters = dict(model.named_parameters())
        for ours, theirs in (*self.translation.origin.items(), *self.translation.aliases.items()):
            if ours in parameters and parameters[ours].grad is not None:
                self.computed[f"train.grad.{theirs.removeprefix('module.')}"] = Output(
                    parameters[ours].grad, self.tolerances.gradients
                )

    def _file_names(self) -> dict[str, str]:
        """Names of the model's tensors -> the source's own, the first of several, without the wrapper's
        prefix."""
        return {
            ours: theirs.removeprefix("module.")
            for ours, theirs in (self.translation.origin | self.translation.aliases).items()
        }

    def _dense_training(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        raw = self.model.raw(batch.images, batch.sizes)
        labels = [self.model.label(torch.cat(raw.anchors), target) for target in targets]
        for i, each in enumerate(labels):
            positive = torch.nonzero(each.labels > 0).squeeze(1)
            self._exact(f"train.retina.labels.image{i}", each.labels)
            self._exact(f"train.retina.positive.image{i}", positive)
            self._list(f"train.retina.targets_at_positive.image{i}", each.targets[positive], "dx dy dw dh")
        return self.model.reduce(raw, labels)

    def _training_proposals(self, found: Sequence[Proposals], targets: Sequence[Target]) -> None:
        for i, (proposals, target) in enumerate(zip(found, targets, strict=True)):
            truth, name = target.boxes.to(proposals.boxes.dtype), f"train.proposals.image{i}"
            self._boxes(f"{name}.boxes", torch.cat([proposals.boxes, truth]))
            scores = torch.cat([proposals.scores, proposals.scores.new_ones(len(truth))])
            self._list(f"{name}.objectness", scores)

    def _sampled(self, step: RcnnTraining, targets: Sequence[Target]) -> None:
        for i, (labels, sampled, target) in enumerate(zip(step.labels, step.sampled, targets, strict=True)):
            for part, value in (
                ("positive", labels.positive),
                ("negative", labels.negative),
                ("labels", labels.labels),
            ):
                self._exact(f"train.rpn.{part}.image{i}", value)
            for part, value in (
                ("positive", sampled.positive),
                ("negative", sampled.negative),
                ("labels", sampled.candidate_labels),
                ("sampled_labels", sampled.labels),
            ):
                self._exact(f"train.roi.{part}.image{i}", value)
            self._boxes(f"train.roi.sampled_boxes.image{i}", sampled.boxes)
            self._list(f"train.roi.sampled_targets.image{i}", sampled.targets, "dx dy dw dh")
            if isinstance(self.model, KeypointRcnn):
                drawn = self.model.sample_keypoints(sampled, target)
                for part, value in (
                    ("positive", drawn.positive),
                    ("negative", drawn.negative),
                    ("labels", drawn.labels),
                ):
                    self._exact(f"train.kp.{part}.image{i}", value)

    def _optimiser(self, recorded: Mapping[str, Any]) -> None:
        """Groups of parameters, frozen parameters, buffers, and rates: numbers of outputs.json."""
        names = self._file_names()
        if self.schedule is None:
            raise ParityError(
                f"{self.reference.folder}: records an optimiser, and neither settings nor a row's schedule"
                " describe it"
            )
        groups = parameter_groups(self.model, self.schedule)
        ours = {(group["lr_factor"], group["weight_decay"]): group for group in groups}
        self.computed["optimiser.groups"] = Output(len(groups), 0.0, len(recorded["groups"]))
        for i, group in enumerate(recorded["groups"]):
            own = ours.get(
                (float(group["lr_times"]), float(group["weight_decay"])), {"params": [], "names": []}
            )
            self.computed[f"optimiser.group{i}.parameters"] = Output(
                len(own["params"]), 0.0, group["parameters"]
            )
            self.computed[f"optimiser.group{i}.scalars"] = Output(
                sum(p.numel() for p in own["params"]), 0.0, group["scalars"]
            )
            missing = set(group.get("examples", [])) - {names[name] for name in own["names"]}
            self.computed[f"optimiser.group{i}.examples_missing"] = Output(len(missing), 0.0, 0)
        frozen = {
            names[name] for name, parameter in self.model.named_parameters() if not parameter.requires_grad
        }
        self.computed["optimiser.frozen_differing"] = Output(
            len(frozen ^ set(recorded["frozen_parameters"])), 0.0, 0
        )
        if "buffers_never_trained" in recorded:
            anchors = len(
                self.reference.description.get("not_filled", [])
            )  # buffers there; here they follow from the configuration
            held = sum(name in names for name, _ in self.model.named_buffers())
            self.computed["optimiser.buffers"] = Output(
                held + anchors, 0.0, recorded["buffers_never_trained"]
            )
        if rates := recorded.get("learning_rate"):
            value = [learning_rate(self.schedule, k - 1) for k in rates["iteration"]]
            self.computed["optimiser.learning_rate"] = Output(value, 1e-12, rates["lr"])

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


def parse_target(described: Mapping[str, Any]) -> Target:
    """A training target from its description: boxes, labels from 1, polygons, key points as flat lists of 3 *
    P numbers."""
    keypoints = described.get("keypoints")
    points = (
        None
        if keypoints is None
        else torch.tensor(keypoints, dtype=torch.float32).reshape(len(keypoints), -1, 3)
    )
    boxes = torch.tensor(described["boxes"], dtype=torch.float32).reshape(-1, 4)
    return Target(
        boxes, torch.tensor(described["labels"], dtype=torch.int64) - 1, described.get("polygons"), points
    )


def _classifier(
    reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint: str
) -> Outputs:
    """The VoVNet classifier, and the detector's backbone after loading the same file."""
    arrays = reference.checkpoint()
    if entry is not None:
        name, classes = entry.backbone.name, entry.classes
    else:
        name, classes = _vovnet_of(arrays), len(arrays["classifier.bias"])
    model = Classifier(BACKBONES[name](norm="batch", freeze_at=0), classes)
    where = f"stand-in checkpoint of {reference.folder} ({checkpoint})"
    load_arrays(model, arrays, checkpoint, where=where)
    body = BACKBONES[name](norm="frozen", freeze_at=0)
    loading = format_of(checkpoint).translate(arrays)
    taken = {target: array for target, array in loading.state.items() if target.startswith("backbone.")}
    report = copy_into(
        body,
        Translation({t.removeprefix("backbone."): a for t, a in taken.items()}, optional=loading.optional),
        where,
    )
    model, body = model.to(kind).eval(), body.to(kind).eval()
    advice = reference.settings.notes.get("tolerance.advice")
    tolerance = advice.need("tolerance") if advice else None
    computed: Outputs = {}
    for name, batch in batches(reference, 1).items():
        with torch.no_grad():
            values = _classifier_values(model, body, batch.images.to(kind))
        for part, value in values.items():
            computed[f"{name}.{part}"] = Output(value, tolerance)
            if value.ndim == 4:
                computed[f"{name}.{part}.channel_mean"] = Output(value.mean(dim=1), tolerance)
    if described := reference.meta.get("detector_loading"):
        numbers = {
            "tensors_taken": len(report.matched),
            "of_detector_body": len(body.state_dict()),
            "count_not_taken": len(arrays) - len(report.matched),
        }
        computed |= {
            f"detector_loading.{key}": Output(value, 0.0, described[key])
            for key, value in numbers.items()
            if key in described
        }
    return {
        name: out
        for name, out in computed.items()
        if name in reference.recorded or getattr(out, "expected", None) is not None
    }


def _classifier_values(model: Classifier, body: Backbone, images: Tensor) -> dict[str, Tensor]:
    values = {"stem": model.backbone.stem(images)}
    values |= {f"stage{name.removeprefix('c')}": value for name, value in model.backbone(images).items()}
    values |= {f"detector_body.{i}": value for i, value in enumerate(body(images).values())}
    return values | {"pooled": model.pooled(images), "logits": model(images)}


def _vovnet_of(arrays: Mapping[str, Any]) -> str:
    """The registered VoVNet whose tensors have the names and shapes of a classifier's file."""
    wanted = {name: array.shape for name, array in arrays.items() if name.endswith("conv.weight")}
    for name in BACKBONES:
        if name.startswith("vovnet"):
            with shapes_only():
                model = Classifier(BACKBONES[name](norm="batch"), len(arrays["classifier.bias"]))
            state = format_of(CLASSIFIER_FORMAT).translate({file: arrays[file] for file in wanted}).state
            shapes = {
                key: tuple(value.shape)
                for key, value in model.state_dict().items()
                if key.endswith("conv.weight")
            }
            if shapes == {key: tuple(value.shape) for key, value in state.items()}:
                return name
    raise ParityError("no registered VoVNet has the names and shapes of this classifier's tensors")
