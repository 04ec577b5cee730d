"""Checkpoints of Detectron2's model zoo: pickles of its own module names."""

from __future__ import annotations

from typing import Any

from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import COUNTERS, CheckpointFormat, Translation, translate_names

_COMPUTED = (
    (r"pixel_(mean|std)", "from the configuration"),
    (r"(.*\.)?anchor_generator\.cell_anchors\.\d+", "computed from the configuration"),
    (COUNTERS, "a counter of training, which frozen norms do not keep"),
)


def _detector(arrays: dict[str, Any]) -> Translation:
    return translate_names(arrays, ((r"^", "model."),), _COMPUTED)


CHECKPOINT_FORMATS.register("detectron2_pkl")(CheckpointFormat(read_arrays, _detector))
