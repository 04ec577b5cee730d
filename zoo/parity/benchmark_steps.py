"""maskrcnn-benchmark's steps without a checkpoint (the folder `common_steps`), recomputed with this project's
parts.

What an output was computed from is read from its own text by `benchmark_texts`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detection_zoo.kernels.nms import nms
from detection_zoo.zoo.conventions import BoxConventions, PoolingConventions, RpnConventions
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.data.resizing import ShorterSide, resize_pixels
from detection_zoo.zoo.data.targets import mirrored_keypoints
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.faster_rcnn import box_coders
from detection_zoo.zoo.detectors.retinanet import RetinaNet, RetinaNetRules
from detection_zoo.zoo.manifest import load_manifests
from detection_zoo.zoo.parity import benchmark_texts as texts
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip
from detection_zoo.zoo.parity.prose import Text
from detection_zoo.zoo.parts.anchor_targets import AnchorSampler
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import (
    BoxCoder,
    box_iou,
    clip_boxes,
    flip_boxes,
    large_enough,
    scale_boxes,
    xyxy_to_xywh,
)
from detection_zoo.zoo.parts.keypoint_head import decode_heatmaps, heatmap_targets
from detection_zoo.zoo.parts.losses import sigmoid_focal, smooth_l1_sum
from detection_zoo.zoo.parts.mask_head import paste_masks, rasterise
from detection_zoo.zoo.parts.matching import match
from detection_zoo.zoo.parts.proposals import Proposals, select_proposals
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler, select_detections
from detection_zoo.zoo.parts.rpn import by_anchor
from detection_zoo.zoo.records import FeatureSpec

Outputs = dict[str, Output | Skip]
OFFSET = 1.0


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


class _Steps:
    def __init__(self, reference: Reference, kind: torch.dtype) -> None:
        self.reference, self.kind = reference, kind
        self.says = {name: reference.text("outputs", name, "meaning") for name in reference.meta["outputs"]}
        advice = texts.advice(reference)
        self.tolerance = advice.scan("floats {number}") if advice else 1e-5
        self.computed: Outputs = {}
        self.bundles = load_manifests().conventions

    def named(self, prefix: str) -> dict[str, Text]:
        """Names that begin with a prefix, with what is said of them."""
        return {name: text for name, text in self.says.items() if name.startswith(prefix)}

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
            if not (said := self.says.get(f"anchors.all.{family}.x1")):
                continue
            every = torch.cat(self.laid(family, texts.grids(said)))
            self.close(f"anchors.all.{family}", every, "x1 y1 x2 y2")
            size = texts.image_size(self.says[f"anchors.visible.{family}"])
            straddle = None if family == "retinanet" else self.bundles["maskrcnn_benchmark"].rpn.straddle
            sampler = AnchorSampler(BoxCoder(), RpnConventions(straddle=straddle, samples=2 * len(every)))
            labels = sampler.sample(every, every[:0], size).labels
            self.exact(f"anchors.visible.{family}", torch.nonzero(labels >= 0).squeeze(1))

    def boxes(self) -> None:
        for name, said in self.named("coder.").items():
            self.close(name, self._coded(name, said))
        if said := self.says.get("iou"):
            count = texts.first_boxes(said)
            self.close("iou", box_iou(self.read("in.boxes.a")[:count], self.read("in.boxes.g"), OFFSET))
        if said := self.says.get("boxes.flip"):
            count, width = texts.flip(said)
            boxes = self.read("in.boxes.a")[:count]
            (old_width, old_height), (new_width, new_height) = texts.resized(self.says["boxes.resized_xywh"])
            self.close("boxes.flip", flip_boxes(boxes, width, OFFSET))
            self.close("boxes.clip", clip_boxes(boxes, (old_height, old_width), OFFSET))
            self.close("boxes.xywh", xyxy_to_xywh(boxes, OFFSET))
            self.close(
                "boxes.resized_xywh",
                xyxy_to_xywh(scale_boxes(boxes, new_width / old_width, new_height / old_height), OFFSET),
            )
            least, every = texts.least_side(self.says["boxes.small"]), self.read("in.boxes.a")
            self.close("boxes.small", every[large_enough(every, least, OFFSET), 0])

    def _coded(self, name: str, said: Text) -> Tensor:
        anchors, boxes = self.read("in.boxes.a"), self.read("in.boxes.g")
        if name.endswith("decode_classes"):
            deltas, count = texts.array(said, self.kind), texts.classes(said)
            return box_coders(BoxConventions())["box"].decode(deltas, anchors[: len(deltas)])[:, : 4 * count]
        coder = BoxCoder(texts.weights(said))
        if name.endswith("encode"):
            return coder.encode(boxes, anchors)
        return coder.decode(texts.array(said, self.kind), anchors)

    def matching(self) -> None:
        for name, said in self.named("match.").items():
            quality, limits = self.read("in.match.quality"), texts.thresholds(said)
            self.exact(name, match(quality, *limits, low_quality="low-quality" in said))

    def suppression(self) -> None:
        for name, said in self.named("nms.").items():
            if re.fullmatch(r"nms\.[\d.]+", name):
                boxes, scores, threshold = (
                    self.read("in.nms.boxes"),
                    self.read("in.nms.scores"),
                    float(name.removeprefix("nms.")),
                )
            else:
                pair, threshold = texts.shifted_pair(said)
                boxes, scores = pair.to(self.kind), torch.tensor([1.0, 0.5], dtype=self.kind)
            self.exact(name, nms(boxes, scores, threshold, offset=OFFSET, inclusive=True).sort().values)

    # ---- proposals and detections ----

    def proposals(self) -> None:
        said = self.says.get("rpn.test.image0.x1")
        if said is None:
            return
        sizes, true = texts.levels(said)
        logits, deltas = texts.arrays(said, self.kind, sizes)
        inputs = (
            [by_anchor(x, 1).squeeze(2).sigmoid() for x in logits],
            [by_anchor(x, 4) for x in deltas],
            self.laid("fpn", sizes),
        )
        for group in sorted({name.split(".")[1] for name in self.named("rpn.")}):
            text, bundle = self.says[f"rpn.{group}.image0.x1"], self.bundles["maskrcnn_benchmark"]
            rule = texts.proposal_rule(text, bundle.proposals, bundle.training_proposals)
            found = select_proposals(*inputs, true, coder=BoxCoder(), rule=rule)
            for i, each in enumerate(self._with_truth(found, text)):
                self.close(f"rpn.{group}.image{i}", each.boxes, "x1 y1 x2 y2")
                self.close(f"rpn.{group}.image{i}.objectness", each.scores)

    def _with_truth(self, proposals: list[Proposals], said: Text) -> list[Proposals]:
        """With the ground truth that a text says was appended."""
        boxes = [self.read("in.boxes.a")[rows] for rows in texts.appended(said)]
        if not boxes:
            return proposals
        return [
            Proposals(
                torch.cat([each.boxes, truth]), torch.cat([each.scores, each.scores.new_ones(len(truth))])
            )
            for each, truth in zip(proposals, boxes, strict=True)
        ]

    def detections(self) -> None:
        for name in sorted({name.split(".")[0] for name in self.named("box") if re.match(r"box\d", name)}):
            said = self.says[f"{name}.boxes"]
            logits, deltas = (levels[0] for levels in texts.arrays(said, self.kind))
            width, height = texts.width_and_height(self.says[f"in.{name}.boxes"])
            found = select_detections(
                logits,
                deltas,
                [self.read(f"in.{name}.boxes")],
                [(height, width)],
                coder=box_coders(BoxConventions())["box"],
                rule=texts.detection_rule(said),
            )[0]
            self.close(f"{name}.boxes", found.boxes)
            self.close(f"{name}.scores", found.scores)
            self.exact(f"{name}.labels", found.labels + 1)
        if said := self.says.get("retinanet.boxes"):
            self._retinanet(said)

    def _retinanet(self, said: Text) -> None:
        sizes, true = texts.dense_levels(said)
        logits, deltas = texts.arrays(said, self.kind, sizes)
        generator, bundle = self.generator("retinanet"), self.bundles["maskrcnn_benchmark_retinanet"]
        head = torch.nn.Identity()
        head.num_classes = logits[0].shape[1] // generator.per_cell
        rules = RetinaNetRules(bundle.boxes, bundle.anchors, bundle.retinanet)
        model = RetinaNet(torch.nn.Identity(), torch.nn.Identity(), head, generator, rules)
        raw = model.raw_of(logits, deltas)
        found = model.postprocess(raw, torch.tensor([true]))[0]
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
        said = next((text for name, text in self.named("pool.").items() if name.startswith("pool.fpn")), None)
        if said is None:
            raise ParityError(f"{self.reference.folder}: no output pool.fpn says what the poolings read")
        sizes = texts.map_sizes(said)
        features, stride = texts.arrays(said, self.kind, sizes)[0], round(height / sizes[0][0])
        specs = {
            f"p{i + 2}": FeatureSpec(feature.shape[1], stride * 2**i) for i, feature in enumerate(features)
        }
        levels = dict(zip(specs, features, strict=True))
        for name, text in self.named("pool.").items():
            if name == "pool.levels":
                self.exact(name, RoiAlignPooler(specs, PoolingConventions()).level_indices(boxes))
            elif name.startswith("pool.fpn"):
                self.close(name, RoiAlignPooler(specs, texts.pooling(text))(levels, boxes))
            elif name.startswith("pool.c4"):
                rule, scale = texts.single_pooling(text)
                one = next(key for key, spec in specs.items() if spec.stride == scale)
                self.close(name, RoiAlignPooler({one: specs[one]}, rule)(levels, boxes))

    def masks(self) -> None:
        pasted = []
        for name, said in self.named("paste.mask").items():
            place, size, corners = texts.pasted(said)
            mask = texts.array(said, self.kind).sigmoid()[place, 0]
            box = torch.tensor([corners], dtype=self.kind)
            pasted.append(paste_masks(mask[None], box, size)[0])
            self.exact(name, pasted[-1])
        if pasted:
            self.exact("paste.row_sums", torch.stack(pasted).sum(dim=2))
            self.exact("paste.column_sums", torch.stack(pasted).sum(dim=1))
        for name, said in self.named("mask_target.").items():
            side, place, box = texts.polygon_target(said)
            self.exact(name, rasterise(self.reference.meta["mask_target_polygons"][place], box, side))

    def keypoints(self) -> None:
        if said := self.says.get("keypoints.x"):
            heatmaps, boxes = texts.array(said, self.kind), texts.boxes(said, self.kind)
            places, logits, _ = decode_heatmaps(heatmaps, boxes)
            for name, value in (("x", places[..., 0]), ("y", places[..., 1]), ("score", logits)):
                self.close(f"keypoints.{name}", value)
        if said := self.says.get("keypoint_target.index"):
            boxes, side = texts.boxes(said, self.kind), texts.heatmap_side(said)
            cells, valid = heatmap_targets(self.read("in.keypoints"), boxes, side)
            self.exact("keypoint_target.index", cells)
            self.exact("keypoint_target.valid", valid)
        if said := self.says.get("keypoint_flip"):
            width = texts.image_width(said)
            flipped = self.read("in.keypoints").clone()
            flipped[..., 0] = width - OFFSET - flipped[..., 0]
            flipped = flipped[:, mirrored_keypoints(KEYPOINT_NAMES)]
            flipped[flipped[..., 2] == 0] = 0
            self.close("keypoint_flip", flipped)

    def losses(self) -> None:
        last: Tensor | None = None
        for name, said in self.named("loss.smooth_l1.").items():
            if said.calls() or last is None:  # "same, beta 1": the input of the line before
                last = texts.array(said, self.kind)
            self.close(name, smooth_l1_sum(last, torch.zeros_like(last), texts.beta(said)).reshape(1))
        if said := self.says.get("loss.focal"):
            logits, targets = texts.array(said, self.kind), self.read("in.focal.targets")
            self.close("loss.focal", sigmoid_focal(logits, targets, **texts.focal(said)))

    # ---- pixels ----

    def images(self) -> None:
        image = self.bundles["maskrcnn_benchmark"].image
        for name in sorted({name.split(".")[1] for name in self.named("image.") if name.count(".") == 2}):
            said = self.says[f"image.{name}.size"]
            pixels, (short, longest) = texts.image(said), texts.resizing(said)
            rule = Preprocess.from_conventions(image.model_copy(update={"size": short, "max_size": longest}))
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
        if said := self.says.get("image.test_sizes"):
            short, longest = texts.resizing(said)
            plans = [
                ShorterSide(short, longest, image.rounding).plan(height, width)
                for width, height in self.read("in.image_sizes").tolist()
            ]
            self.exact("image.test_sizes", torch.tensor([[plan.width, plan.height] for plan in plans]))
            divisor = texts.divisor(self.says["image.padded_sizes"])
            padded = [pad_batch([torch.zeros(1, plan.height, plan.width)], divisor) for plan in plans]
            self.exact(
                "image.padded_sizes", torch.tensor([[batch.shape[3], batch.shape[2]] for batch in padded])
            )
