"""Checkpoints of DetNet_pytorch: detectors (`fpn_{session}_{epoch}_{step}.pth`)
and the ImageNet classifier."""

from __future__ import annotations

from typing import Any

from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import COUNTERS, CheckpointFormat, Translation, translate_names

_BLOCKS = (
    (r"^(backbone\.c\d\.\d+)\.conv([123])\.", r"\1.conv\2.conv."),
    (r"^(backbone\.c\d\.\d+)\.bn([123])\.", r"\1.conv\2.norm."),
    (r"\.(downsample|extra_conv)\.0\.", ".shortcut.conv."),
    (r"\.(downsample|extra_conv)\.1\.", ".shortcut.norm."),
)
_DETECTOR = (
    (r"^RCNN_layer0\.0\.", "backbone.stem.conv.conv."),
    (r"^RCNN_layer0\.1\.", "backbone.stem.conv.norm."),
    (r"^RCNN_layer(\d)\.0\.(\d+)\.", lambda m: f"backbone.c{int(m[1]) + 1}.{m[2]}."),
    *_BLOCKS,
    (r"^RCNN_toplayer\.", "neck.top."),
    (r"^RCNN_latlayer(\d)\.", lambda m: f"neck.lateral.{int(m[1]) - 1}."),
    (r"^RCNN_rpn\.RPN_Conv\.", "rpn.head.conv."),
    (r"^RCNN_rpn\.RPN_cls_score\.", "rpn.head.objectness."),
    (r"^RCNN_rpn\.RPN_bbox_pred\.", "rpn.head.deltas."),
    (r"^RCNN_top\.0\.", "box.trunk.conv1."),
    (r"^RCNN_top\.2\.", "box.trunk.conv2."),
    (r"^RCNN_cls_score\.", "box.predictor.class_logits."),
    (r"^RCNN_bbox_pred\.", "box.predictor.box_deltas."),
)
_CLASSIFIER = (
    (r"^conv1\.", "backbone.stem.conv.conv."),
    (r"^bn1\.", "backbone.stem.conv.norm."),
    (r"^layer(\d)\.(\d+)\.", lambda m: f"backbone.c{int(m[1]) + 1}.{m[2]}."),
    *_BLOCKS,
)
_COUNTER = (COUNTERS, "a counter of training")
_DROP = (_COUNTER, (r"RCNN_roi_feat_ds\..*", "a convolution that the original never uses"))


def _detector(arrays: dict[str, Any]) -> Translation:
    """Smoothing layers are numbered from the coarsest upsampled map: after DetNet's two plain sums, from the
    first with a ResNet."""
    plain = 2 if any(name.startswith("RCNN_layer5.") for name in arrays) else 0
    smooth = (r"^RCNN_smooth(\d)\.", lambda m: f"neck.smooth.{int(m[1]) - 1 + plain}.")
    return translate_names(arrays, (*_DETECTOR, smooth), _DROP)


def _classifier(arrays: dict[str, Any]) -> Translation:
    return translate_names(arrays, _CLASSIFIER, [_COUNTER], defaults=COUNTERS)


CHECKPOINT_FORMATS.register("detnet_pytorch_pth")(CheckpointFormat(read_arrays, _detector))
CHECKPOINT_FORMATS.register("detnet_imagenet_pth")(CheckpointFormat(read_arrays, _classifier))
