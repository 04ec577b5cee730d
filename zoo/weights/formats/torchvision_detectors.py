"""Checkpoints of torchvision's detectors (names of the current code or of older versions) and of its
MobileNetV2."""

from __future__ import annotations

from typing import Any

from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import (
    COUNTERS,
    CheckpointFormat,
    Rules,
    Translation,
    translate_names,
    with_counters,
)

_OLDER: Rules = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0."),
)
# convolutions and ReLUs in one list; FCOS also has norms, and still uses this form
_OLDER_RETINANET = (
    r"^(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)$",
    lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
)


def _detector(arrays: dict[str, Any]) -> Translation:
    plain = (
        "head.classification_head.conv.2.weight" in arrays
        and "head.classification_head.conv.1.weight" not in arrays
    )
    rules = (*_OLDER, *((_OLDER_RETINANET,) if plain else ()), (r"^", "model."))
    return with_counters(translate_names(arrays, rules))


def _mobilenet(arrays: dict[str, Any]) -> Translation:
    rules = ((r"^features\.", "backbone.features."), (r"^classifier\.1\.", "fc."))
    return translate_names(arrays, rules, defaults=COUNTERS)


CHECKPOINT_FORMATS.register("torchvision_mobilenet_pth")(CheckpointFormat(read_arrays, _mobilenet))
CHECKPOINT_FORMATS.register("torchvision_detection_pth")(CheckpointFormat(read_arrays, _detector))
