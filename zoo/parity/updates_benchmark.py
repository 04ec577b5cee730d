"""Recorded updates of maskrcnn-benchmark and its VoVNet fork: its command, inputs and draws."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.samplers import AspectPairs
from detection_zoo.zoo.data.targets import trained_images
from detection_zoo.zoo.data.training_images import collate, training_item
from detection_zoo.zoo.data.training_loader import target_rules
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn, without_crowd
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.standin import standin_model
from detection_zoo.zoo.parity.updates import Batch, Recorded, Replay
from detection_zoo.zoo.parts.anchor_targets import SampledAnchors
from detection_zoo.zoo.parts.boxes import box_iou
from detection_zoo.zoo.parts.roi_heads import box_losses
from detection_zoo.zoo.parts.targets import SampledBoxes
from detection_zoo.zoo.records import Target

FORMAT = "maskrcnn_benchmark_pth"
SEED = 7  # of torch and of Python's random, just before the loop


def set_up(recorded: Recorded, entry: ModelEntry) -> Replay:
    """The run of a folder, from its command line and solver settings."""
    options = _options(shlex.split(recorded.meta["command"]))
    model, translation = standin_model(recorded.folder, entry, FasterRcnn, FORMAT)
    passes = _Passes(model.train(), recorded)
    return Replay(
        model,
        {theirs.removeprefix("module."): ours for ours, theirs in translation.origin.items()},
        _schedule(entry, options),
        passes.losses,
        (passes.batch(number, entry, options) for number in range(recorded.forwards)),
        order=passes.order(recorded.forwards, int(options["SOLVER.IMS_PER_BATCH"]), entry),
        truth=_truth,
    )


def _options(words: list[str]) -> dict[str, str]:
    """Options of the configuration, NAME.NAME followed by a value, among the words of a command."""
    return {
        name: value for name, value in itertools.pairwise(words) if re.fullmatch(r"[A-Z]+\.[A-Z_]+", name)
    }


def _schedule(entry: ModelEntry, options: Mapping[str, str]) -> Schedule:
    """The row's schedule with the command's options; nothing is scaled to the batch."""
    fields = {
        "SOLVER.IMS_PER_BATCH": "images_per_batch",
        "SOLVER.BASE_LR": "lr",
        "SOLVER.WARMUP_ITERS": "warmup_iterations",
        "SOLVER.STEPS": "steps",
        "SOLVER.MAX_ITER": "iterations",
    }
    own = load_manifests().schedules[entry.schedule or ""]
    return own.model_copy(
        update={field: ast.literal_eval(options[name]) for name, field in fields.items() if name in options}
    )


def _truth(batch: Batch) -> dict[str, np.ndarray]:
    """Rows image, box, label from 1, without crowds."""
    rows = [
        torch.cat([torch.full((len(t.boxes), 1), float(i)), t.boxes, t.labels[:, None] + 1.0], dim=1)
        for i, t in enumerate(map(without_crowd, batch[2]))
    ]
    return {"gt": torch.cat(rows).numpy(), "image_sizes": batch[1].numpy()}


class _Passes:
    """Batches and losses of a run, pass by pass."""

    def __init__(self, model: FasterRcnn, recorded: Recorded) -> None:
        self.model, self.recorded = model, recorded
        coco = recorded.data / "coco"
        self.dataset = CocoDataset(coco / "images", coco / "annotations" / "instances_train.json")

    def batch(self, number: int, entry: ModelEntry, options: Mapping[str, str]) -> Batch:
        """The images that were recorded for a pass, made by this project's data pipeline."""
        image, rules = entry.conventions.image, target_rules(entry, self.dataset)
        (side,) = ast.literal_eval(options["INPUT.MIN_SIZE_TRAIN"])
        resize = ShorterSide(side, int(options["INPUT.MAX_SIZE_TRAIN"]), image.rounding)
        preprocess = replace(Preprocess.from_conventions(image), resize=resize)
        ids = self.dataset.image_ids
        items = [
            training_item(self.dataset, ids.index(name), preprocess, rules, flip=bool(flipped))
            for name, flipped in self.recorded.array(f"images|{number}").tolist()
        ]
        return collate(items, image.size_divisor)

    def order(self, passes: int, batch: int, entry: ModelEntry) -> list[list[tuple[int, int]]]:
        """Images of each pass and whether they are flipped, from what the original drew."""
        indices = trained_images(self.dataset, target_rules(entry, self.dataset))
        sizes = [self.dataset.image_size(index) for index in indices]
        pairs = AspectPairs(indices, sizes, batch)
        draw, found = Random(SEED), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            torch.empty((), dtype=torch.int64).random_()  # the seed that a loader gives to its workers
            while len(found) < passes:
                for entries in pairs.arranged(list(RandomSampler(range(len(indices))))):
                    found.append([])
                    for each in entries:
                        torch.randperm(4)  # the order of a colour jitter that changes nothing
                        draw.choice([0])  # of one short side
                        flip = draw.random() < 0.5
                        draw.random()  # of a vertical flip, which has no chance
                        found[-1].append((self.dataset.image_ids[each.index], int(flip)))
        return found

    def losses(self, number: int, batch: Batch) -> dict[str, Tensor]:
        """Every loss of a pass, from the anchors and proposals that were drawn in it."""
        images, sizes, targets = batch
        model, targets = self.model, [without_crowd(target) for target in targets]
        features = model.features(images)
        levels = list(features.values())
        logits, deltas = model.rpn.head(levels)
        anchors = torch.cat(model.rpn.anchors(levels))
        labels = [
            self.anchor_labels(number, place, anchors, target, size)
            for place, (target, size) in enumerate(zip(targets, sizes.tolist(), strict=True))
        ]
        sampled = [self.boxes(number, place, target) for place, target in enumerate(targets)]
        _, class_logits, box_deltas = model.box(features, [each.boxes for each in sampled], sizes.tolist())
        rpn = model.rpn.losses(logits, deltas, labels)
        box = box_losses(class_logits, box_deltas, sampled, model.box_beta)
        return {
            "loss_objectness": rpn["loss_rpn_objectness"],
            "loss_rpn_box_reg": rpn["loss_rpn_box"],
            "loss_classifier": box["loss_class"],
            "loss_box_reg": box["loss_box"],
        }

    def anchor_labels(
        self, number: int, place: int, anchors: Tensor, target: Target, size: tuple[int, int]
    ) -> SampledAnchors:
        """The labels of one image's anchors, and those that were drawn."""
        own = self.model.rpn.sampler.sample(anchors, target.boxes, size)
        positive, negative = (
            self.recorded.tensor(f"sampler0_image{place}_{part}|{number}") for part in ("pos", "neg")
        )
        return replace(own, positive=positive, negative=negative)

    def boxes(self, number: int, place: int, target: Target) -> SampledBoxes:
        """The recorded proposals of one image, with the deltas to their nearest objects."""
        boxes, labels = (self.recorded.tensor(f"{part}_image{place}|{number}") for part in ("rois", "labels"))
        coder = self.model.coder
        nearest = box_iou(target.boxes, boxes, coder.offset).argmax(dim=0)
        rows = torch.arange(len(boxes))
        targets = coder.encode(target.boxes[nearest], boxes)
        return SampledBoxes(boxes, labels, targets, nearest, rows, rows, rows, labels)
