"""Checkpoints of Detectron (Caffe2 pickles) and Detectron.pytorch, and their ImageNet initial weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import CheckpointFormat, Rules, Translation, rename, translate_names

NORM_EPS = 1e-5  # of the batch normalisation that Caffe's ResNets were trained with

# Caffe2 blobs. A residual block is <stage>_<block>_branch<which>; `fpn_inner_<blob>` are laterals,
# `fpn_<blob>` outputs.
_BLOB_BODY: Rules = (
    (r"^conv1_w$", "stem.conv.conv.weight"),
    (r"^(?:res_conv1_bn|conv1_gn)_s$", "stem.conv.norm.weight"),
    (r"^(?:res_conv1_bn|conv1_gn)_b$", "stem.conv.norm.bias"),
    (r"^res(\d)_(\d+)_branch1_", r"c\1.\2.shortcut."),
    (r"^res(\d)_(\d+)_branch2([abc])_", lambda m: f"c{m[1]}.{m[2]}.conv{'abc'.index(m[3]) + 1}."),
    (r"^(c\d\.\d+\.\w+)\.w$", r"\1.conv.weight"),
    (r"^(c\d\.\d+\.\w+)\.[bg]n_s$", r"\1.norm.weight"),
    (r"^(c\d\.\d+\.\w+)\.[bg]n_b$", r"\1.norm.bias"),
    (r"^(stem|c\d)\.", r"backbone.\1."),
)
_BLOB_HEADS: Rules = (
    (r"^fpn_inner_res(\d)_\d+_sum(?:_lateral)?_", r"neck.lateral.c\1:"),
    (r"^fpn_res(\d)_\d+_sum_", r"neck.output.c\1:"),
    (r"^fpn_([67])_", r"neck.extra.p\1_"),
    (r"^conv_rpn(?:_fpn\d)?_", "rpn.head.conv_"),
    (r"^rpn_cls_logits(?:_fpn\d)?_", "rpn.head.objectness_"),
    (r"^rpn_bbox_pred(?:_fpn\d)?_", "rpn.head.deltas_"),
    (
        r"^retnet_(cls|bbox)_conv_n(\d)_fpn\d_",
        lambda m: f"head.{'class' if m[1] == 'cls' else 'box'}_tower.{m[2]}:",
    ),
    (r"^retnet_cls_pred_fpn\d_", "head.class_logits_"),
    (r"^retnet_bbox_pred_fpn\d_", "head.box_deltas_"),
    (r"^fc([67])_", r"box.trunk.fc\1_"),
    (r"^head_conv(\d+)_", lambda m: f"box.trunk.convs.{int(m[1]) - 1}:"),
    (r"^cls_score_", "box.predictor.class_logits_"),
    (r"^bbox_pred_", "box.predictor.box_deltas_"),
    (r"^_(?:\[mask\]|mask)_fcn(\d)_", lambda m: f"mask.convs.{int(m[1]) - 1}:"),
    (r"^conv5_mask_", "mask.upsample_"),
    (r"^mask_fcn_logits_", "mask.logits_"),
    (r"^conv_fcn(\d)_", lambda m: f"keypoint.convs.{int(m[1]) - 1}:"),
    (r"^kps_score_lowres_", "keypoint.upsample_"),
    # in the rules above, a colon ends a convolution with or without a norm, an underscore a layer without
    (r":gn_s$", ".norm.weight"),
    (r":gn_b$", ".norm.bias"),
    (r":w$", ".conv.weight"),
    (r":b$", ".conv.bias"),
    (r"^(\w+\.[\w.]+)_w$", r"\1.weight"),
    (r"^(\w+\.[\w.]+)_b$", r"\1.bias"),
)
_UNUSED_BLOBS = (
    (r".*_momentum", "a momentum of training"),
    (
        r"(conv1|res\d+_\d+_branch\w+)(?<!_bn)(?<!_gn)_b",
        "the bias of a convolution before a norm, left over from the ImageNet file",
    ),
)
_LAST_LAYER = ((r"(fc\d{3,}|pred)_[wb]", "the ImageNet classifier's last layer, left over"),)
_FIXED_KERNEL = (r"kps_score_[wb]", "a fixed bilinear kernel")

# Detectron.pytorch's modules.
_MODULE_BODY: Rules = (
    (r"^Conv_Body\.(?:conv_body\.)?res1\.conv1\.", "backbone.stem.conv.conv."),
    (r"^Conv_Body\.(?:conv_body\.)?res1\.[bg]n1\.", "backbone.stem.conv.norm."),
    (r"^Conv_Body\.(?:conv_body\.)?res(\d)\.", r"backbone.c\1."),
    (r"^Box_Head\.res5\.", "box.trunk.stage."),
    (r"^Mask_Head\.res5\.", "mask.stage."),
    (r"(\.\d+)\.[bg]n([123])\.", r"\1.conv\2.norm."),
    (
        r"^((?:backbone\.c\d|box\.trunk\.stage|mask\.stage)\.\d+)\.conv([123])\.(weight|bias)$",
        r"\1.conv\2.conv.\3",
    ),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_MODULE_HEADS: Rules = (
    (r"^Conv_Body\.conv_top\.", "neck.lateral.c5:"),
    (
        r"^Conv_Body\.topdown_lateral_modules\.(\d)\.conv_lateral\.",
        lambda m: f"neck.lateral.c{4 - int(m[1])}:",
    ),
    (r"^Conv_Body\.posthoc_modules\.(\d)\.", lambda m: f"neck.output.c{5 - int(m[1])}:"),
    (r":0\.", ".conv."),
    (r":1\.", ".norm."),
    (r":", ".conv."),
    (r"^RPN\.(?:FPN_)?RPN_conv\.", "rpn.head.conv."),
    (r"^RPN\.(?:FPN_)?RPN_cls_score\.", "rpn.head.objectness."),
    (r"^RPN\.(?:FPN_)?RPN_bbox_pred\.", "rpn.head.deltas."),
    (r"^Box_Head\.fc\.", "box.trunk.fc6."),
    (r"^Box_Head\.fc([12])\.", lambda m: f"box.trunk.fc{int(m[1]) + 5}."),
    (r"^Box_Outs\.cls_score\.", "box.predictor.class_logits."),
    (r"^Box_Outs\.bbox_pred\.", "box.predictor.box_deltas."),
    (r"^Mask_Head\.upconv5?\.", "mask.upsample."),
    (r"^Mask_Outs\.classify\.", "mask.logits."),
    (r"^Keypoint_Head\.conv_fcn\.(\d+)\.", lambda m: f"keypoint.convs.{int(m[1]) // 2}.conv."),
    (r"^Keypoint_Outs\.deconv\.", "keypoint.deconv."),
    (r"^Keypoint_Outs\.classify\.", "keypoint.upsample."),
)
_SHARED_STAGE = (r"Mask_Head\.res5\..*", "the box head's stage, saved a second time")
_MODULE_KERNELS = ((r"(Keypoint|Mask)_Outs\.upsample\.upconv\.(weight|bias)", "a fixed bilinear kernel"),)


def _detector_blobs(blobs: dict[str, Any]) -> Translation:
    """A detector's pickle. Without a pyramid the backbone ends with c4, and res5 belongs to the box head
    (unused if the model is only a proposal network)."""
    drop = [*_UNUSED_BLOBS, *_LAST_LAYER]
    rules = [*_BLOB_BODY, *_BLOB_HEADS]
    if "kps_score_lowres_w" in blobs:
        drop.append(_FIXED_KERNEL)
    else:
        rules.insert(0, (r"^kps_score_", "keypoint.upsample_"))
    if not any(name.startswith("fpn_") for name in blobs):
        rules.append((r"^backbone\.c5\.", "box.trunk.stage."))
        if "cls_score_w" not in blobs:
            reason = (
                "a stage that a proposal network without a pyramid does not use, left over from the ImageNet"
            )
            drop.append((r"res5_.*", f"{reason} file"))
    rules.append((r"^kps_deconv_", "keypoint.deconv_"))
    return translate_names(blobs, [*rules, *_BLOB_HEADS[-2:]], drop)


def _detector_modules(
    arrays: dict[str, Any], drop: Iterable[tuple[str, str]] = (_SHARED_STAGE,)
) -> Translation:
    norms = any(re.fullmatch(r"(Box_Head\.convs|Mask_Head\.conv_fcn)\.1\.weight", name) for name in arrays)
    step = 3 if norms else 2  # conv, norm, ReLU or conv, ReLU
    return translate_names(
        arrays, (*_MODULE_BODY, *_MODULE_HEADS, *_stacked(arrays, step)), [*_MODULE_KERNELS, *drop]
    )


def _stacked(arrays: Mapping[str, Any], step: int) -> Rules:
    """Rules for Sequentials of convolutions (with norms or not) and ReLUs, which the files number without a
    break."""

    def target(match: re.Match[str]) -> str:
        head = "box.trunk.convs" if match[1] == "Box_Head.convs" else "mask.convs"
        return f"{head}.{int(match[2]) // step}.{('conv', 'norm')[int(match[2]) % step]}."

    return ((r"^(Box_Head\.convs|Mask_Head\.conv_fcn)\.(\d+)\.", target),)


def _classifier_blobs(blobs: dict[str, Any]) -> Translation:
    """Caffe2's ImageNet ResNets: norms are a scale and a shift; if the model also has statistics, they stay
    at mean 0 and variance 1."""
    rules = (*_BLOB_BODY, (r"^(?:fc1000|pred)_w$", "fc.weight"), (r"^(?:fc1000|pred)_b$", "fc.bias"))
    return translate_names(blobs, rules, _UNUSED_BLOBS, defaults=r".*\.(running_mean|running_var)")


def _folded_classifier(arrays: dict[str, Any]) -> Translation:
    """Caffe's ImageNet ResNets as torch files: statistics are folded into a scale and a shift."""
    rules = (
        (r"^(conv1|bn1)\.", r"Conv_Body.res1.\1."),
        (r"^layer(\d)\.", lambda m: f"Conv_Body.res{int(m[1]) + 1}."),
        *_MODULE_BODY,
    )
    result = Translation()
    for name in arrays:
        if name.endswith((".running_mean", ".running_var", ".num_batches_tracked")):
            result.dropped[name] = "folded into the norm's scale and shift"
            continue
        result.put(rename(name, rules), fold_norm(name, arrays), name)
    return result


