"""Parity with DetNet_pytorch: detectors, the ImageNet classifier, and the steps before and after the
network."""

from __future__ import annotations

import re
import zlib
from ast import literal_eval
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection_zoo.kernels.roi_levels import LevelRule, assign_levels
from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.detectors.joint_rcnn import JointRCNN, Pyramid, padded_truth
from detection_zoo.zoo.manifest import Component, ModelEntry, Schedule
from detection_zoo.zoo.parity import detnet_steps
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip, settle_ties
from detection_zoo.zoo.parity.standin import normal_input
from detection_zoo.zoo.parts.joint_proposals import (
    OFFSET,
    anchor_targets,
    best_proposals,
    joint_proposals,
    sample_rois,
)
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.recipe import learning_rate, parameter_groups
from detection_zoo.zoo.weights.load import load_arrays

GRADIENT_TOLERANCE = 2e-3  # the folders' own advice
NEAR = 2e-6  # between scores that two ways of adding up may rank differently
Outputs = dict[str, Output | Skip]
_SETTINGS = {  # the configuration's name of a number -> the detector's
    "TEST.RPN_PRE_NMS_TOP_N": "pre_nms",
    "TEST.RPN_POST_NMS_TOP_N": "post_nms",
    "TRAIN.RPN_PRE_NMS_TOP_N": "train_pre_nms",
    "TRAIN.RPN_POST_NMS_TOP_N": "train_post_nms",
    "TRAIN.BATCH_SIZE": "rois_per_image",
    "TRAIN.RPN_BATCHSIZE": "anchors_per_image",
    "FPN_ANCHOR_SCALES": "anchor_sizes",
}
_ELSEWHERE = (
    "FPN_FEAT_STRIDES",
    "MAX_NUM_GT_BOXES",
    "ANCHOR_SCALES",
    "FEAT_STRIDE",
    "POOLING_SIZE",
)  # told by the backbone and the truth, or idle
_USUAL = {
    "pre_nms": 6000,
    "post_nms": 300,
    "train_pre_nms": 12000,
    "train_post_nms": 2000,
    "rois_per_image": 128,
    "anchors_per_image": 256,
    "anchor_sizes": [32, 64, 128, 256, 512],
    "class_agnostic": False,
    "pooling": "align",
}


def outputs(
    reference: Reference, entry: ModelEntry | None, dtype: str, checkpoint_format: str | None
) -> Outputs:
    """Recompute what a folder of DetNet_pytorch records; arguments as `zoo.parity.base.parity` hands them
    over."""
    kind = getattr(torch, dtype)
    if not reference.has_checkpoint:
        computed = detnet_steps.outputs(reference, kind)
    elif "train" in reference.meta or "fixed_rois" in reference.meta:
        computed = _Detector(reference, entry, kind, checkpoint_format or "detnet_pytorch_pth").outputs()
    else:
        computed = _classifier(reference, entry, kind, checkpoint_format or "detnet_imagenet_pth")
    return with_probes(reference, computed)


def with_probes(reference: Reference, computed: Outputs) -> Outputs:
    """Of what was computed, that which the folder records, and the 512 drawn values of each output whose name
    is recorded with '@probe'."""
    computed = {
        name: output
        for name, output in computed.items()
        if name in reference.recorded or isinstance(output, Skip) or output.expected is not None
    }
    for name in reference.recorded:
        whole = name.removesuffix("@probe")
        output = computed.get(whole)
        if whole != name and isinstance(output, Output):
            flat = _array(output.value).reshape(-1)
            computed[name] = Output(flat[_probed(whole, flat.size)] if flat.size else flat, output.tolerance)
        elif whole != name and isinstance(output, Skip):
            computed[name] = output
    return computed


def _probed(name: str, size: int) -> np.ndarray:
    """Places (512,) of an output's values that are recorded under its name with '@probe'."""
    return np.random.RandomState(zlib.crc32(name.encode())).randint(0, size, 512)


