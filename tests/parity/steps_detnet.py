"""The steps around DetNet_pytorch's network, one by one: anchors, coding, NMS, proposals, sampling, pooling,
images, detections."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detection_zoo.kernels.nms import nms
from detection_zoo.kernels.roi_align import roi_align_averaged, roi_align_points
from detection_zoo.kernels.roi_crop import affine_grid, roi_crop
from detection_zoo.kernels.roi_levels import LevelRule, assign_levels
from detection_zoo.kernels.roi_pool import reference_forward as roi_pool_with_argmax
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms
from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.backbones.resnet import Stem
from detection_zoo.zoo.conventions import RpnConventions
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn, RcnnRules, faster_rcnn
from detection_zoo.zoo.manifest_files import load_manifests, merge
from detection_zoo.zoo.necks import SmoothedPyramid
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip
from detection_zoo.zoo.parity.detnet_model import (
    CODER,
    OFFSET,
    Pyramid,
    as_rois,
    detection_choices,
    detection_rows,
    pool,
    propose,
)
from detection_zoo.zoo.parity.files import Described
from detection_zoo.zoo.parity.settings import Note, normal_input
from detection_zoo.zoo.parts.anchor_targets import FirstImageAnchorSampler
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import clip_boxes
from detection_zoo.zoo.parts.losses import smooth_l1_sum
from detection_zoo.zoo.parts.rpn import PairedRpnHead
from detection_zoo.zoo.parts.targets import padded_iou
from detection_zoo.zoo.records import FeatureSpec, Target

EXACT = 0.0
CLOSE = 1e-5  # the folder's own advice for values
Outputs = dict[str, Output | Skip]


class _NoBackbone(Backbone):
    """Stands where only the steps after the network are wanted."""

    specs = {f"c{level}": FeatureSpec(1, stride) for level, stride in enumerate((4, 8, 16, 16, 16), 2)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        raise RuntimeError("only the steps around the network are compared here")


def head_model(num_classes: int, **changed: dict[str, Any]) -> FasterRcnn:
    """A detector of that many classes whose network is never run; changed: fields of sections."""
    backbone, bundle = _NoBackbone(), load_manifests().conventions["detnet"]
    changed = merge({"rpn": {"channels": 1}, "pooling": {"size": 1}}, changed)
    sections = {
        field.name: getattr(bundle, field.name).model_copy(update=changed.get(field.name))
        for field in dataclasses.fields(RcnnRules)
    }
    return faster_rcnn(
        backbone,
        num_classes,
        RcnnRules(**sections),
        neck=SmoothedPyramid(backbone.specs, channels=1),
        box_head="2conv",
        head={"width": 1},
    )


def resizing(notes: Sequence[Note], *, longest: bool) -> tuple[int, int | None]:
    """The shorter side that an image is scaled to, and the most that its longer side may have, in pixels.

    Args:
        notes: of the output, and of the first output of the same image: the first that states a side counts.
        longest: whether the longer side is bounded too.
    """

    def side(name: str) -> int:
        for note in notes:
            if getattr(note, name) is not None:
                return getattr(note, name)
        raise ParityError(
            "no note states 'target N' or 'longest side (N)', from which an image's size follows"
        )

    return side("short"), side("longest") if longest else None


class _Steps:
    """The inputs of a folder of steps, and one method a group of its outputs."""

    def __init__(self, reference: Reference, kind: torch.dtype) -> None:
        self.reference, self.meta, self.kind = reference, reference.meta, kind
        self.described = reference.meta["outputs"]
        try:
            with np.load(reference.folder / "inputs.npz", allow_pickle=False) as arrays:
                self.given = Described(
                    reference.folder / "inputs.npz",
                    {name: torch.from_numpy(arrays[name]) for name in arrays.files},
                )
        except FileNotFoundError:
            raise ParityError(
                f"{reference.folder / 'inputs.npz'}: no such file; the steps are computed from the arrays"
                " in it"
            ) from None
        self.given |= {
            name: value.to(kind) for name, value in self.given.items() if value.is_floating_point()
        }
        self.computed: Outputs = {}

    def add(self, name: str, value: Any, tolerance: float = CLOSE) -> None:
        """File an output that the folder records; others are not wanted."""
        if name in self.described:
            self.computed[name] = Output(value, tolerance)

    def note(self, name: str) -> Note:
        """The settings of an output."""
        return self.reference.note("outputs", name, "meaning")

    def anchors_over(self, described: dict[str, Any]) -> Tensor:
        """All anchors (A, 4) over feature maps of the described shapes; strides that are not told follow from
        the shapes, 4 being the finest."""
        cells = [height * width for height, width in described["feature_shapes"]]
        strides = described.get("strides") or [4 * 2 ** round(math.log2(cells[0] / own) / 2) for own in cells]
        sizes = described.get("scales", [32, 64, 128, 256, 512])
        maps = [torch.empty(1, 1, *shape, dtype=self.kind) for shape in described["feature_shapes"]]
        return torch.cat(
            AnchorGenerator(
                [[size] for size in sizes], described.get("ratios", (0.5, 1, 2)), strides, rule="centred"
            )(maps)
        )

    def boxes(self) -> None:
        for name in ("anchors_detnet", "anchors_resnet"):
            if name in self.described:
                self.add(name, self.anchors_over(self.described[name]))
        ex, truth = self.given["ex_boxes"], self.given["gt_boxes"]
        self.add("encode", CODER.encode(truth, ex))
        decoded = CODER.decode(self.given["decode_deltas"], ex)
        self.add("decode", decoded)
        if "decode_clipped" in self.described:
            size = self.note("decode_clipped").im_info
            self.add("decode_clipped", clip_boxes(decoded.unflatten(1, (-1, 4)), size, OFFSET).flatten(1))
        self.add("overlaps", padded_iou(self.given["overlap_boxes"], self.given["overlap_gt"][:, :4], OFFSET))

    def suppression(self) -> None:
        rows = self.given["nms_dets"]
        for name in self.described:
            if found := re.fullmatch(r"nms_([\d.]+)", name):
                self.add(name, nms(rows[:, :4], rows[:, 4], float(found[1]), offset=OFFSET), EXACT)
            if found := re.fullmatch(r"soft_nms_method(\d)", name):
                method = ("hard", "linear", "gaussian")[int(found[1])]
                note = self.note(name)
                kept, scores = soft_nms(
                    rows[:, :4],
                    rows[:, 4],
                    method=method,
                    offset=OFFSET,
                    sigma=note.sigma,
                    iou_threshold=note.nms_iou,
                    score_threshold=note.score_threshold,
                )
                self.add(name, torch.cat([rows[kept, :4], scores[:, None]], dim=1))

    def proposals(self) -> None:
        for name, described in self.described.items():
            if name.startswith("proposals_"):
                deltas = self._proposal_deltas(described)
                sizes = torch.tensor(described["im_info"], dtype=self.kind)[:, :2]
                rule = (
                    head_model(1)
                    .rpn.rules[False]
                    .model_copy(
                        update={
                            "pre_nms": described["pre_nms_top_n"],
                            "post_nms": described["post_nms_top_n"],
                            "nms_iou": described["nms"],
                        }
                    )
                )
                found = Pyramid(
                    [], [], [], self.given["proposal_fg_prob"], deltas, self.anchors_over(described)
                )
                rois = as_rois([each.boxes for each in propose(found, sizes.tolist(), rule)])
                self.add(name, rois)
                self.computed[f"{name}: kept"] = Output(
                    (rois[..., 1:] != 0).any(dim=2).sum(dim=1).double(),
                    EXACT,
                    expected=np.array(described["kept"], float),
                )
        if "rpn_pairing_prob" in self.described:
            logits = self.note("rpn_pairing_prob").tensor(self.kind)
            head = PairedRpnHead(1, 1)
            self.add("rpn_pairing_prob", head.scores(logits))
            self.add("rpn_pairing_logits", head.flat(logits))

    def _proposal_deltas(self, described: dict[str, Any]) -> Tensor:
        seed, scale = self.given["proposal_deltas_seed_scale"].tolist()
        shape = (*self.given["proposal_fg_prob"].shape, 4)
        return (scale * torch.from_numpy(normal_input(int(seed), shape))).to(self.kind)

    def targets(self) -> None:
        truth = self.given["target_gt"]
        for name, described in self.described.items():
            if name.startswith("anchor_labels_"):
                count, seed = self.note(name).need("samples", "seed")
                anchors = self.anchors_over(described)
                sampler = FirstImageAnchorSampler(
                    CODER, RpnConventions(samples=count), np.random.RandomState(seed)
                )
                size = described["im_info"][0][:2]
                found = sampler(anchors, list(truth[..., :4]), [size] * len(truth))
                which = name.removeprefix("anchor_labels_")
                labels = torch.stack([each.labels for each in found])
                self.add(name, labels, EXACT)
                outside = (labels >= 0).to(self.kind) / int((labels[-1] >= 0).sum())
                self.add(f"anchor_outside_weights_{which}", outside)
                if which == "unsampled":
                    self.add("anchor_targets", torch.stack([each.targets for each in found]))
                    self.add("anchor_inside_weights", (labels == 1).to(self.kind))
        if "proposal_target_rois" in self.described and "proposals_TRAIN" in self.computed:
            self._roi_targets(truth)

    def _roi_targets(self, truth: Tensor) -> None:
        draws = np.random.RandomState(self.note("proposal_target_rois").need("seed"))
        rois = self.computed["proposals_TRAIN"].value
        sampler = head_model(20).sampler
        sampler.draws = draws
        targets = [Target(rows[:, :4], rows[:, 4].long() - 1) for rows in truth]
        found = sampler(list(rois[..., 1:]), targets)
        labels = torch.stack([each.labels for each in found])
        objects = (labels > 0)[..., None].expand(-1, -1, 4).to(self.kind)
        self.add("proposal_target_rois", as_rois([each.boxes for each in found]))
        self.add("proposal_target_labels", labels, EXACT)
        self.add("proposal_target_gt_assign", torch.stack([each.matches for each in found]), EXACT)
        self.add("proposal_target_targets", torch.stack([each.targets for each in found]))
        self.add("proposal_target_inside_weights", objects, EXACT)
        self.add("proposal_target_outside_weights", objects, EXACT)

    def losses(self) -> None:
        if "smooth_l1_sigma3" not in self.described:
            return
        note = self.note("smooth_l1_sigma3")
        predicted, target = (note.tensor(self.kind, place) for place in (0, 1))  # (N, R, 4)
        inside = np.random.RandomState(note.seed).random_sample(note.shape) < note.share  # (N, R, 1)
        rows = torch.from_numpy(inside).expand_as(predicted)
        for sigma, parts in ((3, note.parts * len(inside)), (1, inside.size)):
            summed = smooth_l1_sum(predicted[rows], target[rows], 1 / sigma**2)
            self.add(f"smooth_l1_sigma{sigma}", (summed / parts).reshape(1))

    def pooling(self) -> None:
        note = self.reference.note("inputs", "feature_map")
        features, scale = note.tensor(self.kind), 1 / note.need("stride")
        rois, cropped = self.given["roi_boxes"], self.given["crop_rois"]
        for name in self.described:
            if found := re.fullmatch(
                r"roi_(pool|align|align_avg|align_max|crop)_(\d+)(_argmax|_grad|_grid_yx|_max_pool|_cpu)?",
                name,
            ):
                kind, size, what = found[1], int(found[2]), found[3] or ""
                self.add(
                    name,
                    self._pooled(
                        name, features, cropped if kind == "crop" else rois, kind, size, scale, what
                    ),
                )

    def _pooled(
        self, name: str, features: Tensor, rois: Tensor, kind: str, size: int, scale: float, what: str
    ) -> Tensor:
        if what == "_cpu":
            return self._pool_from_minus_one(features, size, scale)
        if what == "_argmax":
            argmax = roi_pool_with_argmax(features, rois, [size, size], scale)[1]
            plane = features.shape[2] * features.shape[3]
            first = (
                rois[:, 0].long()[:, None] * features.shape[1] + torch.arange(features.shape[1])
            ) * plane  # (R, C)
            return torch.where(argmax < 0, argmax, argmax + first[:, :, None, None])
        if kind == "crop":
            grid = affine_grid(rois, tuple(features.shape[2:]), size, scale)
            if what == "_grid_yx":
                return grid
        features = features.clone().requires_grad_(what == "_grad")
        pooled = {
            "pool": lambda: roi_pool(features, rois, size, scale),
            "align": lambda: roi_align_points(features, rois, size, scale),
            "align_avg": lambda: roi_align_averaged(features, rois, size, scale),
            "align_max": lambda: functional.max_pool2d(
                roi_align_points(features, rois, size + 1, scale), 2, 1
            ),
            "crop": lambda: roi_crop(features, grid),
        }[kind]()
        if what == "_grad":
            own = self.reference.settings.notes.get(f"outputs.{name}.meaning")
            note = own or self.note(f"roi_align_avg_{size}_grad")  # "the same" as of the averaged RoIAlign
            return torch.autograd.grad(pooled, features, note.tensor(self.kind))[0]
        return functional.max_pool2d(pooled, 2, 2) if what == "_max_pool" else pooled

    def _pool_from_minus_one(self, features: Tensor, size: int, scale: float) -> Tensor:
        """The C version reads one image and starts every bin at -1, so that nothing below -1 comes out of a
        bin with cells."""
        lowered = features[:1] - self.note(f"roi_pool_{size}_cpu").need("minus")
        rois = torch.tensor(self.meta["inputs"]["cpu_rois"], dtype=self.kind)
        pooled, argmax = roi_pool_with_argmax(lowered, rois, [size, size], scale)
        return torch.where(argmax < 0, pooled, pooled.clamp(min=-1))

    def pyramids(self) -> None:
        for name, described in self.described.items():
            if not name.startswith("pyramid_roi_"):
                continue
            note, rois = self.note(name), self.given["pyramid_rois"]
            [maps] = note.tensors(self.kind, described["map_shapes"])
            model = head_model(1, pooling={"size": note.pooled})
            self.add(name, pool(model, maps, rois, float(described["image"][0])))
            levels = assign_levels(rois, LevelRule(offset=OFFSET, eps=0.0), len(maps)).double()
            self.computed[f"{name}: levels"] = Output(
                levels, EXACT, expected=np.array(described["levels"], float)
            )

    def maps(self) -> None:
        if "upsample_add" in self.described:
            coarse, fine = (self.note("upsample_add").tensor(self.kind, place) for place in (0, 1))
            neck = SmoothedPyramid(
                {"c2": FeatureSpec(fine.shape[1], 4), "c3": FeatureSpec(coarse.shape[1], 8)},
                channels=fine.shape[1],
            ).to(self.kind)
            with torch.no_grad():
                for layer in (
                    neck.top,
                    neck.lateral[0],
                    neck.smooth[0],
                ):  # identities, so that the sum alone is left
                    layer.weight.zero_()
                    layer.bias.zero_()
                    middle = layer.kernel_size[0] // 2
                    layer.weight[:, :, middle, middle] = torch.eye(fine.shape[1], dtype=self.kind)
                self.add("upsample_add", neck({"c2": fine, "c3": coarse})["p2"])
        if "maxpool_detnet" in self.described:
            x = self.note("maxpool_detnet").tensor(self.kind)
            self.add("maxpool_detnet", Stem(4, norm="frozen", pool="padded").pool(x))
            self.add("maxpool_resnet", Stem(4, norm="frozen", pool="ceil").pool(x))
            self.add("p6_maxpool", functional.max_pool2d(x, 1, 2))

    def images(self) -> None:
        bundles, pixels = load_manifests().conventions, self.given["image"].numpy()
        rules = {
            "prep_image_detnet": "detnet",
            "prep_image_resnet": "detnet_resnet",
            "prep_image_demo": "detnet",
        }
        named = [name for name in rules if name in self.described]
        for name in named:  # the first says what the others, of the same image, do not
            bundle, notes = rules[name], self.reference.settings.under("outputs")
            stated = [notes[f"{each}.meaning"] for each in (name, named[0]) if f"{each}.meaning" in notes]
            target, most = resizing(stated, longest="demo" in name)
            rule = replace(
                Preprocess.from_conventions(bundles[bundle].image),
                resize=ShorterSide(target, most, bundles[bundle].image.rounding),
            )
            prepared = rule(pixels)
            self.add(name, prepared.tensor.permute(1, 2, 0))
            self.computed[f"{name}: scale"] = Output(
                np.array(prepared.scale[:1]), 1e-9, expected=np.array([self.described[name]["scale"]])
            )

    def detections(self) -> None:
        rois, probabilities, deltas = (
            self.given[name][0] for name in ("op_rois", "op_cls_prob", "op_bbox_pred")
        )
        for name, described in self.described.items():
            if not name.startswith("detections"):
                continue
            info = self.note(name).im_info
            least = float(found[1]) if (found := re.search(r"_([\d.]+)$", name)) else 0.0
            model = head_model(
                probabilities.shape[1] - 1,
                detections={"score_threshold": least, "max_detections": 0 if "demo" in name else 100},
            )
            if (
                "demo" in name
            ):  # there the proposals are scaled first and the boxes held to the scaled image, without a cap
                rois_in, frame = rois[:, 1:] / info[2], [*info[:2], 1.0]
            else:
                rois_in, frame = rois[:, 1:], info
            choose = detection_choices(model, "linear" if "soft" in name else "none")
            rows = detection_rows(model, rois_in, probabilities, deltas, frame, choose)
            self.add(name, rows[0])
            counts = [described["before_cap"], described["kept"]]
            self.computed[f"{name}: counts"] = Output(
                np.array([rows[1], len(rows[0])], float), EXACT, expected=np.array(counts, float)
            )


def step_outputs(reference: Reference, kind: torch.dtype) -> Outputs:
    """Every step that the folder records, in the type `kind`."""
    steps = _Steps(reference, kind)
    for group in (
        steps.boxes,
        steps.suppression,
        steps.proposals,
        steps.targets,
        steps.losses,
        steps.pooling,
        steps.pyramids,
        steps.maps,
        steps.images,
        steps.detections,
    ):
        group()
    return steps.computed
