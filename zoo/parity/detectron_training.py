"""Training of Detectron.pytorch's models beside what was recorded: losses from the recorded samples, and from
samples drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnn
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, Skip
from detection_zoo.zoo.parity.detectron_model import LoadedModel, recorded_boxes
from detection_zoo.zoo.parity.files import read_arrays
from detection_zoo.zoo.parts.anchor_targets import SampledAnchors
from detection_zoo.zoo.parts.keypoint_head import keypoint_loss
from detection_zoo.zoo.parts.mask_head import mask_loss
from detection_zoo.zoo.parts.norm import FrozenAffine
from detection_zoo.zoo.parts.proposals import Proposals
from detection_zoo.zoo.parts.roi_heads import box_losses, with_image_index
from detection_zoo.zoo.parts.rpn import by_anchor
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.recipe import learning_rate, parameter_groups

LOSSES = 1e-4
GRADIENTS = 1e-3
DRAWS = 1e-4
NEIGHBOURS = 1e-2  # boxes (pixels) closer than this are one box
TIE = 2e-6  # proposals' scores closer than this may change places with the order of a sum


def training_outputs(folder: LoadedModel) -> dict[str, Output | Skip]:
    """Losses, gradients, optimiser groups and rates of a folder of a model (float tensors of one batch)."""
    step = _Step(folder)
    computed = step.losses_and_gradients()
    computed |= step.drawn_anew()
    computed |= step.recipe()
    return computed


class _Step:
    """One training step of a folder."""

    def __init__(self, folder: LoadedModel) -> None:
        self.folder, self.model, self.kind = folder, folder.model, folder.kind
        self.meta = folder.meta["training"]
        self.count = self.meta["ims_per_batch"]
        note = folder.reference.note("training", "how")
        self.scale, self.seed = note.need("scale", "seed")
        self.images = note.tensor(self.kind, N=self.count)
        self.sizes = torch.tensor(
            [
                [round(each["height"] * self.scale), round(each["width"] * self.scale)]
                for each in self.meta["gt"]
            ]
        )
        self.model.train()

    @cached_property
    def batch(self) -> dict[str, np.ndarray]:
        """train_batch.npz: what the original's samplers chose."""
        return read_arrays(self.folder.reference.folder / "train_batch.npz", "train_batch.npz")

    def tensor(self, name: str) -> Tensor:
        value = torch.from_numpy(self.batch[name])
        return value.to(self.kind) if value.is_floating_point() else value.long()

    def recorded_labels(self, levels: list[str]) -> list[SampledAnchors]:
        """The recorded anchors of each image, level after level."""
        ends = [f"_fpn{name[1:]}" for name in levels] if len(levels) > 1 else [""]
        labels = torch.cat(
            [by_anchor(self.tensor(f"rpn_labels{end}").to(self.kind), 1).squeeze(2) for end in ends], dim=1
        )
        targets = torch.cat([by_anchor(self.tensor(f"rpn_targets{end}"), 4) for end in ends], dim=1)
        return [SampledAnchors.of(*own) for own in zip(labels, targets, strict=True)]

    def of_images(self, rois: Tensor) -> list[Tensor]:
        return [rois[rois[:, 0] == image, 1:] for image in range(self.count)]

    def losses_and_gradients(self) -> dict[str, Output | Skip]:
        """Every loss from the recorded samples, their sum, the share of right classes, and the gradients'
        norms."""
        model = self.model
        features = model.features(self.images)
        self.features = {name: level.detach() for name, level in features.items()}
        levels = list(features.values())
        logits, deltas = model.rpn.head(levels)
        parts = (self.tensor(name) for name in ("rois", "labels", "bbox_targets"))
        sampled = recorded_boxes(*parts, self.count)
        hidden, class_logits, box_deltas = model.box(features, [each.boxes for each in sampled])
        losses: dict[str, Tensor] = {}
        for name, level in zip(
            features,
            model.rpn.level_losses(logits, deltas, self.recorded_labels(list(features))),
            strict=True,
        ):
            end = f"_fpn{name[1:]}" if len(features) > 1 else ""
            losses |= {
                f"loss_rpn_cls{end}": level["loss_rpn_objectness"],
                f"loss_rpn_bbox{end}": level["loss_rpn_box"],
            }
        box = box_losses(class_logits, box_deltas, sampled, model.box_beta)
        losses |= {"loss_cls": box["loss_class"], "loss_bbox": box["loss_box"]}
        if isinstance(model, MaskRcnn):
            losses["loss_mask"] = self.mask_loss(features, hidden)
        if isinstance(model, KeypointRcnn):
            losses["loss_kps"] = self.keypoint_loss(features)
        total = sum(losses.values())
        right = (
            (class_logits.argmax(dim=1) == torch.cat([each.labels for each in sampled])).to(self.kind).mean()
        )
        computed = {f"train.{name}": Output(value.reshape(1), LOSSES) for name, value in losses.items()}
        return computed | {
            "train.total_loss": Output(total.reshape(1), LOSSES),
            "train.accuracy_cls": Output(right.reshape(1), 1e-6),
            "train.grad_norms": Output(self.gradient_norms(total), GRADIENTS),
        }

    def mask_loss(self, features: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """From the recorded masks; a C4 head reads the box trunk's maps of the RoIs that have one."""
        model = self.model
        read = (
            hidden[torch.nonzero(self.tensor("roi_has_mask")).squeeze(1)]
            if model.mask.pooler is None
            else model.mask_features(features, self.of_images(self.tensor("mask_rois")))
        )
        return mask_loss(
            model.mask(read), self.tensor("mask_labels"), self.tensor("mask_targets").to(self.kind)
        )

    def keypoint_loss(self, features: dict[str, Tensor]) -> Tensor:
        """From the recorded cells."""
        heatmaps = self.model.keypoint(
            self.model.keypoint.pooler(features, self.of_images(self.tensor("keypoint_rois")))
        )
        shape = heatmaps.shape[:2]
        return keypoint_loss(
            heatmaps,
            self.tensor("keypoint_locations").view(shape),
            self.tensor("keypoint_weights").view(shape) > 0,
        )

    def gradient_norms(self, loss: Tensor) -> Tensor:
        """L2 norms in the recorded order."""
        ours = {theirs: name for name, theirs in self.folder.origin.items()}
        names = [ours[name] for name in self.meta["grad_norm_parameters"]]
        parameters = [self.model.get_parameter(name) for name in names]
        return torch.stack([gradient.norm() for gradient in torch.autograd.grad(loss, parameters)])

    def targets(self) -> list[Target]:
        """Ground truth of each image, in pixels of the input."""
        found = []
        for image in self.meta["gt"]:
            boxes = torch.tensor(image["boxes"], dtype=self.kind)
            keypoints = (
                torch.tensor(image["gt_keypoints"], dtype=self.kind).transpose(1, 2)
                if "gt_keypoints" in image
                else None
            )
            factor = torch.tensor([self.scale, self.scale, 1.0], dtype=self.kind)
            polygons = [
                [[value * self.scale for value in part] for part in each] if isinstance(each, list) else []
                for each in image["segms"]
            ]
            found.append(
                Target(
                    boxes * self.scale,
                    torch.tensor(image["gt_classes"]) - 1,
                    polygons,
                    None if keypoints is None else keypoints * factor,
                    torch.tensor(image["is_crowd"]),
                    (self.scale, self.scale),
                )
            )
        return found

    def drawn_anew(self) -> dict[str, Output | Skip]:
        """The same step with samples drawn from the recorded seed: what was drawn, and its losses."""
        state = np.random.get_state()
        np.random.seed(self.seed)
        self.model.features = lambda images: self.features  # of the same images
        try:
            with torch.no_grad():
                done = self.model.training_step(self.images, self.sizes, self.targets())
        finally:
            np.random.set_state(state)
            del self.model.features
        counts = [
            len(each.boxes) + len(image["boxes"])
            for each, image in zip(done.proposals, self.meta["gt"], strict=True)
        ]
        rois = with_image_index([each.boxes for each in done.sampled])
        rois, moved = settle_draws(rois, self.tensor("rois"), done.proposals)
        if moved:
            self.folder.reference.notes.append(
                f"drawn.rois: {moved} rows are a neighbour of nearly equal score, as recorded"
            )
        anchors = torch.cat([each.labels for each in self.recorded_labels(list(self.model.neck.specs))])
        recorded = self.folder.reference.recorded["train.total_loss"]["samples"]
        labels, deltas = (
            torch.cat([getattr(each, part) for each in done.sampled]) for part in ("labels", "targets")
        )
        return {
            "drawn.candidates": Output(counts, 0.0, self.meta["candidate_boxes_per_image"]),
            "drawn.anchor_labels": Output(torch.cat([each.labels for each in done.labels]), 0.0, anchors),
            "drawn.rois": Output(rois, DRAWS, self.batch["rois"]),
            "drawn.labels": Output(labels, 0.0, self.batch["labels"]),
            "drawn.box_targets": Output(deltas, DRAWS, self.batch["bbox_targets"]),
            "drawn.total_loss": Output(sum(done.losses.values()).reshape(1), LOSSES, recorded),
        }

    def recipe(self) -> dict[str, Output | Skip]:
        """Which tensors are frozen, how many are in each group of the optimiser, and the rate of some
        updates."""
        schedule = load_manifests().schedules[self.folder.row.schedule]
        counts = {"weights": 0, "biases": 0, "GroupNorm weights": 0}
        modules = dict(self.model.named_modules())
        for group in parameter_groups(self.model, schedule):
            for name in group["names"]:
                norm = isinstance(modules[name.rpartition(".")[0]], torch.nn.GroupNorm)
                counts["biases" if name.endswith("bias") else "GroupNorm weights" if norm else "weights"] += 1
        rules = [
            [group["lr_factor"], group["weight_decay"]] for group in parameter_groups(self.model, schedule)
        ]
        recorded = [
            [group["lr"], group["weight_decay"]] for group in self.meta["param_groups"] if group["count"]
        ]
        frozen = {
            self.folder.origin[name]
            for name, parameter in self.model.named_parameters()
            if not parameter.requires_grad and name in self.folder.origin
        }
        for prefix, module in self.model.named_modules():
            if isinstance(module, FrozenAffine):
                frozen |= {self.folder.origin[f"{prefix}.{leaf}"] for leaf in ("weight", "bias")}
        wanted = {
            name
            for name in self.meta["frozen"]
            if not name.startswith(("Mask_Head.res5.", "Keypoint_Outs.upsample."))
        }
        rates = self.folder.meta["lr_schedule"]["at"]  # of some updates
        sizes = [group["count"] for group in self.meta["param_groups"]]
        return {
            "recipe.group_sizes": Output(list(counts.values()), 0.0, sizes),
            "recipe.group_rules": Output(sorted(rules), 1e-9, sorted(recorded)),
            "recipe.frozen_that_differ": Output(len(frozen ^ wanted), 0.0, 0),
            "recipe.learning_rates": Output(
                [learning_rate(schedule, int(iteration)) for iteration in rates], 1e-9, list(rates.values())
            ),
        }


def settle_draws(rois: Tensor, recorded: Tensor, proposals: Sequence[Proposals]) -> tuple[Tensor, int]:
    """Sampled boxes, and how many changed: where two proposals of nearly equal scores are in the other order
    in the record, the one that was drawn.

    Args:
        rois: (R, 5) image and box. recorded: (R, 5) too, else nothing changes. proposals: of each image.
    """
    settled, moved = rois.clone(), 0
    if rois.shape != recorded.shape:
        return settled, moved
    for row in ((rois - recorded).abs().amax(dim=1) > NEIGHBOURS).nonzero()[:, 0].tolist():
        image = proposals[int(rois[row, 0])]
        apart, at = (
            (image.boxes[None] - torch.stack([rois[row, 1:], recorded[row, 1:]])[:, None])
            .abs()
            .amax(dim=2)
            .min(dim=1)
        )
        if (
            apart.max() < NEIGHBOURS
            and (at[0] - at[1]).abs() == 1
            and (image.scores[at[0]] - image.scores[at[1]]).abs() < TIE
        ):
            settled[row, 1:], moved = image.boxes[at[1]], moved + 1
    return settled, moved
