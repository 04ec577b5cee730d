"""Checkpoints of Detectron2's model zoo: pickles of its own module names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.rename import CheckpointFormat, Translation, translate_names

_COMPUTED = (
    (r"pixel_(mean|std)", "from the configuration"),
    (r"(.*\.)?anchor_generator\.cell_anchors\.\d+", "computed from the configuration"),
    (r".*\.num_batches_tracked", "a counter of training, which frozen norms do not keep"),
)


def _read(path: Path) -> dict[str, Any]:
    from detection_zoo.zoo.weights.pickle.safe import load_pickle

    content = load_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(
            f"{path}: a file of Detectron2 holds a dict with 'model'; is it the right file?"
        )
    return content["model"]


def _detector(arrays: dict[str, Any]) -> Translation:
    return translate_names(arrays, ((r"^", "model."),), _COMPUTED)


CHECKPOINT_FORMATS.register("detectron2_pkl")(CheckpointFormat(_read, _detector))
