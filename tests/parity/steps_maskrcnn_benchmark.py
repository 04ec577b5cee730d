"""maskrcnn-benchmark's steps without a checkpoint (the folder `common_steps`), recomputed with this project's
parts.

What an output was computed from is in the settings of its own note.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.nms import nms
from detection_zoo.zoo.conventions import (
    BoxConventions,
    DetectionConventions,
    PoolingConventions,
    RpnConventions,
)
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.data.resizing import ShorterSide, resize_pixels
from detection_zoo.zoo.data.targets import mirrored_keypoints
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.faster_rcnn import box_coders
from detection_zoo.zoo.detectors.retinanet import RetinaNet, RetinaNetRules
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip
from detection_zoo.zoo.parity.settings import Note, Size
from detection_zoo.zoo.parts.anchor_targets import AnchorSampler
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou, clip_boxes, large_enough, scale_boxes
from detection_zoo.zoo.parts.detections import select_detections
from detection_zoo.zoo.parts.keypoint_head import decode_heatmaps, heatmap_targets
from detection_zoo.zoo.parts.losses import sigmoid_focal, smooth_l1_sum
from detection_zoo.zoo.parts.mask_head import paste_masks, rasterise
from detection_zoo.zoo.parts.matching import match
from detection_zoo.zoo.parts.proposals import Proposals, select_proposals
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler
from detection_zoo.zoo.parts.rpn import by_anchor
from detection_zoo.zoo.records import FeatureSpec

Outputs = dict[str, Output | Skip]
OFFSET = 1.0
COUNTS = {"two": 2, "three": 3, "four": 4}


def xyxy_to_xywh(boxes: Tensor, offset: float = 0.0) -> Tensor:
    """Corners (R, 4) to (x, y, width, height) as in COCO files, with the offset in width and height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + offset], dim=1)


