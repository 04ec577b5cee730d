"""A small model of every registered detector, trained where this project has weights, and a batch that it can
be trained on."""

from __future__ import annotations

import dataclasses
from functools import cache

import torch
from torch import Tensor, nn

from detection_zoo.zoo.build import assemble, build_model, create_entry, rules_of
from detection_zoo.zoo.data.shapes import make_shapes
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parts.matching import BalancedSampler
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.registry import DETECTORS
from detection_zoo.zoo.settings import with_value

DEMO = [row for row in load_manifests().entries.values() if row.source == "demo"]
# the first trained row of each detector, and one on DetNet
ROWS = {row.detector.name: row.name for row in reversed(DEMO)}
ROWS["detnet"] = next(row.name for row in DEMO if row.backbone.name.startswith("detnet"))
SIDE = 160
# of an image and a level, in place of up to 600 and 100: what is computed for each takes most of the time
FEW = {
    "proposals": {"pre_nms": 100, "post_nms": 50, "collect": 50},
    "training_proposals": {"pre_nms": 200, "post_nms": 100, "collect": 100},
    "detections": {"max_detections": 20},
    "retinanet": {"pre_nms": 100, "max_detections": 20},
}
SIZES = torch.tensor([[SIDE, SIDE], [SIDE, SIDE]])


@cache
def row_of(name: str) -> ModelEntry:
    """The row of a name of ROWS, with few proposals and detections."""
    row = load_manifests().entry(ROWS[name])
    for section, changes in FEW.items():
        for field, value in changes.items() if getattr(row.conventions, section) is not None else ():
            row = with_value(row, f"{section}.{field}", value)
    return row


def family(name: str) -> nn.Module:
    """The trained model of a name of ROWS; of another detector a random one that gives whatever it scores
    highest."""
    if name in ROWS:
        return build_model(row_of(name), "published")
    torch.manual_seed(0)
    row, rules = create_entry("resnet14_slim", name, 8, dataset="shapes"), rules_of(DETECTORS[name])
    sections = {
        field.name: getattr(row.conventions, field.name) or getattr(rules, field.name)
        for field in (() if rules is None else dataclasses.fields(rules))
    }
    changes = {
        field: section.model_copy(update={"score_threshold": 0.0})
        for field, section in sections.items()
        if hasattr(section, "score_threshold")
    }
    return assemble(row.model_copy(update={"conventions": row.conventions.model_copy(update=changes)})).eval()


def works_on_fixed_size(name: str) -> bool:
    """Whether a detector works on lists of fixed size, as it says itself."""
    return build_model(create_entry("resnet14_slim", name), device="meta").needs_any_size is None


FAMILIES = [name for name in DETECTORS if works_on_fixed_size(name)]


def pictures(count: int) -> Tensor:
    """Images (count, 3, 160, 160) of `shapes`, normalised."""
    import numpy as np
    from PIL import Image

    files = sorted((make_shapes() / "val").glob("*.jpg"))[:count]
    pixels = [np.array(Image.open(file).convert("RGB").resize((SIDE, SIDE))) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None]


def targets(row: str) -> list[Target]:
    """Two images with two objects each, with masks and key points where the row trains on them."""
    boxes = torch.tensor([[20.0, 30, 90, 120], [60, 50, 140, 130]])
    labels = torch.tensor([0, 0 if row.startswith("keypoint") else 2])
    outlines = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
    points = None
    if row.startswith("keypoint"):
        count = build_model(ROWS["keypoint_rcnn"], "random").keypoint.upsample.out_channels
        across = torch.linspace(0.2, 0.8, count)
        places = [
            torch.stack([b[0] + across * (b[2] - b[0]), b[1] + across * (b[3] - b[1])], 1) for b in boxes
        ]
        points = torch.cat([torch.stack(places), torch.full((2, count, 1), 2.0)], dim=2)
    masks = outlines if row.startswith("mask") else None
    return [Target(boxes, labels, masks, points, torch.zeros(2, dtype=torch.bool)) for _ in range(2)]


def draw_first(model: nn.Module) -> nn.Module:
    """The model, whose samplers of fixed counts take the first candidates: draws of fixed size are others."""
    samplers = [getattr(part, "sampler", None) for part in model.modules()]
    picks = [getattr(one, "pick", None) for one in samplers] + [getattr(model, "keypoint_sampler", None)]
    for one in picks:
        if isinstance(one, BalancedSampler):
            one.draw = "first"
    return model
