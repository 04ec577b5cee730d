"""The ImageNet files that Detectron.pytorch's trainings start from: the backbone's stages after loading each
of them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from detection_zoo.zoo.backbones.resnet import ResNet
from detection_zoo.zoo.parity.base import Output, Reference, Skip
from detection_zoo.zoo.parity.standin import fill, read_checkpoint_description
from detection_zoo.zoo.weights.load import load_backbone_arrays

TOLERANCE = 1e-5  # the folder's own
FORMATS = {".pth": "caffe_resnet_pth", ".pkl": "detectron_imagenet_pkl"}
CONV2 = {".pth": r"layer(\d)\.(\d+)\.conv2\.weight", ".pkl": r"res(\d)_(\d+)_branch2b_w"}


class Body(nn.Module):
    """A backbone by itself, under the name that detectors give it."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone


def make_body(tensors: list[dict[str, Any]], kind: str) -> Body:
    """The ResNet of a file (".pth" or ".pkl"), from the names and shapes (out, in / groups, 3, 3) of its 3x3
    convolutions."""
    found = [
        (int(match[1]), tensor["shape"])
        for tensor in tensors
        if (match := re.fullmatch(CONV2[kind], tensor["name"]))
    ]
    stages = sorted({stage for stage, _ in found})
    blocks = [sum(stage == own for own, _ in found) for stage in stages]
    width, per_group = next(shape for stage, shape in found if stage == stages[0])[:2]
    norm = "group" if any("_gn_" in tensor["name"] for tensor in tensors) else "affine"
    # plain ResNets from Caffe carry the stride on the first 1x1
    first = norm == "affine" and width == per_group
    return Body(
        ResNet(blocks, norm=norm, stride_in_1x1=first, groups=width // per_group, width_per_group=per_group)
    )


def imagenet_outputs(reference: Reference, kind: torch.dtype) -> dict[str, Output | Skip]:
    """The stages (N, C, H, W) of every backbone whose file the parent folder describes."""
    images = reference.note("how").tensor(kind)
    computed: dict[str, Output | Skip] = {}
    for name in dict.fromkeys(output.rpartition(".")[0] for output in reference.recorded):
        description = f"imagenet_{name}.json"
        tensors = read_checkpoint_description(reference.folder.parent, description)["tensors"]
        suffix = ".pth" if any(tensor["name"].startswith("layer") for tensor in tensors) else ".pkl"
        body = make_body(tensors, suffix)
        load_backbone_arrays(
            body,
            {tensor["name"]: fill(tensor) for tensor in tensors},
            FORMATS[suffix],
            where=f"stand-in of {description}",
        )
        with torch.no_grad():
            backbone = body.backbone.to(kind).eval()
            stages = {
                "res1": backbone.stem(images),
                **{f"res{stage[1:]}": value for stage, value in backbone(images).items()},
            }
        computed |= {f"{name}.{stage}": Output(value, TOLERANCE) for stage, value in stages.items()}
    return computed
