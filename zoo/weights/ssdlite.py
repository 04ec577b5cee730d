"""State dicts of SSDLite on MobileNetV2 with torchvision's names, as converted from TensorFlow's model."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registry import CHECKPOINT_FORMATS
from .rename import CheckpointFormat, Translation, translate_names

_RULES = (
    (r"^features\.", "backbone.features."),
    (r"^extra\.", "pyramid.extras."),
    (r"^regression_head\.module_list\.", "box_head."),
    (r"^classification_head\.module_list\.", "class_head."),
)
_ANCHORS = (r"anchors_cxcywh", "prior boxes, which the detector's own table gives")


def _read(path: Path) -> dict[str, Any]:
    from .load import read_tensors

    return read_tensors(path)


def _detector(arrays: dict[str, Any]) -> Translation:
    return translate_names(arrays, _RULES, [_ANCHORS])


CHECKPOINT_FORMATS.register("ssdlite_pth")(CheckpointFormat(_read, _detector))