def known_values(reference: Reference, name: str) -> np.ndarray:
    """An output as far as it is recorded, evenly and by '@probe', in its whole shape; NaN elsewhere."""
    kept, probe = reference.recorded[name], reference.recorded.get(f"{name}@probe")
    flat = np.full(int(np.prod(kept["shape"])), np.nan)
    flat[:: int(kept["stride"])][: len(kept["samples"])] = kept["samples"]
    if probe is not None and flat.size:
        flat[_probed(name, flat.size)] = probe["samples"]
    return flat.reshape(kept["shape"])


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def parse_input(text: str, kind: torch.dtype) -> Tensor:
    """The tensor that a text such as "normal_input(3, (2, 3, 96, 128))" describes, of any shape (N, ...)."""
    found = re.search(r"normal_input\(\s*(\d+)\s*,\s*\(([\d,\s]+)\)\s*\)", text)
    if not found:
        raise ParityError(f"no 'normal_input(seed, (shape))' in {text!r}, the description of an input")
    return torch.from_numpy(
        normal_input(int(found[1]), tuple(int(n) for n in found[2].split(",") if n.strip()))
    ).to(kind)


def _blocks(names: Iterable[str], layer: str) -> int:
    """How many residual blocks a checkpoint has in one layer."""
    return 1 + max(
        int(found[1]) for name in names if (found := re.match(rf"{re.escape(layer)}(\d+)\.", name))
    )


def detector_components(reference: Reference) -> dict[str, Any]:
    """Backbone, neck, detector and class count of a folder, from its options and its checkpoint's names."""
    options, names = (
        reference.meta["options"],
        [tensor["name"] for tensor in reference.description["tensors"]],
    )
    if any(name.startswith("RCNN_layer5.") for name in names):
        backbone, neck = (
            Component(name="detnet59", norm="frozen_eps", freeze_at=2),
            Component(name="smoothed_fpn"),
        )
    else:
        depth = {(4, 6): 50, (4, 23): 101, (8, 36): 152}[
            _blocks(names, "RCNN_layer2.0."), _blocks(names, "RCNN_layer3.0.")
        ]
        backbone = Component(name=f"resnet{depth}", norm="frozen_eps", freeze_at=2, stem_pool="ceil")
        neck = Component(name="smoothed_fpn", extra="max_pool")
    arguments = {"pooled_size": options["pooled_size"], **_configured(reference)}
    return {
        "backbone": backbone,
        "neck": neck,
        "detector": Component(name="joint_rcnn", **arguments),
        "classes": options["classes"] - 1,
    }


def _configured(reference: Reference) -> dict[str, Any]:
    """What a folder's options change of the detector: its yml, its flags, and its overrides of the yml."""
    options = reference.meta["options"]
    given = options.get("overrides", [])
    overrides = dict(zip(given[::2], given[1::2], strict=True))
    arguments = {
        "class_agnostic": bool(options.get("class_agnostic")),
        "pooling": overrides.pop("POOLING_MODE", options.get("pooling", "align")),
    }
    if options.get("yml", "").endswith("_ls.yml"):
        arguments["post_nms"] = 1000
    arguments |= {
        ours: literal_eval(str(overrides.pop(theirs)))
        for theirs, ours in _SETTINGS.items()
        if theirs in overrides
    }
    if other := sorted(set(overrides) - set(_ELSEWHERE)):
        reference.notes.append(f"the options set {', '.join(other)}, which nothing here follows")
    if arguments["pooling"] not in ("align", "pool"):
        raise ParityError(
            f"{reference.folder}: pooling {arguments['pooling']!r} works on no pyramid; known: align, pool"
        )
    return {name: value for name, value in arguments.items() if value != _USUAL[name]}


