"""Checkpoints of PytorchSSD-HarDNet and Pytorch-HarDNet, with or without `module.` and batch counters."""

from __future__ import annotations

import re
from typing import Any

from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import COUNTERS, CheckpointFormat, Translation, translate_names

_BRIDGE_85 = r"backbone\.bridge\..*"  # trained with the detector: not in the base files of HarDNet85
_DETECTOR = (
    (r"^bridge\.", "backbone.bridge."),
    (r"^(L2Norm|Norm)\.", "pyramid.norm."),
    (r"^extras\.", "pyramid.extras."),
    (r"^loc\.", "box_head."),
    (r"^conf\.", "class_head."),
    (r"\.branch(\d)\.", r".branches.\1."),
    (r"\.ConvLinear\.", ".linear."),
    (r"^(pyramid\..*)\.bn\.", r"\1.norm."),
)


def _body(arrays: dict[str, Any], prefix: str) -> tuple[str, str]:
    """The rule for the backbone's names: HarDNet's blocks have children (`0.conv.weight`), VGG's are bare
    layers (`0.weight`)."""
    start = re.escape(prefix)
    bare = any(re.match(rf"{start}\d+\.(weight|bias)$", name) for name in arrays)
    return rf"^{start}(\d+)\.", r"backbone.features.\1." if bare else r"backbone.stages.\1."


def _detector(arrays: dict[str, Any]) -> Translation:
    return translate_names(arrays, (_body(arrays, "base."), *_DETECTOR), defaults=COUNTERS)


def _base(arrays: dict[str, Any]) -> Translation:
    return translate_names(arrays, (_body(arrays, ""),), defaults=f"{COUNTERS}|{_BRIDGE_85}")


def _classifier(arrays: dict[str, Any]) -> Translation:
    rules = ((r"^base\.\d+\.3\.", "fc."), (r"^base\.", "backbone.stages."))
    return translate_names(arrays, rules, defaults=COUNTERS)


CHECKPOINT_FORMATS.register("pytorchssd_pth")(CheckpointFormat(read_arrays, _detector))
CHECKPOINT_FORMATS.register("pytorchssd_base_pth")(CheckpointFormat(read_arrays, _base))
CHECKPOINT_FORMATS.register("hardnet_imagenet_pth")(CheckpointFormat(read_arrays, _classifier))
