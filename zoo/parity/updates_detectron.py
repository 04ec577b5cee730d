"""Recorded updates of Detectron.pytorch: settings of its command, its inputs, losses from its own draws."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.samplers import RatioGroups
from detection_zoo.zoo.data.targets import trained_images
from detection_zoo.zoo.data.training_images import collate, training_item
from detection_zoo.zoo.data.training_loader import target_rules
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn, without_crowd
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnn
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.detectron_model import recorded_boxes
from detection_zoo.zoo.parity.schedules import flags
from detection_zoo.zoo.parity.standin import standin_model
from detection_zoo.zoo.parity.updates import Batch, Recorded, Replay
from detection_zoo.zoo.parts.anchor_targets import SampledAnchors
from detection_zoo.zoo.parts.boxes import box_iou
from detection_zoo.zoo.parts.roi_heads import box_losses
from detection_zoo.zoo.parts.targets import SampledBoxes, masks_of
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.recipe import scale_schedule

FORMAT = "detectron_pytorch_pth"
SEED = 3  # of numpy's legacy generator, just before the loop
SCHEDULE_OPTIONS = {"SOLVER.WARM_UP_ITERS": "warmup_iterations", "SOLVER.MAX_ITER": "iterations"}


def set_up(recorded: Recorded, entry: ModelEntry) -> Replay:
    """The run of a folder, from its command line."""
    command = flags(shlex.split(recorded.meta["command"]))
    options = _options(command["--set"])
    model, translation = standin_model(recorded.folder, entry, FasterRcnn, FORMAT)
    passes = _Passes(model.train(), recorded)
    return Replay(
        model,
        {theirs: ours for ours, theirs in translation.origin.items()},
        _schedule(entry, command, options),
        passes.losses,
        (passes.batch(number, entry, options) for number in range(recorded.forwards)),
        order=passes.order(entry, recorded.meta["effective"]["ims_per_batch"]),
    )


def _options(text: str) -> dict[str, Any]:
    """Options of the configuration and their values, from "NAME VALUE NAME VALUE ..."."""
    words = text.split()
    return {
        name: ast.literal_eval(value) if re.match(r"[\d(\[-]", value) else value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }


def _schedule(entry: ModelEntry, command: Mapping[str, str], options: Mapping[str, Any]) -> Schedule:
    """The row's schedule with the options of the command, scaled to its batch as the script scales it."""
    own = load_manifests().schedules[entry.schedule or ""]
    images_of_gpu = own.images_per_batch // (own.gpus or 1)
    changes = {field: options[name] for name, field in SCHEDULE_OPTIONS.items() if name in options}
    gpus = options.get("NUM_GPUS", own.gpus or 1)
    changes |= {"gpus": gpus, "images_per_batch": gpus * images_of_gpu}
    if "SOLVER.STEPS" in options:
        changes["steps"] = options["SOLVER.STEPS"][1:]
    return scale_schedule(
        own.model_copy(update=changes), int(command["--bs"]), int(command.get("--iter_size", 1))
    )


