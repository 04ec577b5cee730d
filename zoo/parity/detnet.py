"""Parity with DetNet_pytorch: recompute what its reference folders record."""

from __future__ import annotations

import zlib
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.roi_levels import LevelRule, assign_levels
from detection_zoo.zoo.conventions import ProposalConventions
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.parity.base import Output, Reference, Skip, step_outputs, to_numpy
from detection_zoo.zoo.parity.detnet_imagenet import imagenet_outputs
from detection_zoo.zoo.parity.detnet_model import (
    OFFSET,
    Pyramid,
    as_rois,
    detection_choices,
    detection_rows,
    kept_anchors,
    pool,
    propose,
    pyramid,
)
from detection_zoo.zoo.parity.detnet_settings import detector_components, row_for
from detection_zoo.zoo.parity.near_ties import settle, settle_ties
from detection_zoo.zoo.parity.standin import standin_model
from detection_zoo.zoo.parts.roi_heads import box_losses
from detection_zoo.zoo.parts.trace import trace
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.recipe import learning_rate, parameter_groups

GRADIENT_TOLERANCE = 2e-3  # the folders' own advice
NEAR = 2e-6  # between scores that two ways of adding up may rank differently
Outputs = dict[str, Output | Skip]


def outputs(
    reference: Reference, entry: ModelEntry | None, dtype: str, checkpoint_format: str | None
) -> Outputs:
    """Recompute what a folder of DetNet_pytorch records; arguments as `zoo.parity.base.parity` hands them
    over."""
    kind = getattr(torch, dtype)
    if not reference.has_checkpoint:
        computed = step_outputs(reference, kind)
    elif "train" in reference.meta or "fixed_rois" in reference.meta:
        computed = _Detector(reference, entry, kind, checkpoint_format or "detnet_pytorch_pth").outputs()
    else:
        computed = imagenet_outputs(reference, entry, kind, checkpoint_format or "detnet_imagenet_pth")
    return with_probes(reference, computed)