def row_for(reference: Reference, entry: ModelEntry | None, own: dict[str, Any]) -> ModelEntry:
    """The manifest row, or where the folder is of another model, a row made of what the folder itself says
    (`own`, fields of ModelEntry)."""
    if entry is not None:
        differing = [name for name, value in own.items() if getattr(entry, name) != value]
        if not differing:
            return entry
        reference.notes.append(
            f"the folder differs from row {entry.name} in {', '.join(differing)}; built as the folder says"
        )
    return ModelEntry(
        name=reference.folder.name, source="detnet", title=reference.folder.name, dataset="voc_0712", **own
    )


class _Detector:
    """One detector folder: its model, loaded, and every output it records."""

    def __init__(
        self, reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint_format: str
    ) -> None:
        self.reference, self.meta, self.kind = reference, reference.meta, kind
        model = assemble(row_for(reference, entry, detector_components(reference)))
        if not isinstance(model, JointRCNN):
            raise TypeError(
                f"{reference.folder}: expected the joint Faster R-CNN, got {type(model).__name__}"
            )
        where = f"stand-in checkpoint of {reference.folder} ({checkpoint_format})"
        self.report = load_arrays(model, reference.checkpoint(), checkpoint_format, where=where)
        self.model = model.to(kind).eval()
        self.computed: Outputs = {}

    def outputs(self) -> Outputs:
        with torch.no_grad():
            for name, described in self.meta["inputs"].items():
                self._inference(name, described)
        if "train" in self.meta:
            self._training(self.meta["train"])
            self._recipe(self.meta["train"])
        return self.computed

    def _add(self, prefix: str, values: dict[str, Any], tolerance: float | None = None) -> None:
        self.computed |= {f"{prefix}/{name}": Output(value, tolerance) for name, value in values.items()}

    def _inference(self, name: str, described: dict[str, Any]) -> None:
        model, images = self.model, parse_input(described["input"], self.kind)
        info = torch.tensor(described["im_info"], dtype=self.kind)
        maps = {"c1": model.backbone.stem(images)} | model.backbone(images)
        found = model.pyramid(images)
        levels = dict(zip(model.neck.specs, found.levels, strict=True))
        rpn = {f"rpn_cls_score_{level}": x for level, x in zip(levels, found.logits, strict=True)}
        rpn |= {f"rpn_bbox_pred_{level}": x for level, x in zip(levels, found.delta_maps, strict=True)}
        self._add(name, maps | levels | rpn | {"rpn_fg_prob": found.scores})
        rois = self._proposals(f"{name}/rois", images, found, info[:, :2], model.test_proposals)
        height = float(info[0, 0])
        pooled = model.pool(found.levels, rois.flatten(0, 1), height)
        logits, deltas = model.box_head(pooled)
        probabilities = logits.softmax(dim=1).unflatten(0, rois.shape[:2])
        self._add(
            name,
            {
                "rois": rois,
                "roi_feat": pooled,
                "fc7": model.box_head.trunk(pooled),
                "cls_score": logits,
                "cls_prob": probabilities,
                "bbox_pred": deltas.unflatten(0, rois.shape[:2]),
            },
        )
        self._expect(
            f"{name}/rois: real boxes",
            (rois[..., 1:] != 0).any(dim=2).sum(dim=1),
            described.get("rois", {}).get("real"),
        )
        self._fixed(name, found.levels, len(images), height)
        for soft, what in (("none", "detections"), ("linear", "detections_soft_nms")):
            if what in described:
                rows = detnet_steps.detection_rows(
                    model, rois[0, :, 1:], probabilities[0], deltas, info[0].tolist(), soft=soft
                )
                self._add(name, {what: self._settled_detections(f"{name}/{what}", rows[0])})
                self._expect(
                    f"{name}/{what}: counts",
                    [rows[1], len(rows[0])],
                    [described[what]["before_cap"], described[what]["kept"]],
                )

    def _proposals(
        self, name: str, images: Tensor, found: Pyramid, sizes: Tensor, limits: dict[str, Any]
    ) -> Tensor:
        """Proposals (N, R, 5) of a batch; near ties stand in the recorded order as far as it is known, and
        else as double precision ranks them."""
        rois = joint_proposals(found.scores, found.deltas, found.anchors, sizes, **limits)
        known = known_values(self.reference, name) if name in self.reference.recorded else None
        if known is None or known.shape != tuple(rois.shape):
            return rois
        best = [
            best_proposals(*one, found.anchors, size, **limits)
            for *one, size in zip(found.scores, found.deltas, sizes.tolist(), strict=True)
        ]
        scores = [own[kept] for own, (kept, _) in zip(found.scores, best, strict=True)]
        if self.kind != torch.float64 and any((own[:-1] - own[1:] < NEAR).any() for own in scores):
            finer = (
                deepcopy(self.model).double().pyramid(images.double()).scores
            )  # the folders say that both precisions agree on the order
            scores = [own[kept] for own, (kept, _) in zip(finer, best, strict=True)]
        for index, (own, (_, boxes)) in enumerate(zip(scores, best, strict=True)):
            ranked = own.sort(descending=True, stable=True)
            if moved := int((_array(ranked.indices) != np.arange(len(own))).sum()):
                self.reference.notes.append(
                    f"{name}: {moved} rows stand as double precision ranks their scores"
                )
            order = ranked.indices[
                self._order(name, ranked.values, boxes[ranked.indices], known[index, : len(boxes), 1:])
            ]
            rois[index, : len(boxes), 1:] = boxes[order]
        return rois

    def _settled_detections(self, name: str, rows: Tensor) -> Tensor:
        """Rows (M, 6) class, box, score by class and falling score; near ties of a class stand as far as it
        is known in the recorded order."""
        known = known_values(self.reference, name) if name in self.reference.recorded else None
        if known is None or known.shape != tuple(rows.shape):
            return rows
        own = [torch.nonzero(rows[:, 0] == label).squeeze(1) for label in rows[:, 0].unique()]
        return torch.cat(
            [rows[here[self._order(name, rows[here, 5], rows[here, 1:5], known[here, 1:5])]] for here in own]
        )

    def _order(self, name: str, scores: Tensor, boxes: Tensor, known: np.ndarray) -> Tensor:
        settled = settle_ties(_array(scores), _array(boxes), known)
        if moved := int((settled != np.arange(len(settled))).sum()):
            self.reference.notes.append(
                f"{name}: {moved} rows of nearly equal scores were put in the recorded order"
            )
        return torch.from_numpy(settled)

    def _fixed(self, name: str, levels: list[Tensor], images: int, height: float) -> None:
        if "fixed_rois" not in self.meta:
            return
        fixed = self.meta["fixed_rois"]
        rows = torch.tensor(fixed["rows"], dtype=self.kind)
        here = rows[:, 0] < images
        if "levels" in fixed:
            assigned = assign_levels(rows[here], LevelRule(offset=OFFSET, eps=0.0), self.model.pool_levels)
            self._expect(f"{name}/fixed_rois: levels", assigned, np.array(fixed["levels"])[here.numpy()])
        pooled = self.model.pool(levels, rows[here], height)
        logits, deltas = self.model.box_head(pooled)
        self._add(
            name,
            {
                "fixed_roi_feat": pooled,
                "fixed_fc7": self.model.box_head.trunk(pooled),
                "fixed_cls_score": logits,
                "fixed_bbox_pred": deltas,
            },
        )

    def _expect(self, name: str, value: Any, expected: Any) -> None:
        """Compare with numbers that stand in outputs.json itself, exactly."""
        if expected is not None:
            self.computed[name] = Output(
                _array(value).astype("float64"), 0.0, expected=np.asarray(expected, dtype="float64")
            )

    def _training(self, train: dict[str, Any]) -> None:
        model, images = self.model, parse_input(train["input"], self.kind)
        sizes = torch.tensor(train["im_info"], dtype=self.kind)[:, :2]
        truth, labels = self._truth(train)
        draws = np.random.RandomState(int(re.search(r"seed\((\d+)\)", train["numpy_seed"])[1]))
        found = model.train().pyramid(images)
        state = draws.get_state()
        anchors = anchor_targets(
            found.anchors, truth, sizes[0].tolist(), draws, count=model.anchors_per_image
        )
        with torch.no_grad():
            rois = self._proposals("train/proposals", images, found, sizes, model.train_proposals)
        samples = sample_rois(rois, truth, labels, draws, count=model.rois_per_image, coder=model.coder)
        model.draws.set_state(state)
        losses = model.rpn_losses(found, truth, sizes) | model.box_losses(found.levels, samples, sizes)
        self._add("train", {name: value.reshape(1) for name, value in losses.items()})
        self._add(
            "train",
            {
                "proposals": rois,
                "rpn_labels": anchors.labels,
                "rpn_bbox_targets": anchors.targets * (anchors.labels >= -1)[..., None],
                "rpn_inside_weights": anchors.inside,
                "rpn_outside_weights": anchors.outside,
                "rois": samples.rois,
                "roi_labels": samples.labels,
                "roi_gt_assign": samples.assigned,
                "roi_targets": samples.targets,
                "roi_inside_weights": samples.inside,
                "roi_outside_weights": (samples.inside > 0).to(self.kind),
            },
        )
        with torch.no_grad():
            logits, deltas = model.box_head(
                model.pool(found.levels, samples.rois.flatten(0, 1), float(sizes[0, 0]))
            )
            own = (
                deltas
                if model.class_agnostic
                else deltas.unflatten(1, (-1, 4))[torch.arange(len(deltas)), samples.labels.flatten()]
            )
        self._add(
            "train",
            {
                "cls_prob": logits.softmax(dim=1).unflatten(0, samples.labels.shape),
                "bbox_pred_selected": own.unflatten(0, samples.labels.shape),
            },
        )
        self._gradients(sum(losses.values()))
        self._listed(train, rois, anchors.labels, samples)

    def _truth(self, train: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Ground truth filled with zero rows as far as the folder says."""
        rows = [torch.tensor(image, dtype=self.kind).reshape(-1, 5) for image in train["gt_boxes"]]
        boxes, labels = padded_truth([Target(image[:, :4], image[:, 4].long() - 1) for image in rows])
        fill = (
            int(found[1]) - boxes.shape[1]
            if (found := re.search(r"up to (\d+)", train.get("gt_padding", "")))
            else 0
        )
        return nn.functional.pad(boxes, (0, 0, 0, max(fill, 0))), nn.functional.pad(labels, (0, max(fill, 0)))

    def _gradients(self, loss: Tensor) -> None:
        loss.backward()
        parameters = dict(self.model.named_parameters())
        origin = {theirs: ours for ours, theirs in self.names().items()}
        for name in self.reference.recorded:
            if not name.startswith("train/grad/") or name.endswith("@probe"):
                continue
            ours = origin.get(name.removeprefix("train/grad/"))
            if ours in parameters and parameters[ours].grad is not None:
                self.computed[name] = Output(parameters[ours].grad, GRADIENT_TOLERANCE)

    def names(self) -> dict[str, str]:
        """This model's names -> the checkpoint's."""
        from detection_zoo.zoo.weights.load import checkpoint_format

        return checkpoint_format("detnet_pytorch_pth").translate(self.reference.checkpoint()).origin

    def _listed(self, train: dict[str, Any], rois: Tensor, labels: Tensor, samples: Any) -> None:
        """The lists that outputs.json holds beside the arrays."""
        self._expect(
            "train: real proposals", (rois[..., 1:] != 0).any(dim=2).sum(dim=1), train.get("real_proposals")
        )
        for index, listed in enumerate(train.get("sampled_anchors", [])):
            for value, kind in ((1, "fg"), (0, "bg")):
                self._expect(
                    f"train: sampled {kind} anchors of image {index}",
                    torch.nonzero(labels[index] == value).squeeze(1),
                    listed[kind],
                )
        if "sampled_roi_labels" in train:
            self._expect("train: sampled roi labels", samples.labels, train["sampled_roi_labels"])
        if "sampled_rois" in train:
            self.computed["train: sampled rois"] = Output(
                samples.rois, 1e-4, expected=np.asarray(train["sampled_rois"])
            )

    def _recipe(self, train: dict[str, Any]) -> None:
        """What trains, with which decay, and the rate of every epoch."""
        origin, trained = self.names(), {name for name, p in self.model.named_parameters() if p.requires_grad}
        frozen = {
            theirs
            for ours, theirs in origin.items()
            if ours not in trained and not theirs.endswith(("running_mean", "running_var"))
        }
        self._expect("train: frozen tensors that differ", len(frozen ^ set(train["frozen"])), 0)
        if train.get("trainable_without_gradient"):
            self.computed["train: trainable_without_gradient"] = Skip(
                "a convolution that the original builds and never uses; it is not built here"
            )
        schedule = Schedule(
            images_per_batch=1,
            lr=0.001,
            epochs=100,
            weight_decay=train["weight_decay"]["weights"],
            weight_decay_bias=train["weight_decay"]["biases"],
        )
        wanted = (train["weight_decay"]["weights"], train["weight_decay"]["biases"])
        wrong = sum(
            group["lr_factor"] != 1.0 or group["weight_decay"] != wanted[parameter.ndim == 1]
            for group in parameter_groups(self.model, schedule)
            for parameter in group["params"]
        )
        self._expect("train: tensors with another rate or decay", wrong, 0)
        for label, rates in train["learning_rate_by_epoch"].items():
            found = re.search(r"(?:step|lr_decay) (\d+)", label)
            if not found:
                raise ParityError(
                    f"{self.reference.folder}: no 'step N' or 'lr_decay N' in {label!r}, which learning rates"
                    " follow from"
                )
            step = int(found[1])
            recipe = Schedule(
                images_per_batch=1,
                lr=rates[0][1],
                epochs=1000,
                steps=[(step + 1) * k - 1 for k in range(1, 50)],
            )
            own = [[epoch, learning_rate(recipe, epoch - 1, 1)] for epoch, _ in rates]
            self.computed[f"train: learning rate by epoch, {label}"] = Output(
                np.array(own), 1e-9, expected=np.array(rates, dtype="float64")
            )


def _classifier(
    reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint_format: str
) -> Outputs:
    """Stages, pooled features and logits of DetNet-59 as a classifier."""
    classes = next(
        tensor["shape"][0] for tensor in reference.description["tensors"] if tensor["name"] == "fc.weight"
    )
    own = {
        "backbone": Component(name="detnet59", norm="batch", freeze_at=0),
        "classes": classes,
        "task": "classification",
    }
    model = assemble(row_for(reference, entry, own))
    load_arrays(
        model, reference.checkpoint(), checkpoint_format, where=f"stand-in checkpoint of {reference.folder}"
    )
    model = model.to(kind).eval()
    computed: Outputs = {}
    for name, text in reference.meta["inputs"].items():
        kept = _watch(model, parse_input(text if isinstance(text, str) else text["input"], kind))
        computed |= {f"{name}/{stage}": Output(value) for stage, value in kept.items()}
    return computed


def _watch(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Outputs of the stages and blocks by the original's names, caught on the way of one forward pass."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, result: kept.__setitem__(name, result)

    backbone = model.backbone
    watched = {"maxpool": backbone.stem} | {f"layer{i}": getattr(backbone, f"c{i + 1}") for i in range(1, 6)}
    for index in (4, 5):
        blocks = getattr(backbone, f"c{index + 1}")
        watched |= {f"layer{index}.{i}": block for i, block in enumerate(blocks)} | {
            f"layer{index}.0.extra_conv": blocks[0].shortcut
        }
    hooks = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    with torch.no_grad():
        kept["logits"] = model(images)
    for hook in hooks:
        hook.remove()
    kept["avgpool"] = kept["layer5"].mean(dim=(2, 3), keepdim=True)
    return kept
