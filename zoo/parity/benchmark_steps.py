"""maskrcnn-benchmark's steps without a checkpoint (the folder `common_steps`), recomputed with this project's
parts.

What an output was computed from is read from its own text: calls of normal_input, sizes, thresholds, boxes.
"""

from __future__ import annotations

import ast
import re
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
    ProposalConventions,
    RpnConventions,
)
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.data.targets import mirrored_keypoints
from detection_zoo.zoo.data.transforms import Preprocess, ShorterSide, resize_pixels
from detection_zoo.zoo.detectors.faster_rcnn import box_coders
from detection_zoo.zoo.detectors.retinanet import RetinaNet, RetinaNetRules
from detection_zoo.zoo.manifest import load_manifests
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip
from detection_zoo.zoo.parity.standin import normal_input
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
from detection_zoo.zoo.parts.proposals import Proposals, select_proposals
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler, select_detections
from detection_zoo.zoo.parts.rpn import by_anchor
from detection_zoo.zoo.parts.targets import match
from detection_zoo.zoo.records import FeatureSpec

Outputs = dict[str, Output | Skip]
NUMBER = r"-?\d+(?:\.\d+)?(?:/\d+)?"
_CALL = re.compile(
    r"(?:(?P<times>[\d.]+)\*)?normal_input\(\s*(?P<seed>\d+)(?P<plus>\+i)?\s*,"
    r"\s*\((?P<shape>[\dhw\s,]+)\)\s*\)(?P<shift>-[\d.]+)?"
)
OFFSET = 1.0


