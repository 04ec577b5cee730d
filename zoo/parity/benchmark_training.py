"""Training of maskrcnn-benchmark's models beside what was recorded: samples, losses, gradients and the
optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.detectors.faster_rcnn import RcnnTraining
from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnn
from detection_zoo.zoo.detectors.retinanet import RetinaNet
from detection_zoo.zoo.parity.base import Output, ParityError
from detection_zoo.zoo.parity.benchmark_batches import Batch
from detection_zoo.zoo.parity.benchmark_model import LoadedModel
from detection_zoo.zoo.parts.matching import BalancedSampler
from detection_zoo.zoo.parts.proposals import Proposals
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.recipe import learning_rate, parameter_groups


def add_training(folder: LoadedModel, training: Mapping[str, Any]) -> None:
    """Samples, losses and gradients of one step, from its description in outputs.json; the model is left in
    training mode."""
    model, batch = folder.model.train(), folder.batches[training["batch"]]
    targets = [parse_target(described) for described in training["targets"]]
    if not isinstance(model, RetinaNet):
        for drawn in (model.sampler.pick, model.rpn.sampler.pick, getattr(model, "keypoint_sampler", None)):
            if isinstance(drawn, BalancedSampler):
                drawn.draw = "first"
    if isinstance(model, RetinaNet):
        losses, names = (
            _dense_training(folder, batch, targets),
            {"loss_class": "loss_retina_cls", "loss_box": "loss_retina_reg"},
        )
    else:
        with folder.near_proposals() as choices:
            step = model.training_step(batch.images, batch.sizes, targets)
            if folder.settled(choices, lambda: _add_proposals(folder, choices.again(), targets)):
                step = model.training_step(batch.images, batch.sizes, targets)
        _add_samples(folder, step, targets)
        losses, names = (
            step.losses,
            {
                "loss_rpn_objectness": "loss_objectness",
                "loss_rpn_box": "loss_rpn_box_reg",
                "loss_class": "loss_classifier",
                "loss_box": "loss_box_reg",
                "loss_mask": "loss_mask",
                "loss_keypoint": "loss_kp",
            },
        )
    for name, value in losses.items():
        folder.add_list(f"train.{names[name]}", value.reshape(1))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = {
        output: parameter
        for ours, theirs in (*folder.translation.origin.items(), *folder.translation.aliases.items())
        if (output := f"train.grad.{theirs.removeprefix('module.')}") in folder.reference.recorded
        and (parameter := trained.get(ours)) is not None
    }
    if parameters:
        torch.stack(list(losses.values())).sum().backward(inputs=list(parameters.values()))
    for output, parameter in parameters.items():
        if parameter.grad is not None:
            folder.computed[output] = Output(parameter.grad, folder.tolerances.gradients)


def _file_names(folder: LoadedModel) -> dict[str, str]:
    """Names of the model's tensors -> the source's own, the first of several, without the wrapper's
    prefix."""
    return {
        ours: theirs.removeprefix("module.")
        for ours, theirs in (folder.translation.origin | folder.translation.aliases).items()
    }


def _dense_training(folder: LoadedModel, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
    raw = folder.model.raw(batch.images, batch.sizes)
    labels = [folder.model.label(torch.cat(raw.anchors), target) for target in targets]
    for i, each in enumerate(labels):
        positive = torch.nonzero(each.labels > 0).squeeze(1)
        folder.add_exact(f"train.retina.labels.image{i}", each.labels)
        folder.add_exact(f"train.retina.positive.image{i}", positive)
        folder.add_list(f"train.retina.targets_at_positive.image{i}", each.targets[positive], "dx dy dw dh")
    return folder.model.reduce(raw, labels)


def _add_proposals(folder: LoadedModel, found: Sequence[Proposals], targets: Sequence[Target]) -> None:
    for i, (proposals, target) in enumerate(zip(found, targets, strict=True)):
        truth, name = target.boxes.to(proposals.boxes.dtype), f"train.proposals.image{i}"
        folder.add_boxes(f"{name}.boxes", torch.cat([proposals.boxes, truth]))
        scores = torch.cat([proposals.scores, proposals.scores.new_ones(len(truth))])
        folder.add_list(f"{name}.objectness", scores)


def _add_samples(folder: LoadedModel, step: RcnnTraining, targets: Sequence[Target]) -> None:
    for i, (labels, sampled, target) in enumerate(zip(step.labels, step.sampled, targets, strict=True)):
        picked = {"rpn": labels, "roi": replace(sampled, labels=sampled.candidate_labels)}
        if isinstance(folder.model, KeypointRcnn):
            picked["kp"] = folder.model.sample_keypoints(sampled, target)
        for head, each in picked.items():
            for part in ("positive", "negative", "labels"):
                folder.add_exact(f"train.{head}.{part}.image{i}", getattr(each, part))
        folder.add_exact(f"train.roi.sampled_labels.image{i}", sampled.labels)
        folder.add_boxes(f"train.roi.sampled_boxes.image{i}", sampled.boxes)
        folder.add_list(f"train.roi.sampled_targets.image{i}", sampled.targets, "dx dy dw dh")


def add_optimiser(folder: LoadedModel, recorded: Mapping[str, Any]) -> None:
    """Groups of parameters, frozen parameters, buffers, and rates: numbers of outputs.json."""
    names = _file_names(folder)
    if folder.schedule is None:
        raise ParityError(
            f"{folder.reference.folder}: records an optimiser, and neither settings nor a row's schedule"
            " describe it"
        )
    groups = parameter_groups(folder.model, folder.schedule)
    ours = {(group["lr_factor"], group["weight_decay"]): group for group in groups}
    folder.computed["optimiser.groups"] = Output(len(groups), 0.0, len(recorded["groups"]))
    for i, group in enumerate(recorded["groups"]):
        own = ours.get((float(group["lr_times"]), float(group["weight_decay"])), {"params": [], "names": []})
        folder.computed[f"optimiser.group{i}.parameters"] = Output(
            len(own["params"]), 0.0, group["parameters"]
        )
        folder.computed[f"optimiser.group{i}.scalars"] = Output(
            sum(p.numel() for p in own["params"]), 0.0, group["scalars"]
        )
        missing = set(group.get("examples", [])) - {names[name] for name in own["names"]}
        folder.computed[f"optimiser.group{i}.examples_missing"] = Output(len(missing), 0.0, 0)
    frozen = {
        names[name] for name, parameter in folder.model.named_parameters() if not parameter.requires_grad
    }
    folder.computed["optimiser.frozen_differing"] = Output(
        len(frozen ^ set(recorded["frozen_parameters"])), 0.0, 0
    )
    if "buffers_never_trained" in recorded:
        # buffers there; here they follow from the configuration
        anchors = len(folder.reference.description.get("not_filled", []))
        held = sum(name in names for name, _ in folder.model.named_buffers())
        folder.computed["optimiser.buffers"] = Output(held + anchors, 0.0, recorded["buffers_never_trained"])
    if rates := recorded.get("learning_rate"):
        value = [learning_rate(folder.schedule, k - 1) for k in rates["iteration"]]
        folder.computed["optimiser.learning_rate"] = Output(value, 1e-12, rates["lr"])


def parse_target(described: Mapping[str, Any]) -> Target:
    """A training target from its description: boxes, labels from 1, polygons, key points as flat lists of 3 *
    P numbers."""
    keypoints = described.get("keypoints")
    points = (
        None
        if keypoints is None
        else torch.tensor(keypoints, dtype=torch.float32).reshape(len(keypoints), -1, 3)
    )
    boxes = torch.tensor(described["boxes"], dtype=torch.float32).reshape(-1, 4)
    return Target(
        boxes, torch.tensor(described["labels"], dtype=torch.int64) - 1, described.get("polygons"), points
    )