class _Passes:
    """Batches and losses of a run, pass by pass."""

    def __init__(self, model: FasterRcnn, recorded: Recorded) -> None:
        self.model, self.recorded = model, recorded
        coco = recorded.data / "coco"
        self.dataset = CocoDataset(coco / "images", coco / "annotations" / "instances_train.json")

    def batch(self, number: int, entry: ModelEntry, options: Mapping[str, Any]) -> Batch:
        """The images that were recorded for a pass, made by this project's data pipeline."""
        image = entry.conventions.image
        rules = target_rules(entry, self.dataset)
        items = []
        scales = self.recorded.array(f"im_info|{number}")[:, 2]
        for (name, flipped), scale in zip(
            self.recorded.array(f"images|{number}").tolist(), scales, strict=True
        ):
            index = self.dataset.image_ids.index(name)
            side = round(float(scale) * min(self.dataset.image_size(index)))
            resize = ShorterSide(side, options["TRAIN.MAX_SIZE"], image.rounding)
            preprocess = replace(Preprocess.from_conventions(image), resize=resize)
            items.append(training_item(self.dataset, index, preprocess, rules, flip=bool(flipped)))
        return collate(items, image.size_divisor)

    def order(self, entry: ModelEntry, batch: int) -> list[list[tuple[int, int]]]:
        """Images of each pass of the first epoch and whether they are flipped, from the original's draws."""
        indices = trained_images(self.dataset, target_rules(entry, self.dataset))
        sizes = [self.dataset.image_size(index) for index in indices]
        groups = RatioGroups(indices, sizes, batch).drawn(np.random.RandomState(SEED))
        ids = self.dataset.image_ids
        return [[(ids[each.index], int(bool(each.flip))) for each in entries] for entries in groups]

    def losses(self, number: int, batch: Batch) -> dict[str, Tensor]:
        """Every loss of a pass, from the anchors and RoIs that were drawn in it."""
        images, sizes, targets = batch
        model = self.model
        features = model.features(images)
        levels = list(features.values())
        logits, deltas = model.rpn.head(levels)
        labels = self.anchor_labels(number, levels, targets)
        losses: dict[str, Tensor] = {}
        for name, level in zip(features, model.rpn.level_losses(logits, deltas, labels), strict=True):
            losses[f"loss_rpn_cls_fpn{name[1:]}"] = level["loss_rpn_objectness"]
            losses[f"loss_rpn_bbox_fpn{name[1:]}"] = level["loss_rpn_box"]
        sampled = self.rois(number, targets)
        hidden, class_logits, box_deltas = model.box(
            features, [each.boxes for each in sampled], sizes.tolist()
        )
        box = box_losses(class_logits, box_deltas, sampled, model.box_beta)
        losses |= {"loss_cls": box["loss_class"], "loss_bbox": box["loss_box"]}
        return losses | model.branch_losses(features, sampled, targets, sizes.tolist(), hidden)

    def anchor_labels(self, number: int, levels: list[Tensor], targets: list[Target]) -> list[SampledAnchors]:
        """The recorded labels of each image's anchors, with the deltas to their nearest objects."""
        anchors = self.model.rpn.anchors(levels)
        starts = torch.tensor([0, *(len(level) for level in anchors)]).cumsum(0)
        widths = torch.tensor([level.shape[-1] for level in levels])
        every = torch.cat(anchors)
        image, level, shape, y, x, label = self.recorded.tensor(f"rpn_labels|{number}").unbind(1)
        level = level - int(next(iter(self.model.neck.specs))[1:])
        cells = self.model.rpn.anchors.per_cell
        places = starts[level] + (y * widths[level] + x) * cells + shape
        found = []
        for place, target in enumerate(targets):
            own = torch.full((len(every),), -1.0)
            own[places[image == place]] = label[image == place].float()
            boxes = without_crowd(target).boxes
            deltas = torch.zeros_like(every)
            positive = torch.nonzero(own == 1).squeeze(1)
            if len(positive):
                nearest = box_iou(every[positive], boxes, 1.0).argmax(dim=1)
                deltas[positive] = self.model.rpn.coder.encode(boxes[nearest], every[positive])
            found.append(SampledAnchors.of(own, deltas))
        return found

    def rois(self, number: int, targets: list[Target]) -> list[SampledBoxes]:
        """The recorded RoIs of each image; each one's mask is that of the object whose outline overlaps it
        most."""
        parts = (self.recorded.tensor(f"{name}|{number}") for name in ("rois", "labels", "box_targets"))
        found = recorded_boxes(*parts, len(targets))
        if not isinstance(self.model, MaskRcnn):
            return found
        for sampled, target in zip(found, targets, strict=True):
            scale = sampled.boxes.new_tensor([*target.scale, *target.scale])
            positive = torch.nonzero(sampled.labels > 0).squeeze(1)
            sampled.mask_matches = torch.full_like(sampled.labels, -1)
            sampled.mask_matches[positive] = masks_of(
                sampled.boxes[positive] / scale, target.polygons, scale, self.model.coder.offset
            )
        return found
