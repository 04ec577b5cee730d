"""Checkpoints of maskrcnn-benchmark and its VoVNet fork, and their ImageNet initial weights."""

from __future__ import annotations

from typing import Any

from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import CheckpointFormat, Translation, translate_names, with_counters

_RESNET = (
    (r"(^|\.)stem\.conv1\.", r"\1stem.conv.conv."),
    (r"(^|\.)stem\.bn1\.", r"\1stem.conv.norm."),
    (r"(^|\.)layer(\d)\.(\d+)\.", lambda m: f"{m[1]}c{int(m[2]) + 1}.{m[3]}."),
    (r"(\.\d+)\.bn([123])\.", r"\1.conv\2.norm."),
    (r"(c\d\.\d+)\.conv([123])\.(weight|bias)$", r"\1.conv\2.conv.\3"),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_VOVNET = (
    (r"(^|\.)stem\.stem_(\d)/", lambda m: f"{m[1]}stem.{int(m[2]) - 1}."),
    (r"(^|\.)stage(\d)\.OSA\d_(\d+)\.", lambda m: f"{m[1]}c{m[2]}.{int(m[3]) - 1}."),
    (r"\.layers\.(\d)\.OSA\d_\d+_\d+/", r".layers.\1."),
    (r"\.concat\.OSA\d_\d+_concat/", ".concat."),
)
_HEADS = (
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.fpn_inner(\d)\.", lambda m: f"neck.lateral.c{int(m[1]) + 1}."),
    (r"^backbone\.fpn\.fpn_layer(\d)\.", lambda m: f"neck.output.c{int(m[1]) + 1}."),
    (r"^backbone\.fpn\.top_blocks\.p(\d)\.", r"neck.extra.p\1."),
    (
        r"^rpn\.head\.(cls|bbox)_tower\.(\d+)\.",
        lambda m: f"head.{'class' if m[1] == 'cls' else 'box'}_tower.{int(m[2]) // 2}.conv.",
    ),
    (r"^roi_heads\.(box|mask|keypoint)\.feature_extractor\.head\.c5\.", r"box.trunk.stage."),
    (r"^roi_heads\.box\.feature_extractor\.fc([67])\.", lambda m: f"box.trunk.fc{m[1]}."),
    (r"^roi_heads\.box\.predictor\.cls_score\.", "box.predictor.class_logits."),
    (r"^roi_heads\.box\.predictor\.bbox_pred\.", "box.predictor.box_deltas."),
    (r"^roi_heads\.mask\.feature_extractor\.mask_fcn(\d)\.", lambda m: f"mask.convs.{int(m[1]) - 1}."),
    (r"^roi_heads\.mask\.predictor\.conv5_mask\.", "mask.upsample."),
    (r"^roi_heads\.mask\.predictor\.mask_fcn_logits\.", "mask.logits."),
    (
        r"^roi_heads\.keypoint\.feature_extractor\.conv_fcn(\d)\.",
        lambda m: f"keypoint.convs.{int(m[1]) - 1}.conv.",
    ),
    (r"^roi_heads\.keypoint\.predictor\.kps_score_lowres\.", "keypoint.upsample."),
)
# a convolution with GroupNorm is a Sequential of two in the file; one without is a bare layer
_CONV_OR_PAIR = (
    (r"^(neck\.(?:lateral|output)\.c\d|mask\.convs\.\d)\.0\.", r"\1.conv."),
    (r"^(neck\.(?:lateral|output)\.c\d|mask\.convs\.\d)\.1\.", r"\1.norm."),
    (r"^(neck\.(?:lateral|output)\.c\d|mask\.convs\.\d)\.(weight|bias)$", r"\1.conv.\2"),
)
_ANCHORS = (r"rpn\.anchor_generator\.cell_anchors\.\d+", "anchor boxes, fixed by the configuration")


def _detector(arrays: dict[str, Any]) -> Translation:
    """The C4 mask head shares the box head's last stage, which the file contains twice: the later copy is
    used, as in the source."""
    retinanet = (
        r"^rpn\.head\.(cls_logits|bbox_pred)\.",
        lambda m: f"head.{'class_logits' if m[1] == 'cls_logits' else 'box_deltas'}.",
    )
    rpn = (
        (r"^rpn\.head\.conv\.", "rpn.head.conv."),
        (r"^rpn\.head\.cls_logits\.", "rpn.head.objectness."),
        (r"^rpn\.head\.bbox_pred\.", "rpn.head.deltas."),
    )
    # conv, norm, ReLU in one list, or conv, ReLU
    step = 3 if any(".xconvs.1." in name for name in arrays) else 2
    convs = (
        r"^roi_heads\.box\.feature_extractor\.xconvs\.(\d+)\.",
        lambda m: f"box.trunk.convs.{int(m[1]) // step}.{('conv', 'norm')[int(m[1]) % step]}.",
    )
    dense = (retinanet,) if any(name.startswith("rpn.head.cls_tower.") for name in arrays) else rpn
    return translate_names(
        arrays, (*_RESNET, *_VOVNET, *_HEADS, *_CONV_OR_PAIR, convs, *dense), [_ANCHORS], last_wins=True
    )


def _vovnet_classifier(arrays: dict[str, Any]) -> Translation:
    rules = (*_VOVNET, (r"^(stem|c\d)\.", r"backbone.\1."), (r"^classifier\.", "fc."))
    return with_counters(translate_names(arrays, rules))


def _torchvision_classifier(arrays: dict[str, Any]) -> Translation:
    rules = ((r"^(conv1|bn1)\.", r"stem.\1."), *_RESNET, (r"^(stem|c\d)\.", r"backbone.\1."))
    return with_counters(translate_names(arrays, rules))


CHECKPOINT_FORMATS.register("maskrcnn_benchmark_pth")(CheckpointFormat(read_arrays, _detector))
CHECKPOINT_FORMATS.register("vovnet_imagenet_pth")(CheckpointFormat(read_arrays, _vovnet_classifier))
CHECKPOINT_FORMATS.register("torchvision_resnet_pth")(CheckpointFormat(read_arrays, _torchvision_classifier))