def fold_norm(name: str, arrays: Mapping[str, Any]) -> Any:
    """A norm's scale or shift with its statistics folded in (batch normalisation with fixed statistics is
    affine); other tensors unchanged."""
    norm, _, leaf = name.rpartition(".")
    if f"{norm}.running_var" not in arrays:
        return arrays[name]
    if absent := [part for part in ("weight", "running_mean") if f"{norm}.{part}" not in arrays]:
        raise CheckpointError(
            f"the file has {norm}.running_var, and not {norm}.{absent[0]}; is it cut short? fetch it again"
        )
    scale = arrays[f"{norm}.weight"] / (arrays[f"{norm}.running_var"] + NORM_EPS) ** 0.5
    return scale if leaf == "weight" else arrays[name] - arrays[f"{norm}.running_mean"] * scale


CHECKPOINT_FORMATS.register("detectron_pkl")(CheckpointFormat(read_arrays, _detector_blobs))
CHECKPOINT_FORMATS.register("detectron_pytorch_pth")(CheckpointFormat(read_arrays, _detector_modules))
# the v0up mask head has its own stage, with the names that v0upshare uses for the shared one
CHECKPOINT_FORMATS.register("detectron_pytorch_own_mask_stage_pth")(
    CheckpointFormat(read_arrays, partial(_detector_modules, drop=()))
)
CHECKPOINT_FORMATS.register("detectron_imagenet_pkl")(CheckpointFormat(read_arrays, _classifier_blobs))
CHECKPOINT_FORMATS.register("caffe_resnet_pth")(CheckpointFormat(read_arrays, _folded_classifier))
