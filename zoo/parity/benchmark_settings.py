"""The manifest row that recorded settings of maskrcnn-benchmark describe, for folders whose configuration no
row names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from detection_zoo.zoo.conventions import Conventions
from detection_zoo.zoo.manifest import Component, ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import ParityError, Reference
from detection_zoo.zoo.parts.anchors import AnchorGenerator

Settings = Mapping[str, Any]
_BODY = re.compile(r"(?P<family>[RV])-(?P<depth>\d+)-(?P<kind>FPN-RETINANET|FPN|C4)")
_BOX_HEADS = {
    "FPN2MLPFeatureExtractor": "2mlp",
    "FPNXconv1fcFeatureExtractor": "xconv1fc",
    "ResNet50Conv5ROIFeatureExtractor": "conv5",
}
_WIDTHS = {
    "2mlp": {"width": "MLP_HEAD_DIM"},
    "conv5": {},
    "xconv1fc": {"width": "MLP_HEAD_DIM", "convs": "NUM_STACKED_CONVS", "conv_channels": "CONV_HEAD_DIM"},
}
_FIXED = {  # settings of which only these values are supported, by section
    "ROI_BOX_HEAD": {"DILATION": 1},
    "ROI_MASK_HEAD": {"DILATION": 1, "POSTPROCESS_MASKS": False, "CONV_LAYERS": [256] * 4},
    "ROI_KEYPOINT_HEAD": {"CONV_LAYERS": [512] * 8, "SHARE_BOX_FEATURE_EXTRACTOR": False},
    "RPN": {"RPN_HEAD": "SingleConvRPNHead"},
    "SOLVER": {"WARMUP_METHOD": "linear"},
}


def entry_from_settings(reference: Reference) -> ModelEntry:
    """A row made of a folder's recorded settings and of its checkpoint's shapes; raises ParityError for
    settings that are not supported."""
    settings = reference.meta.get("settings")
    if not settings:
        raise ParityError(
            f"{reference.folder / 'outputs.json'}: no manifest row has source_config {reference.config!r},"
            " and no 'settings' are recorded"
        )
    for section, fixed in _FIXED.items():
        for name, value in fixed.items():
            if settings.get(section, {}).get(name, value) != value:
                raise ParityError(
                    f"{reference.folder}: setting {section}.{name} = {settings[section][name]!r} is not"
                    f" supported, only {value!r}"
                )
    body = _BODY.fullmatch(settings["BACKBONE"]["CONV_BODY"])
    if body is None:
        given = settings["BACKBONE"]["CONV_BODY"]
        raise ParityError(
            f"{reference.folder}: backbone {given!r} is unknown; known: R or V, a depth, and FPN,"
            " FPN-RETINANET or C4, as in R-50-FPN"
        )
    kind = body["kind"]
    norms = norms_of(entry["name"] for entry in reference.description["tensors"])
    retina = kind == "FPN-RETINANET"
    start = "c" if retina and settings["RETINANET"]["USE_C5"] else "p"
    extra = {"extra": "p6p7", "extra_from": start} if retina else {}
    neck = None if kind == "C4" else Component(name="fpn", norm=norms["fpn"], **extra)
    classes = settings["RETINANET" if retina else "ROI_BOX_HEAD"]["NUM_CLASSES"] - 1
    detector = _detector(settings, retina, norms)
    bundle = {"faster_rcnn": ""}.get(detector.name, "_" + detector.name.removesuffix("_rcnn"))
    base = load_manifests().conventions[f"maskrcnn_benchmark{bundle}"].model_dump(exclude_unset=True)
    conventions = Conventions.model_validate({**base, **_conventions(settings, kind, detector.name)})
    return ModelEntry(
        name=reference.folder.name,
        source="settings",
        title=reference.config,
        backbone=_backbone(reference, settings, body, norms),
        neck=neck,
        detector=detector,
        classes=classes,
        dataset="coco",
        conventions=conventions,
    )


def norms_of(names: Iterable[str]) -> dict[str, str]:
    """The norm of the backbone, the pyramid, the box head and the mask head, from a checkpoint's names: only
    GroupNorm has names of its own kind."""
    names = list(names)
    grouped = {
        "backbone": not any("backbone.body." in name and name.endswith("running_mean") for name in names),
        "fpn": any(re.search(r"fpn_inner\d\.1\.", name) for name in names),
        "box": any(re.search(r"box\.feature_extractor\.(xconvs|fc\d)\.1\.", name) for name in names),
        "mask": any(re.search(r"mask_fcn\d\.1\.", name) for name in names),
    }
    return {
        part: "group" if group else {"backbone": "frozen"}.get(part, "none")
        for part, group in grouped.items()
    }


def _backbone(
    reference: Reference, settings: Settings, body: re.Match[str], norms: Mapping[str, str]
) -> Component:
    """ResNet or VoVNet; groups come from the checkpoint's shapes, the stride's place from the settings, or
    from what the configurations do."""
    arguments: dict[str, Any] = {
        "norm": norms["backbone"],
        "freeze_at": settings["BACKBONE"]["FREEZE_CONV_BODY_AT"],
    }
    if body["family"] == "V":
        return Component(name=f"vovnet{body['depth']}", **arguments)
    shapes = {entry["name"]: entry["shape"] for entry in reference.description["tensors"]}
    inner, width = next(
        shape[:2] for name, shape in shapes.items() if name.endswith("backbone.body.layer1.0.conv2.weight")
    )
    if inner != width:
        arguments |= {"groups": inner // width, "width_per_group": width}
    stated = settings.get("RESNETS", {}).get("STRIDE_IN_1X1")
    arguments["stride_in_1x1"] = (
        (inner == width and arguments["norm"] == "frozen") if stated is None else stated
    )
    if body["kind"] == "C4":
        arguments["last"] = "c4"
    return Component(name=f"resnet{body['depth']}", **arguments)


def _detector(settings: Settings, retina: bool, norms: Mapping[str, str]) -> Component:
    if retina:
        return Component(name="retinanet", convs=settings["RETINANET"]["NUM_CONVS"])
    extractor = settings["ROI_BOX_HEAD"]["FEATURE_EXTRACTOR"]
    if extractor not in _BOX_HEADS:
        raise ParityError(f"box head {extractor!r} is unknown; known: {', '.join(_BOX_HEADS)}")
    arguments: dict[str, Any] = {"box_head": _BOX_HEADS[extractor], "norm": norms["box"]}
    widths = {
        ours: settings["ROI_BOX_HEAD"][theirs]
        for ours, theirs in _WIDTHS[arguments["box_head"]].items()
        if theirs in settings["ROI_BOX_HEAD"]
    }
    if widths:
        arguments["head"] = widths
    if settings["MASK_ON"]:
        shared = settings["ROI_MASK_HEAD"]["SHARE_BOX_FEATURE_EXTRACTOR"]
        if norms["box"] != norms["mask"] and not shared:
            raise ParityError("GroupNorm in only one of the box and mask heads is not supported")
        return Component(name="mask_rcnn", mask_head="v0upshare" if shared else "v1up4convs", **arguments)
    return Component(name="keypoint_rcnn" if settings["KEYPOINT_ON"] else "faster_rcnn", **arguments)


def _conventions(settings: Settings, kind: str, detector: str) -> dict[str, Any]:
    """The sections of conventions that the settings give."""
    pixels = settings["INPUT"]
    shape: dict[str, Any] = {
        "image": {
            "through_fractions": True,  # ToTensor, then times 255
            "channel_order": "bgr" if pixels["TO_BGR255"] else "rgb",
            "value_range": "0..255" if pixels["TO_BGR255"] else "0..1",
            "mean": pixels["PIXEL_MEAN"],
            "std": pixels["PIXEL_STD"],
            "resize": "shorter_side",
            "size": pixels["MIN_SIZE_TEST"],
            "max_size": pixels["MAX_SIZE_TEST"],
            "size_divisor": max(settings["SIZE_DIVISIBILITY"], 1),
        }
    }
    if kind == "FPN-RETINANET":
        return shape | _retina_conventions(settings)
    rpn, roi = settings["RPN"], settings["ROI_HEADS"]
    sizes = [float(size) for size in rpn["ANCHOR_SIZES"]]
    sections = shape | {
        "anchors": {
            "sizes": [[size] for size in sizes] if rpn["USE_FPN"] else [sizes],
            "ratios": rpn["ASPECT_RATIOS"],
            "strides": rpn["ANCHOR_STRIDE"],
        },
        "rpn": _sampling(rpn)
        | {"straddle": float(rpn["STRADDLE_THRESH"]) if rpn["STRADDLE_THRESH"] >= 0 else None},
        "proposals": _proposals(rpn, "TEST"),
        "training_proposals": _proposals(rpn, "TRAIN"),
        "boxes": {"weights": roi["BBOX_REG_WEIGHTS"]},
        "pooling": _pooling(settings["ROI_BOX_HEAD"]),
        "roi": _sampling(roi),
        "detections": {
            "score_threshold": roi["SCORE_THRESH"],
            "nms_iou": roi["NMS"],
            "max_detections": roi["DETECTIONS_PER_IMG"],
        },
    }
    if detector == "mask_rcnn":
        threshold = "POSTPROCESS_MASKS_THRESHOLD"
        sections["mask"] = _branch(settings.get("ROI_MASK_HEAD"), threshold=threshold)
    if detector == "keypoint_rcnn":
        sections["keypoint"] = _branch(settings.get("ROI_KEYPOINT_HEAD"), keypoints="NUM_CLASSES") | {
            "samples": roi["BATCH_SIZE_PER_IMAGE"],
            "positive_fraction": roi["POSITIVE_FRACTION"],
        }
    return sections


def _sampling(section: Settings) -> dict[str, Any]:
    return {
        "samples": section["BATCH_SIZE_PER_IMAGE"],
        "positive_fraction": section["POSITIVE_FRACTION"],
        "foreground_iou": section["FG_IOU_THRESHOLD"],
        "background_iou": section["BG_IOU_THRESHOLD"],
    }


def _proposals(rpn: Settings, mode: str) -> dict[str, Any]:
    by_batch = mode == "TRAIN" and rpn["FPN_POST_NMS_PER_BATCH"]
    return {
        "pre_nms": rpn[f"PRE_NMS_TOP_N_{mode}"],
        "post_nms": rpn[f"POST_NMS_TOP_N_{mode}"],
        "nms_iou": rpn["NMS_THRESH"],
        "min_size": float(rpn["MIN_SIZE"]),
        "collect": rpn[f"FPN_POST_NMS_TOP_N_{mode}"] if rpn["USE_FPN"] else 0,
        "collect_over": "batch" if by_batch else "image",
        "collect_order": "level" if by_batch else "score",
    }


def _pooling(head: Settings) -> dict[str, Any]:
    return {"size": head["POOLER_RESOLUTION"], "sampling_ratio": head["POOLER_SAMPLING_RATIO"]}


def _branch(head: Settings | None, **fields: str) -> dict[str, Any]:
    return (
        {}
        if head is None
        else {
            "pooling": _pooling(head),
            **{ours: head[theirs] for ours, theirs in fields.items() if theirs in head},
        }
    )


def _retina_conventions(settings: Settings) -> dict[str, Any]:
    retina = settings["RETINANET"]
    return {
        "anchors": {"ratios": retina["ASPECT_RATIOS"], "strides": retina["ANCHOR_STRIDES"]},
        "retinanet": {
            "sizes": [float(s) for s in retina["ANCHOR_SIZES"]],
            "octave": retina["OCTAVE"],
            "scales_per_octave": retina["SCALES_PER_OCTAVE"],
            "foreground_iou": retina["FG_IOU_THRESHOLD"],
            "background_iou": retina["BG_IOU_THRESHOLD"],
            "focal_alpha": retina["LOSS_ALPHA"],
            "focal_gamma": retina["LOSS_GAMMA"],
            "box_weight": retina["BBOX_REG_WEIGHT"],
            "smooth_l1_beta": retina["BBOX_REG_BETA"],
            "prior": retina["PRIOR_PROB"],
            "score_threshold": retina["INFERENCE_TH"],
            "pre_nms": retina["PRE_NMS_TOP_N"],
            "nms_iou": retina["NMS_TH"],
            "max_detections": settings["TEST"]["DETECTIONS_PER_IMG"],
        },
    }


def schedule_from_settings(settings: Settings) -> Schedule:
    """The schedule that recorded solver settings describe."""
    solver = settings["SOLVER"]
    return Schedule(
        images_per_batch=solver["IMS_PER_BATCH"],
        lr=solver["BASE_LR"],
        iterations=solver["MAX_ITER"],
        steps=solver["STEPS"],
        gamma=solver["GAMMA"],
        warmup_iterations=solver["WARMUP_ITERS"],
        warmup_factor=solver["WARMUP_FACTOR"],
        scheduler_leads=True,
        momentum=solver["MOMENTUM"],
        weight_decay=solver["WEIGHT_DECAY"],
        weight_decay_bias=float(solver["WEIGHT_DECAY_BIAS"]),
        bias_lr_factor=float(solver["BIAS_LR_FACTOR"]),
    )


def traits(model: nn.Module) -> dict[str, str]:
    """Every plain number and rule that a model computes with, by module and attribute; two models of equal
    traits compute the same."""
    found = {name: str(tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in ("training", "specs", "class_names"):
                found[f"{path}.{name}"] = _plain(value)
        if isinstance(module, AnchorGenerator):
            found[f"{path}.cells"] = repr([cells.tolist() for cells in module.cells()])
    found.update(
        {
            f"{name}.requires_grad": str(parameter.requires_grad)
            for name, parameter in model.named_parameters()
        }
    )
    return found


def _plain(value: Any) -> str:
    if hasattr(value, "__dict__") and not dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {name: _plain(part) for name, part in vars(value).items() if not name.startswith("_")}
        return f"{type(value).__name__}{sorted(inner.items())!r}"
    return repr(value)


def departures(row: nn.Module, recorded: nn.Module) -> Iterable[str]:
    """Names of the traits in which a row's model differs from the one that recorded settings describe."""
    ours, theirs = traits(row), traits(recorded)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
