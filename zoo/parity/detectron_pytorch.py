"""Recompute what Detectron.pytorch's reference folders record: models from either checkpoint, ImageNet files,
and steps without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detection_zoo.zoo.conventions import AugmentationConventions, Views
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnn
from detection_zoo.zoo.detectors.tta import View, detect_augmented, make_copy
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip, step_outputs
from detection_zoo.zoo.parity.detectron_model import FORMATS, LoadedModel
from detection_zoo.zoo.parity.detectron_training import training_outputs
from detection_zoo.zoo.parity.near_ties import DetectionChoices, ProposalChoices, settle, settle_areas
from detection_zoo.zoo.parity.settings import Note
from detection_zoo.zoo.parts.frames import Frame
from detection_zoo.zoo.parts.keypoint_head import decode_heatmaps
from detection_zoo.zoo.parts.mask_head import paste_masks
from detection_zoo.zoo.parts.proposals import Proposals, select_proposals
from detection_zoo.zoo.parts.roi_heads import StageTrunk, with_image_index
from detection_zoo.zoo.parts.rpn import by_anchor
from detection_zoo.zoo.parts.trace import trace
from detection_zoo.zoo.records import Detections

Outputs = dict[str, Output | Skip]
HEADS = {  # outputs of the fixed boxes -> path or name in the trace
    "box_pooled": "box.pooler",
    "box_feat": "box.trunk",
    "mask_pooled": "mask.pooler",
    "mask_feat": "mask.hidden",
    "mask_logits": "mask",
    "kps_pooled": "keypoint.pooler",
    "kps_feat": "keypoint.convs",
    "kps_lowres": "keypoint.low",
    "kps_heatmaps": "keypoint",
}
CONTINUOUS = 1e-5  # relative; float32 and float64 of the original differ by at most about 2e-6
SWAPPED = (
    1e-3  # a recorded float32-float64 difference above it: near ties swapped places in the original itself
)


def outputs(
    reference: Reference, entry: ModelEntry | None, dtype: str, checkpoint_format: str | None
) -> Outputs:
    """Every output of a folder, by its recorded name.

    Args:
        reference: the folder.
        entry: row to build; default: that of the configuration which the checkpoint names.
        dtype: "float32" or "float64".
        checkpoint_format: "detectron_pytorch_pth" (default) or "detectron_pkl".
    """
    if not reference.has_checkpoint:
        if any(name.startswith("anchors.") for name in reference.recorded):
            return step_outputs(reference, getattr(torch, dtype))
        from detection_zoo.zoo.parity.detectron_imagenet import imagenet_outputs

        return imagenet_outputs(reference, getattr(torch, dtype))
    kind = checkpoint_format or "detectron_pytorch_pth"
    if kind not in FORMATS:
        raise ParityError(f"{reference.folder}: --format must be one of {', '.join(FORMATS)}, not {kind!r}")
    row = entry or load_manifests().by_config(reference.description["config"])
    return _Folder(reference, row, getattr(torch, dtype), kind).outputs()


class _Folder(LoadedModel):
    """One folder of a model: every output recomputed."""

    def outputs(self) -> Outputs:
        """Every recorded output."""
        with torch.no_grad():
            self.features_and_heads("a")
            self.features_and_heads("b")
            self.detections()
            if note := self.reference.settings.notes.get("inputs.img"):
                self.image(note)
        self.computed |= training_outputs(self)
        return {name: self.judged(name, output) for name, output in self.computed.items()}

    def judged(self, name: str, output: Output | Skip) -> Output | Skip:
        """An output with the tolerance that the original's own float32-float64 difference leaves."""
        described = self.meta["outputs"].get(name, {})
        if (
            not isinstance(output, Output)
            or output.tolerance is not None
            or "float32_vs_float64" not in described
        ):
            return output
        own = described["float32_vs_float64"]
        if own is None and not name.startswith(("train.", "img", "det_vote")):
            return Skip(
                "the original's float32 and float64 runs give another number of boxes here: near ties decide"
            )
        return replace(output, tolerance=10 * own if own is not None and own > SWAPPED else CONTINUOUS)

    def add(self, prefix: str, values: Mapping[str, Any]) -> None:
        """Outputs of one input by name."""
        self.computed |= {
            f"{prefix}.{name}": value if isinstance(value, Output) else Output(value)
            for name, value in values.items()
        }

    def sized(self, key: str) -> tuple[Tensor, list[tuple[float, float]]]:
        """The images of one input and the (height, width) that its proposals are clipped to."""
        note = self.reference.note("inputs", key)
        images, rows = note.tensor(self.kind), [(row[0], row[1]) for row in note.need("im_info")]
        return images, rows if len(rows) == len(images) else rows * len(images)  # one row is that of all

    def boxes_of(self, key: str, images: int) -> tuple[list[Tensor], Tensor]:
        """The fixed boxes of each image, and the index of each recorded row among them."""
        boxes = torch.tensor(self.meta["fixed_boxes"], dtype=self.kind)
        if key == "a":
            return [boxes], torch.arange(len(boxes))
        note = self.reference.note("inputs", "fixed_boxes")
        if note.need("input") != key:
            raise ParityError(f"{self.reference.folder}: inputs.fixed_boxes states no boxes of input {key}")
        numbers, owners = (torch.tensor(rows) for rows in note.need("box_numbers", "box_images"))
        places = torch.argsort(torch.argsort(owners, stable=True))
        return [boxes[numbers[owners == image]] for image in range(images)], places

    def features_and_heads(self, key: str) -> None:
        """Backbone, pyramid, proposals, and every head on the fixed boxes."""
        model = self.model
        images, sizes = self.sized(key)
        with trace(model, "backbone.stem", "backbone") as seen:
            features = model.features(images)
        values = {"res1": seen["backbone.stem"]}
        values |= {f"res{name[1:]}": value for name, value in seen["backbone"].items()}
        self.choices[key] = self.proposals(key, features, sizes)
        boxes, places = self.boxes_of(key, len(images))
        if len(features) > 1:
            values |= {f"fpn_{name}": value for name, value in features.items()}
            values["fixed_levels"] = model.box.pooler.level_indices(boxes)[places] + 2
        with trace(model, *HEADS.values(), "box.predictor") as seen:
            model.box(features, boxes)
            if isinstance(model, MaskRcnn) and f"{key}.mask_logits" in self.reference.recorded:
                model.mask(model.mask_features(features, boxes))
                seen.setdefault("mask.pooler", seen["box.pooler"])
            if isinstance(model, KeypointRcnn) and f"{key}.kps_heatmaps" in self.reference.recorded:
                model.keypoint(model.keypoint.pooler(features, boxes))
        rows = {name: seen[path][places] for name, path in HEADS.items() if path in seen}
        rows |= zip(
            ("cls_logits", "box_deltas"), (part[places] for part in seen["box.predictor"]), strict=True
        )
        if isinstance(model.box.trunk, StageTrunk):
            rows["box_feat"] = F.adaptive_avg_pool2d(rows["box_feat"], 1)
        rows["cls_probs"] = rows["cls_logits"].softmax(dim=1)
        if "mask_logits" in rows:
            rows["mask_probs"] = rows["mask_logits"].sigmoid()
        if "kps_heatmaps" in rows:
            decoded = decode_heatmaps(rows["kps_heatmaps"], torch.cat(boxes)[places])
            rows["kps_decoded"] = keypoint_rows(*decoded)
        self.add(key, values | rows)

    def proposals(self, key: str, features: dict[str, Tensor], sizes: Sequence[Any]) -> ProposalChoices:
        """Maps and proposals of each level, and those collected over levels and images; what they were chosen
        through."""
        model, levels = self.model, list(features.values())
        logits, deltas = model.rpn.head(levels)
        anchors = model.rpn.anchors(levels)
        ends = [f"_fpn{name[1:]}" if len(features) > 1 else "" for name in features]
        for end, *maps in zip(ends, logits, deltas, strict=True):
            self.add(key, {f"rpn_logits{end}": maps[0], f"rpn_deltas{end}": maps[1]})
        scores = [model.rpn.head.scores(level) for level in logits]
        flat = [by_anchor(level, 4) for level in deltas]
        choices = ProposalChoices()

        def compute() -> Outputs:
            found = self.chosen(choices, ends, scores, flat, anchors, sizes)
            return {
                name: self.judged(name, Output(value))
                for name, value in ((f"{key}.{part}", value) for part, value in found.items())
                if name in self.reference.recorded
            }

        self.computed |= settle(compute, choices, self.reference, self.dtype)
        return choices

    def chosen(
        self,
        choices: ProposalChoices,
        ends: Sequence[str],
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Any],
    ) -> dict[str, Tensor]:
        """Proposals of each level, whose names have these ends, and those that the heads get."""
        model, values = self.model, {}
        rule, pyramid = model.rpn.rules[False], len(ends) > 1
        alone = rule.model_copy(update={"collect": 0})
        for number, (end, *level) in enumerate(zip(ends, scores, deltas, anchors, strict=True)):
            parts = [[part] for part in level]
            found = choices(*parts, sizes, coder=model.rpn.coder, rule=alone, level=number)
            values[f"rpn_rois{end}"], chances = joined(found)
            values[f"rpn_probs{end}"] = chances[:, None]
        if pyramid:
            rule = rule.model_copy(update={"collect_over": "batch"})
        found = choices(scores, deltas, anchors, sizes, coder=model.rpn.coder, rule=rule)
        rois, chances = joined(found)
        if pyramid:  # the original collects over the batch by score
            rois = rois[torch.argsort(chances, descending=True, stable=True)]
            values["rois_level_counts"] = torch.bincount(
                model.box.pooler.level_indices([each.boxes for each in found]),
                minlength=len(model.box.pooler.levels),
            )
        return values | {"rois": rois}

    def detections(self) -> None:
        """The whole test path on an input that is already normalised, plain and with box voting."""
        images, sizes = self.sized("a")
        scale, *original = self.reference.note("inputs", "det").need("scale", "height", "width")
        where = Frame(tuple(int(n) for n in sizes[0]), tuple(original), (1 / scale, 1 / scale))
        self.model.rpn.select = self.choices["a"]
        raw = self.model.raw(images, torch.tensor([where.size]))
        self.model.rpn.select = select_proposals
        self.report("det", raw, where)
        if vote := self.reference.settings.notes.get("inputs.det_vote"):
            voting = vote.need("vote_iou")
            plain, self.model.detection_rule = (
                self.model.detection_rule,
                self.model.detection_rule.model_copy(update={"vote_iou": voting, "vote_method": "id"}),
            )
            self.report("det_vote", raw, where)
            self.model.detection_rule = plain

    def report(self, name: str, raw: Any, where: Frame) -> None:
        """Detections by falling score, with masks or keypoints."""
        model = self.model
        choices = DetectionChoices(model.choose, model.coder.offset, model.detection_rule)
        scored = model.scored_boxes(raw, [where])[0]

        def compute() -> Outputs:
            choices.start()
            found = by_score(model.in_original(choices(*scored), where))
            values = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels + 1}
            return {
                f"{name}.{part}": self.judged(f"{name}.{part}", Output(value))
                for part, value in values.items()
            }

        settled = settle(compute, choices, self.reference, self.dtype)
        choices.start()
        model.choose = choices
        with trace(model) as seen:
            found = model.finish(raw, [where])[0]
        del model.choose
        if isinstance(model, MaskRcnn):
            found = replace(found, extra={**found.extra, "mask_probabilities": seen["mask.probabilities"]})
        self.describe(name, found)
        self.computed |= settled

    def describe(self, name: str, found: Detections) -> None:
        """One image's detections as a folder records them."""
        found = by_score(found)
        values: dict[str, Any] = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels + 1}
        if found.masks is not None:
            values |= {
                "masks": found.masks,
                "mask_areas": self.areas(f"{name}.mask_areas", found),
                "mask_probs": found.extra["mask_probabilities"],
            }
        if found.keypoints is not None:
            places = found.keypoints[..., :2]
            values["keypoints"] = keypoint_rows(
                places, found.extra["keypoint_logits"], found.extra["keypoint_probabilities"]
            )
        self.add(name, values)

    def areas(self, name: str, found: Detections) -> Output:
        """Pixels of each mask."""
        model, chances = self.model, found.extra["mask_probabilities"].double()

        def paste(by: float) -> Tensor:
            size, threshold = tuple(found.masks.shape[1:]), model.threshold + by
            boxes, kind = found.boxes, model.interpolation
            return paste_masks(chances, boxes, size, threshold=threshold, interpolation=kind)

        own = found.masks.sum(dim=(1, 2))
        areas, note = settle_areas(paste, self.reference, name, own, (1, 2))
        return Output(areas, note=note)

    def image(self, note: Note) -> None:
        """The whole test path on the image of a note, plain and with test-time augmentation."""
        rule, sides = self.row.conventions.image, {"size": note.short, "max_size": note.longest}
        preprocess = Preprocess.from_conventions(rule.model_copy(update=sides))
        image = note.image(rule.mean)
        copy = make_copy(View(preprocess), image, torch.device("cpu"), self.kind)
        scale = 1 / copy.frame.factor[0]
        info = [[*copy.images.shape[-2:], scale]]
        self.add("img", {"data": copy.images, "im_info": info, "scale": [scale]})
        raw, compute = self.model.raw(copy.images, copy.sizes), self.model.raw
        self.report("img", raw, copy.frame)
        if augmented := self.reference.settings.notes.get("inputs.img_tta"):
            # the image itself is among the copies
            self.model.raw = lambda own, sizes: raw if torch.equal(own, copy.images) else compute(own, sizes)
            wanted = augmentation(augmented)
            self.describe("img_tta", detect_augmented(self.model, image, preprocess, wanted))
            del self.model.raw


def augmentation(note: Note) -> AugmentationConventions:
    """The options of test-time augmentation that a note states."""
    views = Views(
        flip=note.flip,
        scales=note.scales or [],
        max_size=note.max_size or 4000,
        scale_flip=note.scale_flip,
        aspect_ratios=note.aspect_ratios or [],
        aspect_flip=note.aspect_flip,
    )
    kinds = {"boxes": note.augment_boxes, "masks": note.augment_masks, "keypoints": note.augment_keypoints}
    return AugmentationConventions(**{kind: views for kind, on in kinds.items() if on})


def joined(found: Sequence[Proposals]) -> tuple[Tensor, Tensor]:
    """Proposals of all images as rows (image, x1, y1, x2, y2), and their scores."""
    return with_image_index([each.boxes for each in found]), torch.cat([each.scores for each in found])


def by_score(found: Detections) -> Detections:
    """Detections by falling score."""
    return found.select(torch.argsort(found.scores, descending=True, stable=True))


def keypoint_rows(places: Tensor, logits: Tensor, chances: Tensor) -> Tensor:
    """Decoded keypoints as Detectron lays them out: (R, 4, P) rows x, y, logit, probability."""
    return torch.stack([places[..., 0], places[..., 1], logits, chances], dim=1)