def number(text: str) -> float:
    """A number of a description, a fraction such as "1/9" too."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def listed_inputs(text: str, kind: torch.dtype, sizes: Sequence[Sequence[int]] = ((),)) -> list[list[Tensor]]:
    """For each call of normal_input in a text, its array of the shape it states, or one array a level where
    its seed counts up with i.

    Args:
        text: such as "2*normal_input(100+i,(2,3,h,w))"; products and shifts are taken in float32.
        sizes: (h, w) of each level.
    """
    found = []
    for call in _CALL.finditer(text):
        levels = []
        for i, size in enumerate(sizes if call["plus"] else ((),)):
            letters = dict(zip("hw", size, strict=True)) if size else {}
            shape = [int(letters.get(n.strip(), n)) for n in call["shape"].split(",") if n.strip()]
            array = np.float32(call["times"] or 1) * normal_input(
                int(call["seed"]) + i, tuple(shape)
            ) + np.float32(call["shift"] or 0)
            levels.append(torch.from_numpy(array).to(kind))
        found.append(levels)
    return found


def pairs(text: str) -> list[tuple[int, int]]:
    """Every "(a, b)" of whole numbers in a text."""
    return [(int(a), int(b)) for a, b in re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)", text)]


def halved(first: tuple[int, int], last: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes (height, width) from the first to the last, each half of the one before it, rounded up as
    convolutions of stride 2 do."""
    sizes = [first]
    while sizes[-1] != last:
        if sizes[-1] == (1, 1):
            raise ParityError(f"no halving leads from a map of {first} to one of {last}")
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def search(pattern: str, text: str) -> re.Match[str]:
    """The first match; raises ParityError where a description does not say what is needed."""
    found = re.search(pattern, text)
    if found is None:
        raise ParityError(
            f"the description {text!r} of an output does not say what it was computed from (looked for"
            f" {pattern!r})"
        )
    return found


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
        self.says = {name: described["meaning"] for name, described in reference.meta["outputs"].items()}
        advice = reference.meta.get("tolerance", {}).get("advice", "")
        stated = re.search(r"floats ([\d.]+e-\d+)", advice)
        self.tolerance = float(stated[1]) if stated else 1e-5
        self.computed: Outputs = {}
        self.bundles = load_manifests().conventions

    def named(self, prefix: str) -> dict[str, str]:
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
            every = torch.cat(self.laid(family, pairs(search(r"grids (\[.*?\])", said)[1])))
            self.close(f"anchors.all.{family}", every, "x1 y1 x2 y2")
            size = search(
                r"true image size (\d+)x(\d+) \(height x width\)", self.says[f"anchors.visible.{family}"]
            )
            straddle = None if family == "retinanet" else self.bundles["maskrcnn_benchmark"].rpn.straddle
            sampler = AnchorSampler(BoxCoder(), RpnConventions(straddle=straddle, samples=2 * len(every)))
            labels = sampler.sample(every, every[:0], (int(size[1]), int(size[2]))).labels
            self.exact(f"anchors.visible.{family}", torch.nonzero(labels >= 0).squeeze(1))

    def boxes(self) -> None:
        for name, said in self.named("coder.").items():
            self.close(name, self._coded(name, said))
        if said := self.says.get("iou"):
            count = int(search(r"in\.boxes\.a\[:(\d+)\]", said)[1])
            self.close("iou", box_iou(self.read("in.boxes.a")[:count], self.read("in.boxes.g"), OFFSET))
        if said := self.says.get("boxes.flip"):
            found = search(r"in\.boxes\.a\[:(\d+)\] in an image (\d+) wide", said)
            boxes, width = self.read("in.boxes.a")[: int(found[1])], int(found[2])
            scale = search(
                r"scaled from (\d+)x(\d+) to (\d+)x(\d+) \(w x h\)", self.says["boxes.resized_xywh"]
            )
            old_width, old_height, new_width, new_height = (int(scale[i]) for i in range(1, 5))
            self.close("boxes.flip", flip_boxes(boxes, width, OFFSET))
            self.close("boxes.clip", clip_boxes(boxes, (old_height, old_width), OFFSET))
            self.close("boxes.xywh", xyxy_to_xywh(boxes, OFFSET))
            self.close(
                "boxes.resized_xywh",
                xyxy_to_xywh(scale_boxes(boxes, new_width / old_width, new_height / old_height), OFFSET),
            )
            least = float(search(rf"sides >= ({NUMBER})", self.says["boxes.small"])[1])
            every = self.read("in.boxes.a")
            self.close("boxes.small", every[large_enough(every, least, OFFSET), 0])

    def _coded(self, name: str, said: str) -> Tensor:
        anchors, boxes = self.read("in.boxes.a"), self.read("in.boxes.g")
        if name.endswith("decode_classes"):
            deltas = listed_inputs(said, self.kind)[0][0]
            count = {"two": 2, "three": 3, "four": 4}[search(r"columns of the first (\w+) classes", said)[1]]
            return box_coders(BoxConventions())["box"].decode(deltas, anchors[: len(deltas)])[:, : 4 * count]
        weights = ast.literal_eval(search(r"weights (\([\d., ]+\))", said)[1])
        coder = BoxCoder(weights)
        return (
            coder.encode(boxes, anchors)
            if name.endswith("encode")
            else coder.decode(listed_inputs(said, self.kind)[0][0], anchors)
        )

    def matching(self) -> None:
        for name, said in self.named("match.").items():
            high, low = search(rf"matcher ({NUMBER})/({NUMBER})", said).groups()
            self.exact(
                name,
                match(
                    self.read("in.match.quality"), float(high), float(low), low_quality="low-quality" in said
                ),
            )

    def suppression(self) -> None:
        for name, said in self.named("nms.").items():
            if re.fullmatch(r"nms\.[\d.]+", name):
                boxes, scores, threshold = (
                    self.read("in.nms.boxes"),
                    self.read("in.nms.scores"),
                    float(name.removeprefix("nms.")),
                )
            else:
                found = search(rf"boxes (\d+)x(\d+) shifted by (\d+) rows.*suppressed at ({NUMBER})", said)
                width, height, rows = (int(found[i]) for i in range(1, 4))
                first = torch.tensor([0.0, 0.0, width - 1.0, height - 1.0], dtype=self.kind)
                boxes, scores = (
                    torch.stack([first, first + torch.tensor([0.0, rows, 0.0, rows], dtype=self.kind)]),
                    torch.tensor([1.0, 0.5], dtype=self.kind),
                )
                threshold = float(found[4])
            self.exact(name, nms(boxes, scores, threshold, offset=OFFSET, inclusive=True).sort().values)

    # ---- proposals and detections ----

    def proposals(self) -> None:
        said = self.says.get("rpn.test.image0.x1")
        if said is None:
            return
        limits, truth = search(r"levels .*?sizes (\[.*?\]), true sizes \(h,w\) (.*)", said).groups()
        sizes, true = pairs(limits), pairs(truth)
        logits, deltas = listed_inputs(said, self.kind, sizes)
        inputs = (
            [by_anchor(x, 1).squeeze(2).sigmoid() for x in logits],
            [by_anchor(x, 4) for x in deltas],
            self.laid("fpn", sizes),
        )
        for group in sorted({name.split(".")[1] for name in self.named("rpn.")}):
            text = self.says[f"rpn.{group}.image0.x1"]
            found = select_proposals(*inputs, true, coder=BoxCoder(), rule=self._rule(text))
            for i, each in enumerate(self._with_truth(found, text)):
                self.close(f"rpn.{group}.image{i}", each.boxes, "x1 y1 x2 y2")
                self.close(f"rpn.{group}.image{i}.objectness", each.scores)

    def _rule(self, said: str) -> ProposalConventions:
        """The limits a text states: "(pre/post/all, NMS iou, min size s)", or "pre P[ and] post Q, best R
        over BOTH | R an image, min size s"."""
        bundle = self.bundles["maskrcnn_benchmark"]
        training = "training mode" in said
        rule = bundle.training_proposals if training else bundle.proposals
        size = float(search(rf"min size ({NUMBER})", said)[1])
        if found := re.search(rf"\((\d+)/(\d+)/(\d+), NMS ({NUMBER})", said):
            return rule.model_copy(
                update={
                    "pre_nms": int(found[1]),
                    "post_nms": int(found[2]),
                    "collect": int(found[3]),
                    "nms_iou": float(found[4]),
                    "min_size": size,
                }
            )
        found = search(r"pre (\d+)(?: and|,) post (\d+).*?(?:the best (\d+) over BOTH|(\d+) an image)", said)
        return rule.model_copy(
            update={
                "pre_nms": int(found[1]),
                "post_nms": int(found[2]),
                "collect": int(found[3] or found[4]),
                "min_size": size,
            }
        )

    def _with_truth(self, proposals: list[Proposals], said: str) -> list[Proposals]:
        """The ground truth that a text says was appended: "ground truth in.boxes.a[:3] and [3:5]
        appended"."""
        if "ground truth in.boxes.a" not in said:
            return proposals
        slices = re.findall(r"\[(\d*):(\d*)\]", said)
        boxes = [self.read("in.boxes.a")[int(a or 0) : int(b) if b else None] for a, b in slices]
        return [
            Proposals(
                torch.cat([each.boxes, truth]), torch.cat([each.scores, each.scores.new_ones(len(truth))])
            )
            for each, truth in zip(proposals, boxes, strict=True)
        ]

    def detections(self) -> None:
        for name in sorted({name.split(".")[0] for name in self.named("box") if re.match(r"box\d", name)}):
            said = self.says[f"{name}.boxes"]
            logits, deltas = (levels[0] for levels in listed_inputs(said, self.kind))
            limits = search(rf"score ({NUMBER}), NMS ({NUMBER}), (\d+) an image", said)
            size = search(r"image (\d+) wide (\d+) high", self.says[f"in.{name}.boxes"])
            rule = DetectionConventions(
                score_threshold=float(limits[1]), nms_iou=float(limits[2]), max_detections=int(limits[3])
            )
            found = select_detections(
                logits,
                deltas,
                [self.read(f"in.{name}.boxes")],
                [(int(size[2]), int(size[1]))],
                coder=box_coders(BoxConventions())["box"],
                rule=rule,
            )[0]
            self.close(f"{name}.boxes", found.boxes)
            self.close(f"{name}.scores", found.scores)
            self.exact(f"{name}.labels", found.labels + 1)
        if said := self.says.get("retinanet.boxes"):
            self._retinanet(said)

    def _retinanet(self, said: str) -> None:
        sizes = pairs(search(r"levels (\[.*?\])", said)[1])
        logits, deltas = listed_inputs(said, self.kind, sizes)
        height, width = (int(n) for n in search(r"true size (\d+)x(\d+)", said).groups())
        generator, bundle = self.generator("retinanet"), self.bundles["maskrcnn_benchmark_retinanet"]
        head = torch.nn.Identity()
        head.num_classes = logits[0].shape[1] // generator.per_cell
        rules = RetinaNetRules(bundle.boxes, bundle.anchors, bundle.retinanet)
        model = RetinaNet(torch.nn.Identity(), torch.nn.Identity(), head, generator, rules)
        raw = model.raw_of(logits, deltas)
        found = model.postprocess(raw, torch.tensor([[height, width]]))[0]
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
        said = next(
            (text for name, text in self.named("pool.").items() if name.startswith("pool.fpn")),
            "nothing of pooling from a pyramid",
        )
        first, last = pairs(search(r"of sizes (.*)", said)[1])[:2]
        sizes = halved(first, last)
        features, stride = listed_inputs(said, self.kind, sizes)[0], round(height / first[0])
        specs = {
            f"p{i + 2}": FeatureSpec(feature.shape[1], stride * 2**i) for i, feature in enumerate(features)
        }
        levels = dict(zip(specs, features, strict=True))
        for name, text in self.named("pool.").items():
            if name == "pool.levels":
                self.exact(name, RoiAlignPooler(specs, PoolingConventions()).level_indices(boxes))
            elif name.startswith("pool.fpn"):
                found = search(r"to (\d+)x\d+, sampling (\d+)", text)
                rule = PoolingConventions(size=int(found[1]), sampling_ratio=int(found[2]))
                self.close(name, RoiAlignPooler(specs, rule)(levels, boxes))
            elif name.startswith("pool.c4"):
                found = search(r"pooling (\d+)x\d+, scale 1/(\d+), adaptive sampling \((\d+)\)", text)
                one = next(key for key, spec in specs.items() if spec.stride == int(found[2]))
                rule = PoolingConventions(size=int(found[1]), sampling_ratio=int(found[3]))
                self.close(name, RoiAlignPooler({one: specs[one]}, rule)(levels, boxes))

    def masks(self) -> None:
        pasted = []
        for name, said in self.named("paste.mask").items():
            mask = listed_inputs(said, self.kind)[0][0].sigmoid()[int(search(r"\)\)\)\[(\d+)\]", said)[1]), 0]
            width, height = (int(n) for n in search(r"in a (\d+)x(\d+) \(w x h\) image", said).groups())
            box = torch.tensor([ast.literal_eval(search(r"at (\[.*\])", said)[1])], dtype=self.kind)
            pasted.append(paste_masks(mask[None], box, (height, width))[0])
            self.exact(name, pasted[-1])
        if pasted:
            self.exact("paste.row_sums", torch.stack(pasted).sum(dim=2))
            self.exact("paste.column_sums", torch.stack(pasted).sum(dim=1))
        for name, said in self.named("mask_target.").items():
            found = search(
                r"(\d+)x\d+ target of polygon (\d+) of 'mask_target_polygons' in box (\[.*\])", said
            )
            polygons = self.reference.meta["mask_target_polygons"][int(found[2])]
            self.exact(name, rasterise(polygons, ast.literal_eval(found[3]), int(found[1])))

    def keypoints(self) -> None:
        if said := self.says.get("keypoints.x"):
            boxes = torch.tensor(
                ast.literal_eval(search(r"in boxes (\[\[.*?\]\])", said)[1]), dtype=self.kind
            )
            places, logits, _ = decode_heatmaps(listed_inputs(said, self.kind)[0][0], boxes)
            for name, value in (("x", places[..., 0]), ("y", places[..., 1]), ("score", logits)):
                self.close(f"keypoints.{name}", value)
        if said := self.says.get("keypoint_target.index"):
            side = int(search(r"y\*(\d+)\+x", said)[1])
            boxes = torch.tensor(ast.literal_eval(search(r"boxes (\[\[.*?\]\])", said)[1]), dtype=self.kind)
            cells, valid = heatmap_targets(self.read("in.keypoints"), boxes, side)
            self.exact("keypoint_target.index", cells)
            self.exact("keypoint_target.valid", valid)
        if said := self.says.get("keypoint_flip"):
            width = int(search(r"in a (\d+)x\d+ image", said)[1])
            flipped = self.read("in.keypoints").clone()
            flipped[..., 0] = width - OFFSET - flipped[..., 0]
            flipped = flipped[:, mirrored_keypoints(KEYPOINT_NAMES)]
            flipped[flipped[..., 2] == 0] = 0
            self.close("keypoint_flip", flipped)

    def losses(self) -> None:
        last: Tensor | None = None
        for name, said in self.named("loss.smooth_l1.").items():
            values = listed_inputs(said, self.kind)
            last = values[0][0] if values else last  # "same, beta 1": the input of the line before
            if last is None:
                raise ParityError(f"{name}: {said!r} does not say of which numbers")
            self.close(
                name,
                smooth_l1_sum(
                    last, torch.zeros_like(last), number(search(rf"beta ({NUMBER})", said)[1])
                ).reshape(1),
            )
        if said := self.says.get("loss.focal"):
            logits = listed_inputs(said, self.kind)[0][0]
            gamma, alpha = (float(search(rf"{word} ({NUMBER})", said)[1]) for word in ("gamma", "alpha"))
            self.close(
                "loss.focal", sigmoid_focal(logits, self.read("in.focal.targets"), alpha=alpha, gamma=gamma)
            )

    # ---- pixels ----

    def images(self) -> None:
        image = self.bundles["maskrcnn_benchmark"].image
        for name in sorted({name.split(".")[1] for name in self.named("image.") if name.count(".") == 2}):
            said = self.says[f"image.{name}.size"]
            found = search(r"(\d+) high (\d+) wide.*?resized with min (\d+) max (\d+)", said)
            height, width, short, longest = (int(n) for n in found.groups())
            pixels = formula_image(said, height, width)
            rule = Preprocess.from_conventions(image.model_copy(update={"size": short, "max_size": longest}))
            tensor = rule(pixels).tensor
            self.exact(f"image.{name}.size", torch.tensor([tensor.shape[2], tensor.shape[1]]))
            self.exact(
                f"image.{name}.resized",
                resize_pixels(pixels, rule.resize.plan(height, width), rule.interpolation),
            )
            for part, value in (
                ("normalised", tensor),
                ("row_means", tensor.mean(dim=2)),
                ("column_means", tensor.mean(dim=1)),
            ):
                self.close(f"image.{name}.{part}", value)
        if said := self.says.get("image.test_sizes"):
            short, longest = (int(n) for n in search(r"(\d+)/(\d+) rule", said).groups())
            plans = [
                ShorterSide(short, longest, image.rounding).plan(height, width)
                for width, height in self.read("in.image_sizes").tolist()
            ]
            self.exact("image.test_sizes", torch.tensor([[plan.width, plan.height] for plan in plans]))
            divisor = int(search(r"multiples of (\d+)", self.says["image.padded_sizes"])[1])
            padded = [pad_batch([torch.zeros(1, plan.height, plan.width)], divisor) for plan in plans]
            self.exact(
                "image.padded_sizes", torch.tensor([[batch.shape[3], batch.shape[2]] for batch in padded])
            )


def formula_image(said: str, height: int, width: int) -> np.ndarray:
    """The (H, W, 3) uint8 image of "image[y,x,c]=(ax+by+kc+(x*y mod m)) mod n"."""
    found = search(r"image\[y,x,c\]=\((\d+)x\+(\d+)y\+(\d+)c\+\(x\*y mod (\d+)\)\) mod (\d+)", said)
    across, down, channel, inner, outer = (int(n) for n in found.groups())
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((across * x + down * y + channel * c + x * y % inner) % outer).astype(np.uint8)