class _Detector:
    """One detector folder: its model, loaded, and every output it records."""

    def __init__(
        self, reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint_format: str
    ) -> None:
        self.reference, self.meta, self.kind = reference, reference.meta, kind
        row = row_for(reference, entry, detector_components(reference))
        model, translation = standin_model(reference.folder, row, FasterRcnn, checkpoint_format)
        self.model, self.origin = model.to(kind).eval(), translation.origin
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
        model = self.model
        images = self.reference.note("inputs", name, "input").tensor(self.kind)
        info = torch.tensor(described["im_info"], dtype=self.kind)
        with trace(model, "backbone.stem", "backbone") as seen:
            found = pyramid(model, images)
        maps = {"c1": seen["backbone.stem"]} | seen["backbone"]
        levels = dict(zip(model.neck.specs, found.levels, strict=True))
        rpn = {f"rpn_cls_score_{level}": x for level, x in zip(levels, found.logits, strict=True)}
        rpn |= {f"rpn_bbox_pred_{level}": x for level, x in zip(levels, found.delta_maps, strict=True)}
        self._add(name, maps | levels | rpn | {"rpn_fg_prob": found.scores})
        rois = self._proposals(f"{name}/rois", images, found, info[:, :2], model.rpn.rules[False])
        height = float(info[0, 0])
        pooled = pool(model, found.levels, rois.flatten(0, 1), height)
        hidden = model.box.trunk(pooled)
        logits, deltas = model.box.predictor(hidden)
        probabilities = logits.softmax(dim=1).unflatten(0, rois.shape[:2])
        self._add(
            name,
            {
                "rois": rois,
                "roi_feat": pooled,
                "fc7": hidden,
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
                self._detections(f"{name}/{what}", soft, described[what], rois, probabilities, deltas, info)

    def _detections(
        self,
        name: str,
        soft: str,
        described: dict[str, Any],
        rois: Tensor,
        probabilities: Tensor,
        deltas: Tensor,
        info: Tensor,
    ) -> None:
        """Rows and counts of the first image, with near ties as recorded."""
        choices = detection_choices(self.model, soft)

        def compute() -> Outputs:
            rows, before = detection_rows(
                self.model, rois[0, :, 1:], probabilities[0], deltas, info[0].tolist(), choices
            )
            counts = [described["before_cap"], described["kept"]]
            return {
                name: Output(self._settled_detections(name, rows)),
                f"{name}: counts": Output([before, len(rows)], 0.0, counts),
            }

        notes = len(self.reference.notes)
        settled = settle(compute, choices, self.reference, str(self.kind).removeprefix("torch."))
        del self.reference.notes[notes:]  # of choices that were tried
        compute()
        self.computed |= settled

    def _proposals(
        self, name: str, images: Tensor, found: Pyramid, sizes: Tensor, rule: ProposalConventions
    ) -> Tensor:
        """Proposals (N, R, 5) of a batch; near ties are in the recorded order as far as it is known,
        otherwise in that of double precision."""
        limits = sizes.tolist()
        proposals = propose(found, limits, rule)
        rois = as_rois([each.boxes for each in proposals])
        known = known_values(self.reference, name) if name in self.reference.recorded else None
        if known is None or known.shape != tuple(rois.shape):
            return rois
        kept = [kept_anchors(found, i, size, proposals[i]) for i, size in enumerate(limits)]
        scores = [own[rows] for own, rows in zip(found.scores, kept, strict=True)]
        if self.kind != torch.float64 and any((own[:-1] - own[1:] < NEAR).any() for own in scores):
            finer = pyramid(
                deepcopy(self.model).double(), images.double()
            ).scores  # by the folders' notes both precisions give the same order
            scores = [own[rows] for own, rows in zip(finer, kept, strict=True)]
        for index, own in enumerate(scores):
            boxes = proposals[index].boxes[: len(own)]
            ranked = own.sort(descending=True, stable=True)
            if moved := int((to_numpy(ranked.indices) != np.arange(len(own))).sum()):
                self.reference.notes.append(
                    f"{name}: {moved} rows are in the order of their scores in double precision"
                )
            order = ranked.indices[
                self._order(name, ranked.values, boxes[ranked.indices], known[index, : len(boxes), 1:])
            ]
            rois[index, : len(boxes), 1:] = boxes[order]
        return rois

    def _settled_detections(self, name: str, rows: Tensor) -> Tensor:
        """Rows (M, 6) class, box, score by class and falling score; near ties of a class are in the
        recorded order as far as it is known."""
        known = known_values(self.reference, name) if name in self.reference.recorded else None
        if known is None or known.shape != tuple(rows.shape):
            return rows
        own = [torch.nonzero(rows[:, 0] == label).squeeze(1) for label in rows[:, 0].unique()]
        return torch.cat(
            [rows[here[self._order(name, rows[here, 5], rows[here, 1:5], known[here, 1:5])]] for here in own]
        )

    def _order(self, name: str, scores: Tensor, boxes: Tensor, known: np.ndarray) -> Tensor:
        settled = settle_ties(to_numpy(scores), to_numpy(boxes), known)
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
            rule, count = LevelRule(offset=OFFSET, eps=0.0), len(self.model.neck.roi_levels)
            assigned = assign_levels(rows[here], rule, count)
            self._expect(f"{name}/fixed_rois: levels", assigned, np.array(fixed["levels"])[here.numpy()])
        pooled = pool(self.model, levels, rows[here], height)
        hidden = self.model.box.trunk(pooled)
        logits, deltas = self.model.box.predictor(hidden)
        self._add(
            name,
            {
                "fixed_roi_feat": pooled,
                "fixed_fc7": hidden,
                "fixed_cls_score": logits,
                "fixed_bbox_pred": deltas,
            },
        )

    def _expect(self, name: str, value: Any, expected: Any) -> None:
        """Compare exactly with numbers of outputs.json itself."""
        if expected is not None:
            self.computed[name] = Output(value, 0.0, expected)

    def _training(self, train: dict[str, Any]) -> None:
        model, images = self.model, self.reference.note("train", "input").tensor(self.kind)
        sizes = torch.tensor(train["im_info"], dtype=self.kind)[:, :2]
        targets = [
            Target(rows[:, :4], rows[:, 4].long() - 1)
            for image in train["gt_boxes"]
            for rows in [torch.tensor(image, dtype=self.kind).reshape(-1, 5)]
        ]
        draws = np.random.RandomState(self.reference.note("train", "numpy_seed").need("seed"))
        model.rpn.sampler.draws = model.sampler.draws = draws
        found = pyramid(model.train(), images)
        anchors = model.rpn.sampler(found.anchors, [each.boxes for each in targets], sizes.tolist())
        with torch.no_grad():
            rois = self._proposals("train/proposals", images, found, sizes, model.rpn.rules[True])
        samples = model.sampler(list(rois[..., 1:]), targets)
        chosen = as_rois([each.boxes for each in samples])
        pooled = pool(model, found.levels, chosen.flatten(0, 1), float(sizes[0, 0]))
        logits, deltas = model.box.predictor(model.box.trunk(pooled))
        rpn = model.rpn.losses(found.logits, found.delta_maps, anchors)
        box = box_losses(logits, deltas, samples, model.box_beta)
        losses = {
            "loss_rpn_cls": rpn["loss_rpn_objectness"],
            "loss_rpn_box": rpn["loss_rpn_box"],
            "loss_rcnn_cls": box["loss_class"],
            "loss_rcnn_box": box["loss_box"],
        }
        self._add("train", {name: value.reshape(1) for name, value in losses.items()})
        labels = torch.stack([each.labels for each in samples])
        marks = torch.stack([each.labels for each in anchors])
        objects = (labels > 0)[..., None].expand(-1, -1, 4).to(self.kind)
        self._add(
            "train",
            {
                "proposals": rois,
                "rpn_labels": marks,
                "rpn_bbox_targets": torch.stack([each.targets for each in anchors]),
                "rpn_inside_weights": (marks == 1).to(self.kind),
                "rpn_outside_weights": (marks >= 0).to(self.kind) / int((marks[-1] >= 0).sum()),
                "rois": chosen,
                "roi_labels": labels,
                "roi_gt_assign": torch.stack([each.matches for each in samples]),
                "roi_targets": torch.stack([each.targets for each in samples]),
                "roi_inside_weights": objects,
                "roi_outside_weights": objects,
                "cls_prob": logits.softmax(dim=1).unflatten(0, labels.shape),
                "bbox_pred_selected": self._own(deltas, labels.flatten()).unflatten(0, labels.shape),
            },
        )
        self._gradients(sum(losses.values()))
        self._listed(train, rois, marks, labels, chosen)

    def _own(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Deltas (R, 4) of each row's class, or the one set that there is."""
        sets = deltas.unflatten(1, (-1, 4))
        return sets[torch.arange(len(sets)), labels if sets.shape[1] > 1 else 0]

    def _gradients(self, loss: Tensor) -> None:
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        compared = {
            name: trained[ours]
            for ours, theirs in self.origin.items()
            if (name := f"train/grad/{theirs}") in self.reference.recorded and ours in trained
        }
        found = torch.autograd.grad(loss, list(compared.values()), allow_unused=True) if compared else ()
        self.computed |= {
            name: Output(gradient, GRADIENT_TOLERANCE)
            for name, gradient in zip(compared, found, strict=True)
            if gradient is not None
        }

    def _listed(
        self, train: dict[str, Any], rois: Tensor, marks: Tensor, labels: Tensor, chosen: Tensor
    ) -> None:
        """The lists that outputs.json holds beside the arrays."""
        self._expect(
            "train: real proposals", (rois[..., 1:] != 0).any(dim=2).sum(dim=1), train.get("real_proposals")
        )
        for index, listed in enumerate(train.get("sampled_anchors", [])):
            for value, kind in ((1, "fg"), (0, "bg")):
                self._expect(
                    f"train: sampled {kind} anchors of image {index}",
                    torch.nonzero(marks[index] == value).squeeze(1),
                    listed[kind],
                )
        self._expect("train: sampled roi labels", labels, train.get("sampled_roi_labels"))
        if "sampled_rois" in train:
            self.computed["train: sampled rois"] = Output(chosen, 1e-4, train["sampled_rois"])

    def _recipe(self, train: dict[str, Any]) -> None:
        """What trains, with which decay, and the rate of every epoch."""
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        frozen = {
            theirs
            for ours, theirs in self.origin.items()
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
            step = self.reference.note("train", "learning_rate_by_epoch", label).need("decay_epochs")
            recipe = Schedule(
                images_per_batch=1,
                lr=rates[0][1],
                epochs=1000,
                steps=[(step + 1) * k - 1 for k in range(1, 50)],
            )
            own = [[epoch, learning_rate(recipe, epoch - 1, 1)] for epoch, _ in rates]
            self.computed[f"train: learning rate by epoch, {label}"] = Output(own, 1e-9, rates)


def with_probes(reference: Reference, computed: Outputs) -> Outputs:
    """What was computed, and the 512 drawn values of each output whose name is recorded with '@probe'."""
    computed = dict(computed)
    for name in reference.recorded:
        whole = name.removesuffix("@probe")
        output = computed.get(whole)
        if whole != name and isinstance(output, Output):
            flat = to_numpy(output.value).reshape(-1)
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