def flip_boxes(boxes: Tensor, width: float, offset: float = 0.0) -> Tensor:
    """Boxes (R, 4) of a horizontally flipped image: x1' = width - offset - x2."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - offset - x2, y1, width - offset - x1, y2], dim=1)


def step_outputs(reference: Reference, kind: torch.dtype) -> Outputs:
    """Every output of the folder."""
    steps = _Steps(reference, kind)
    for part in (
        steps.anchors,
        steps.boxes,
        steps.matching,
        steps.suppression,
        steps.proposals,
        steps.detections,
        steps.pooling,
        steps.masks,
        steps.keypoints,
        steps.losses,
        steps.images,
    ):
        part()
    computed = {name: output for name, output in steps.computed.items() if name in reference.recorded}
    return computed | {
        name: Skip("an input, which other outputs are computed from")
        for name in reference.recorded
        if name.startswith("in.")
    }


def halved(first: Size, last: Size) -> list[Size]:
    """Sizes (height, width) from the first to the last, each half of the one before it, rounded up as
    convolutions of stride 2 do."""
    sizes = [first]
    while sizes[-1] != last:
        if sizes[-1] == (1, 1):
            raise ParityError(f"no halving leads from a map of {first} to one of {last}")
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _pixels(note: Note) -> np.ndarray:
    """The (H, W, 3) uint8 image of a formula of x, y and the channel."""
    y, x, c = np.meshgrid(np.arange(note.height), np.arange(note.width), np.arange(3), indexing="ij")
    value = note.across * x + note.down * y + note.channel * c + x * y % note.inner
    return (value % note.outer).astype(np.uint8)


class _Steps:
    def __init__(self, reference: Reference, kind: torch.dtype) -> None:
        self.reference, self.kind = reference, kind
        notes = reference.settings.under("outputs")
        self.notes = {name.removesuffix(".meaning"): note for name, note in notes.items()}
        advice = reference.settings.notes.get("tolerance.advice")
        self.tolerance = advice.need("tolerance") if advice else 1e-5
        self.computed: Outputs = {}
        self.bundles = load_manifests().conventions

    def note(self, name: str) -> Note:
        """The settings of one output."""
        return self.reference.note("outputs", name, "meaning")

    def named(self, prefix: str) -> dict[str, Note]:
        """Names that begin with a prefix, and their settings."""
        return {name: note for name, note in self.notes.items() if name.startswith(prefix)}

    def read(self, name: str) -> Tensor:
        value = torch.from_numpy(self.reference.whole(name))
        return value.to(self.kind) if value.is_floating_point() else value

    def close(self, name: str, value: Any, columns: str = "") -> None:
        self.computed[name] = Output(value, self.tolerance)
        for i, column in enumerate(columns.split()):
            self.computed[f"{name}.{column}"] = Output(value[..., i], self.tolerance)

    def exact(self, name: str, value: Any) -> None:
        self.computed[name] = Output(value, 0.0)

    # ---- geometry ----

    def generator(self, family: str) -> AnchorGenerator:
        """The anchors of "fpn", "c4" or "retinanet", by the conventions of this source."""
        bundle = self.bundles["maskrcnn_benchmark_c4" if family == "c4" else "maskrcnn_benchmark"]
        anchors, retina = bundle.anchors, self.bundles["maskrcnn_benchmark_retinanet"].retinanet
        if family == "c4":
            return AnchorGenerator(anchors.sizes, anchors.ratios, [16], rule=anchors.rule)
        if family == "fpn":
            return AnchorGenerator(
                [[8.0 * 2**level] for level in range(2, 7)],
                anchors.ratios,
                [2**level for level in range(2, 7)],
                rule=anchors.rule,
            )
        sizes = [
            [size * retina.octave ** (i / retina.scales_per_octave) for i in range(retina.scales_per_octave)]
            for size in retina.sizes
        ]
        return AnchorGenerator(sizes, anchors.ratios, [2**level for level in range(3, 8)], rule=anchors.rule)

    def laid(self, family: str, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        return self.generator(family)(
            [torch.zeros(1, 1, height, width, dtype=self.kind) for height, width in sizes]
        )

    def anchors(self) -> None:
        for family in ("fpn", "c4", "retinanet"):
            cells = self.generator(family).cells()
            self.close(f"anchors.cell.{family}", cells[0] if family == "c4" else torch.stack(cells))
            if not (note := self.notes.get(f"anchors.all.{family}.x1")):
                continue
            every = torch.cat(self.laid(family, note.grids))
            self.close(f"anchors.all.{family}", every, "x1 y1 x2 y2")
            size = self.note(f"anchors.visible.{family}").need("height", "width")
            straddle = None if family == "retinanet" else self.bundles["maskrcnn_benchmark"].rpn.straddle
            sampler = AnchorSampler(BoxCoder(), RpnConventions(straddle=straddle, samples=2 * len(every)))
            labels = sampler.sample(every, every[:0], size).labels
            self.exact(f"anchors.visible.{family}", torch.nonzero(labels >= 0).squeeze(1))

    def boxes(self) -> None:
        for name, note in self.named("coder.").items():
            self.close(name, self._coded(name, note))
        if note := self.notes.get("iou"):
            boxes = self.read("in.boxes.a")[: note.first]
            self.close("iou", box_iou(boxes, self.read("in.boxes.g"), OFFSET))
        if note := self.notes.get("boxes.flip"):
            boxes, resized = self.read("in.boxes.a")[: note.first], self.note("boxes.resized_xywh")
            factors = resized.new_width / resized.width, resized.new_height / resized.height
            self.close("boxes.flip", flip_boxes(boxes, note.width, OFFSET))
            self.close("boxes.clip", clip_boxes(boxes, (resized.height, resized.width), OFFSET))
            self.close("boxes.xywh", xyxy_to_xywh(boxes, OFFSET))
            self.close("boxes.resized_xywh", xyxy_to_xywh(scale_boxes(boxes, *factors), OFFSET))
            least, every = self.note("boxes.small").need("min_size"), self.read("in.boxes.a")
            self.close("boxes.small", every[large_enough(every, least, OFFSET), 0])

    def _coded(self, name: str, note: Note) -> Tensor:
        anchors, boxes = self.read("in.boxes.a"), self.read("in.boxes.g")
        if name.endswith("decode_classes"):
            deltas, count = note.tensor(self.kind), COUNTS[note.classes]
            return box_coders(BoxConventions())["box"].decode(deltas, anchors[: len(deltas)])[:, : 4 * count]
        coder = BoxCoder(note.weights)
        if name.endswith("encode"):
            return coder.encode(boxes, anchors)
        return coder.decode(note.tensor(self.kind), anchors)

    def matching(self) -> None:
        for name, note in self.named("match.").items():
            limits = note.foreground_iou, note.background_iou
            found = match(self.read("in.match.quality"), *limits, low_quality=note.low_quality)
            self.exact(name, found)

    def suppression(self) -> None:
        for name, note in self.named("nms.").items():
            if note.down_by is None:
                boxes, scores = self.read("in.nms.boxes"), self.read("in.nms.scores")
            else:
                first = [0.0, 0.0, note.width - 1.0, note.height - 1.0]
                second = [0.0, note.down_by, note.width - 1.0, note.height - 1.0 + note.down_by]
                boxes = torch.tensor([first, second], dtype=self.kind)
                scores = torch.tensor([1.0, 0.5], dtype=self.kind)
            kept = nms(boxes, scores, note.nms_iou, offset=OFFSET, inclusive=True)
            self.exact(name, kept.sort().values)

    # ---- proposals and detections ----

    def proposals(self) -> None:
        note = self.notes.get("rpn.test.image0.x1")
        if note is None:
            return
        sizes, true = note.need("grids", "true_sizes")
        logits, deltas = note.tensors(self.kind, sizes)
        inputs = (
            [by_anchor(x, 1).squeeze(2).sigmoid() for x in logits],
            [by_anchor(x, 4) for x in deltas],
            self.laid("fpn", sizes),
        )
        for group in sorted({name.split(".")[1] for name in self.named("rpn.")}):
            note, bundle = self.note(f"rpn.{group}.image0.x1"), self.bundles["maskrcnn_benchmark"]
            base = bundle.training_proposals if note.training else bundle.proposals
            limits = {name: getattr(note, name) for name in ("pre_nms", "post_nms", "collect", "min_size")}
            if note.nms_iou is not None:
                limits["nms_iou"] = note.nms_iou
            rule = base.model_copy(update=limits)
            found = select_proposals(*inputs, true, coder=BoxCoder(), rule=rule)
            for i, each in enumerate(self._with_truth(found, note)):
                self.close(f"rpn.{group}.image{i}", each.boxes, "x1 y1 x2 y2")
                self.close(f"rpn.{group}.image{i}.objectness", each.scores)

    def _with_truth(self, proposals: list[Proposals], note: Note) -> list[Proposals]:
        """With the ground truth that was appended."""
        boxes = [self.read("in.boxes.a")[first:end] for first, end in note.rows or ()]
        if not boxes:
            return proposals
        return [
            Proposals(
                torch.cat([each.boxes, truth]), torch.cat([each.scores, each.scores.new_ones(len(truth))])
            )
            for each, truth in zip(proposals, boxes, strict=True)
        ]

    def detections(self) -> None:
        for name in [name.removesuffix(".boxes") for name, note in self.notes.items() if note.max_detections]:
            note = self.note(f"{name}.boxes")
            logits, deltas = (note.tensor(self.kind, place) for place in (0, 1))
            height, width = self.note(f"in.{name}.boxes").need("height", "width")
            limits = {key: getattr(note, key) for key in ("score_threshold", "nms_iou", "max_detections")}
            found = select_detections(
                logits,
                deltas,
                [self.read(f"in.{name}.boxes")],
                [(height, width)],
                coder=box_coders(BoxConventions())["box"],
                rule=DetectionConventions(**limits),
            )[0]
            self.close(f"{name}.boxes", found.boxes)
            self.close(f"{name}.scores", found.scores)
            self.exact(f"{name}.labels", found.labels + 1)
        if note := self.notes.get("retinanet.boxes"):
            self._retinanet(note)

    def _retinanet(self, note: Note) -> None:
        logits, deltas = note.tensors(self.kind, note.grids)
        generator, bundle = self.generator("retinanet"), self.bundles["maskrcnn_benchmark_retinanet"]
        head = torch.nn.Identity()
        head.num_classes = logits[0].shape[1] // generator.per_cell
        rules = RetinaNetRules(bundle.boxes, bundle.anchors, bundle.retinanet)
        model = RetinaNet(torch.nn.Identity(), torch.nn.Identity(), head, generator, rules)
        raw = model.raw_of(logits, deltas)
        found = model.postprocess(raw, torch.tensor([[note.height, note.width]]))[0]
        order = found.scores.sort(descending=True, stable=True).indices
        self.close("retinanet.boxes", found.boxes[order])
        self.close("retinanet.scores", found.scores[order])
        self.exact("retinanet.labels", found.labels[order] + 1)

    # ---- RoIs ----

    def pooling(self) -> None:
        described = self.reference.meta.get("pool_boxes")
        if not described:
            return
        width, height = described["image_size_wh"]
        boxes = [
            torch.tensor(rows, dtype=self.kind)
            for name, rows in sorted(described.items())
            if name.startswith("image") and name != "image_size_wh"
        ]
        note = next((note for note in self.named("pool.fpn").values() if note.first_height), None)
        if note is None:
            raise ParityError(f"{self.reference.folder}: no note of pool.fpn states the maps that are pooled")
        sizes = halved((note.first_height, note.first_width), (note.last_height, note.last_width))
        features, stride = note.tensors(self.kind, sizes)[0], round(height / sizes[0][0])
        specs = {
            f"p{i + 2}": FeatureSpec(feature.shape[1], stride * 2**i) for i, feature in enumerate(features)
        }
        levels = dict(zip(specs, features, strict=True))
        self.exact("pool.levels", RoiAlignPooler(specs, PoolingConventions()).level_indices(boxes))
        for name, note in self.named("pool.").items():
            rule = PoolingConventions(size=note.pooled, sampling_ratio=note.sampling)
            read = {key: spec for key, spec in specs.items() if note.stride in (None, spec.stride)}
            self.close(name, RoiAlignPooler(read, rule)(levels, boxes))

    def masks(self) -> None:
        pasted = []
        for name, note in self.named("paste.mask").items():
            mask = note.tensor(self.kind).sigmoid()[note.place, 0]
            box = torch.tensor([note.box], dtype=self.kind)
            pasted.append(paste_masks(mask[None], box, (note.height, note.width))[0])
            self.exact(name, pasted[-1])
        if pasted:
            self.exact("paste.row_sums", torch.stack(pasted).sum(dim=2))
            self.exact("paste.column_sums", torch.stack(pasted).sum(dim=1))
        for name, note in self.named("mask_target.").items():
            polygons = self.reference.meta["mask_target_polygons"][note.place]
            self.exact(name, rasterise(polygons, note.box, note.side))

    def keypoints(self) -> None:
        if note := self.notes.get("keypoints.x"):
            boxes = torch.tensor(note.boxes, dtype=self.kind)
            places, logits, _ = decode_heatmaps(note.tensor(self.kind), boxes)
            for name, value in (("x", places[..., 0]), ("y", places[..., 1]), ("score", logits)):
                self.close(f"keypoints.{name}", value)
        if note := self.notes.get("keypoint_target.index"):
            boxes = torch.tensor(note.boxes, dtype=self.kind)
            cells, valid = heatmap_targets(self.read("in.keypoints"), boxes, note.side)
            self.exact("keypoint_target.index", cells)
            self.exact("keypoint_target.valid", valid)
        if note := self.notes.get("keypoint_flip"):
            flipped = self.read("in.keypoints").clone()
            flipped[..., 0] = note.width - OFFSET - flipped[..., 0]
            flipped = flipped[:, mirrored_keypoints(KEYPOINT_NAMES)]
            flipped[flipped[..., 2] == 0] = 0
            self.close("keypoint_flip", flipped)

    def losses(self) -> None:
        last: Tensor | None = None
        for name, note in self.named("loss.smooth_l1.").items():
            if note.arrays or last is None:  # "same, beta 1": the input of the line before
                last = note.tensor(self.kind)
            self.close(name, smooth_l1_sum(last, torch.zeros_like(last), note.beta).reshape(1))
        if note := self.notes.get("loss.focal"):
            logits, targets = note.tensor(self.kind), self.read("in.focal.targets")
            self.close("loss.focal", sigmoid_focal(logits, targets, gamma=note.gamma, alpha=note.alpha))

    # ---- pixels ----

    def images(self) -> None:
        image = self.bundles["maskrcnn_benchmark"].image
        for name in sorted({name.split(".")[1] for name in self.named("image.") if name.count(".") == 2}):
            note = self.note(f"image.{name}.size")
            pixels, sides = _pixels(note), {"size": note.short, "max_size": note.longest}
            rule = Preprocess.from_conventions(image.model_copy(update=sides))
            tensor = rule(pixels).tensor
            self.exact(f"image.{name}.size", torch.tensor([tensor.shape[2], tensor.shape[1]]))
            self.exact(
                f"image.{name}.resized",
                resize_pixels(pixels, rule.resize.plan(*pixels.shape[:2]), rule.interpolation),
            )
            for part, value in (
                ("normalised", tensor),
                ("row_means", tensor.mean(dim=2)),
                ("column_means", tensor.mean(dim=1)),
            ):
                self.close(f"image.{name}.{part}", value)
        if note := self.notes.get("image.test_sizes"):
            plans = [
                ShorterSide(note.short, note.longest, image.rounding).plan(height, width)
                for width, height in self.read("in.image_sizes").tolist()
            ]
            self.exact("image.test_sizes", torch.tensor([[plan.width, plan.height] for plan in plans]))
            divisor = self.note("image.padded_sizes").need("divisor")
            padded = [pad_batch([torch.zeros(1, plan.height, plan.width)], divisor) for plan in plans]
            self.exact(
                "image.padded_sizes", torch.tensor([[batch.shape[3], batch.shape[2]] for batch in padded])
            )
