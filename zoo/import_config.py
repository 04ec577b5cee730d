"""From a configuration file of Detectron or Detectron.pytorch to a manifest row, following its README's six rules. No torch.

Every option that the file sets ends in one of four lists: it became part of the row, it changes nothing (and why), it was mended
(and how), or it cannot be honoured (and why). None is dropped in silence.
"""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .conventions import Conventions
from .detectron_config import Options, read_options
from .errors import ManifestError
from .manifest import Schedule, load_manifests, merge

RESNEXTS = {(101, 32, 8): "resnext101_32x8d", (101, 64, 4): "resnext101_64x4d", (152, 32, 8): "resnext152_32x8d"}
BOX_HEADS = {"fast_rcnn_heads.roi_2mlp_head": ("2mlp", "none"), "fast_rcnn_heads.roi_Xconv1fc_head": ("xconv1fc", "none"),
             "fast_rcnn_heads.roi_Xconv1fc_gn_head": ("xconv1fc", "group"), "ResNet.ResNet_roi_conv5_head": ("conv5", "none")}
MASK_HEADS = {f"mask_rcnn_heads.mask_rcnn_fcn_head_{name}": name for name in ("v1up4convs", "v1up", "v0up", "v0upshare")}
MASK_HEADS["mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs_gn"] = "v1up4convs"
POOLINGS = {"RoIAlign": "roi_align", "RoIPoolF": "roi_pool", "RoICrop": "roi_crop"}
NORMS = {("bottleneck_transformation", "basic_bn_stem", "basic_bn_shortcut"): "affine",
         ("bottleneck_gn_transformation", "basic_gn_stem", "basic_gn_shortcut"): "group"}
BODY = re.compile(r"(?:(FPN)\.fpn_|ResNet\.)ResNet(50|101|152)_conv([45])(_P2only)?_body")
SCHEDULE_NAMES = {90000: "1x", 180000: "2x", 270000: "3x", 130000: "1.44x"}
VIEW_OPTIONS = ("ENABLED", "H_FLIP", "SCALES", "MAX_SIZE", "SCALE_H_FLIP", "ASPECT_RATIOS", "ASPECT_RATIO_H_FLIP")
CAFFE2_ONLY = ("TRAIN.WEIGHTS", "TRAIN.DATASETS", "TEST.DATASETS", "TRAIN.FREEZE_AT", "MODEL.EXECUTION_TYPE", "USE_NCCL")


@dataclass
class ImportedConfig:
    """A row made of a configuration file, and what became of every option.

    row: fields of a [[model]] table; conventions: that row's, resolved; schedule: fields of a table of schedules.toml where none of
    its tables is the file's. notes: what was mended or renamed; without_effect, refused: option -> reason.
    """

    row: dict[str, Any]
    conventions: Conventions
    schedule_name: str
    schedule: Schedule
    new_schedule: bool
    notes: list[str] = field(default_factory=list)
    without_effect: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def toml(self) -> str:
        """The row, and its schedule where it is new, as TOML."""
        text = ""
        if self.new_schedule:
            fields = self.schedule.model_dump(exclude_defaults=True)
            text = f'# for schedules.toml\n["{self.schedule_name}"]\n' + "".join(f"{name} = {toml_value(value)}\n" for name, value in fields.items()) + "\n"
        return text + "[[model]]\n" + "".join(f"{name} = {toml_value(value)}\n" for name, value in self.row.items())

    def report(self) -> list[str]:
        """What a person should know, a line each."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"without effect: {name}: {reason}" for name, reason in self.without_effect.items()]
        return lines + [f"cannot be honoured: {name}: {reason}" for name, reason in self.refused.items()]


def toml_value(value: Any) -> str:
    """A plain value as TOML writes it; tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml_value(part)}" for name, part in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def import_config(path: Path | str, source: str | None = None) -> ImportedConfig:
    """Turn a configuration file into a manifest row.

    Args:
        path: a YAML file.
        source: manifest that the row is for; default: "detectron" where the file has options that only Caffe2's Detectron reads, else
            "detectron_pytorch".

    Raises:
        ManifestError: the file cannot be read, or describes a model that cannot be built here; says which options.
    """
    path = Path(path)
    options = read_options(path)
    importer = _Importer(path, options, source or ("detectron" if any(name in options.given for name in CAFFE2_ONLY) else "detectron_pytorch"))
    return importer.result()


def _difference(wanted: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What of `wanted` is not already so in `base`, table by table."""
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            if inner := _difference(value, base[name]):
                found[name] = inner
        elif value != base.get(name):
            found[name] = value
    return found


class _Importer:
    """One file on its way to a row."""

    def __init__(self, path: Path, options: Options, source: str) -> None:
        self.path, self.options, self.source, self.manifests = path, options, source, load_manifests()
        body = BODY.fullmatch(options["MODEL.CONV_BODY"])
        if body is None:
            raise self.cannot(f"MODEL.CONV_BODY is {options['MODEL.CONV_BODY']!r}; only ResNet bodies, plain (conv4, conv5) and with FPN, are known")
        self.pyramid, self.depth, self.last, self.p2_only = bool(body[1]), int(body[2]), f"c{body[3]}", bool(body[4])
        self.kind = self._kind()

    def cannot(self, reason: str) -> ManifestError:
        return ManifestError(f"{self.path}: {reason}")

    def require(self, name: str, value: Any, reason: str) -> None:
        """Note an option whose value, given or default, is not the only one that is known here."""
        if self.options[name] != value:
            self.options.refused[name] = f"{self.options[name]!r}: {reason}"

    def _kind(self) -> str:
        get = self.options
        if get["RETINANET.RETINANET_ON"]:
            return "retinanet"
        if get["MODEL.RPN_ONLY"]:
            return "rpn"
        if not get["MODEL.FASTER_RCNN"]:
            raise self.cannot("MODEL.FASTER_RCNN is off: a second stage alone needs stored proposals, which are not read here")
        masks, keypoints = get["MODEL.MASK_ON"], get["MODEL.KEYPOINTS_ON"]
        if masks and keypoints:
            raise self.cannot("MODEL.MASK_ON and MODEL.KEYPOINTS_ON together: no model with both branches is known here")
        return "mask_rcnn" if masks else "keypoint_rcnn" if keypoints else "faster_rcnn"

    def result(self) -> ImportedConfig:
        """Everything, and an account of every option."""
        backbone, neck, detector = self.backbone(), self.neck(), self.detector()
        schedule_name, schedule, new = self.schedule()
        bundle, adjust, conventions = self.conventions()
        row: dict[str, Any] = {"name": self.name(backbone, detector, schedule), "title": self.path.stem, "source_config": self.path.name}
        if self.kind == "rpn":
            row["task"] = "proposals"
        row |= {"backbone": backbone} | ({"neck": neck} if neck else {}) | {"detector": detector} | self.dataset()
        row |= {"schedule": schedule_name} | ({"initial": initial} if (initial := self.initial()) else {}) | {"conventions": bundle}
        if adjust:
            row["adjust"] = adjust
        if row["name"] in self.manifests.entries:
            taken = self.manifests.entries[row["name"]]
            self.options.notes.append(f"name: manifests/{taken.source}.toml has a row {taken.name}; give this one another name")
        if self.options["MODEL.TYPE"] not in ("generalized_rcnn", "retinanet", "rpn", "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "mask_and_keypoint_rcnn"):
            raise self.cannot(f"MODEL.TYPE is {self.options['MODEL.TYPE']!r}; only generalized_rcnn and its older names, and retinanet, are known")
        self.options.idle["TEST.WEIGHTS"] = "weights are named where a row is run; add them to the row as [[model.weights]]"
        for name in self.options.unread():
            self.options.refused[name] = f"{self.options.given[name]!r}: nothing here reads it for a {self.kind}"
        return ImportedConfig(row, conventions, schedule_name, schedule, new, self.options.notes, self.options.without_effect(), self.options.refused)

    def name(self, backbone: dict[str, Any], detector: dict[str, Any], schedule: Schedule) -> str:
        """{detector}_{backbone}_{neck}_{schedule}.{source}"""
        gpus = schedule.images_per_batch / 16
        length = SCHEDULE_NAMES.get(round((schedule.iterations or 0) * gpus), f"{(schedule.iterations or 0) // 1000}k")
        length = "s1x" if length == "1.44x" and self.kind == "keypoint_rcnn" else length
        norm = "_gn" if backbone["norm"] == "group" else ""
        return f"{detector['name']}_{backbone['name']}_{'fpn' if self.pyramid else self.last}{norm}_{length}.{self.source}"

    def backbone(self) -> dict[str, Any]:
        """The ResNet or ResNeXt."""
        get = self.options
        functions = tuple(get[f"RESNETS.{name}_FUNC"] for name in ("TRANS", "STEM", "SHORTCUT"))
        if functions not in NORMS:
            raise self.cannot(f"RESNETS.TRANS_FUNC, STEM_FUNC and SHORTCUT_FUNC are {functions}; all three must have the same norm, one of {list(NORMS)}")
        groups, width = get["RESNETS.NUM_GROUPS"], get["RESNETS.WIDTH_PER_GROUP"]
        known = RESNEXTS.get((self.depth, groups, width))
        freeze = get["TRAIN.FREEZE_AT"] if "TRAIN.FREEZE_AT" in get.given else get["RESNETS.FREEZE_AT"]
        found: dict[str, Any] = {"name": known or f"resnet{self.depth}", "norm": NORMS[functions], "freeze_at": freeze}
        if known is None and (groups, width) != (1, 64):
            found |= {"groups": groups, "width_per_group": width}
        if get["RESNETS.STRIDE_1X1"] != (known is None):
            found["stride_in_1x1"] = get["RESNETS.STRIDE_1X1"]
        if self.last == "c4":
            found["last"] = "c4"
        if get["RESNETS.RES5_DILATION"] != 1:
            found["dilation_c5"] = get["RESNETS.RES5_DILATION"]
        self.require("TRAIN.FREEZE_CONV_BODY", False, "freezing the pyramid with the backbone is not known here; set freeze_at in the row")
        for name, value in (("DIM_PER_GP", -1), ("NUM_GROUPS", 32), ("EPSILON", 1e-5)):
            self.require(f"GROUP_NORM.{name}", value, "GroupNorm here has 32 groups and eps 1e-5")
        return found

    def neck(self) -> dict[str, Any]:
        """The pyramid, or nothing."""
        get = self.options
        if not self.pyramid:
            if get["FPN.FPN_ON"]:
                raise self.cannot("FPN.FPN_ON is set, but MODEL.CONV_BODY has no pyramid")
            return {}
        found: dict[str, Any] = {"name": "fpn"}
        if self.kind == "retinanet":
            found |= {"levels": ["c3", "c4", "c5"], "extra": "p6p7"}
            self.require("FPN.EXTRA_CONV_LEVELS", True, "RetinaNet's pyramid here ends with two strided convolutions")
            self.require("FPN.RPN_MIN_LEVEL", 3, "RetinaNet's pyramid here starts with level 3")
            self.require("FPN.RPN_MAX_LEVEL", 7, "RetinaNet's pyramid here ends with level 7")
        else:
            self.require("FPN.EXTRA_CONV_LEVELS", False, "strided convolutions on top of the pyramid are RetinaNet's; in the original this option fails")
            lowest, highest = get["FPN.RPN_MIN_LEVEL"], get["FPN.RPN_MAX_LEVEL"]
            if lowest != get["FPN.ROI_MIN_LEVEL"] or get["FPN.ROI_MAX_LEVEL"] != 5 or highest not in (5, 6) or lowest not in (2, 3, 4, 5):
                raise self.cannot("FPN levels: RPN_MIN_LEVEL must be ROI_MIN_LEVEL, ROI_MAX_LEVEL 5 and RPN_MAX_LEVEL 5 or 6")
            found |= {"levels": [f"c{level}" for level in range(lowest, 6)]} if lowest != 2 else {}
            found |= {"extra": "none"} if highest == 5 else {}
        for name, standard in (("FPN.DIM", 256),):
            found |= {"channels": get[name]} if get[name] != standard else {}
        found |= {"norm": "group"} if get["FPN.USE_GN"] else {}
        found |= {"only": "p2"} if self.p2_only else {}
        self.require("FPN.ZERO_INIT_LATERAL", False, "laterals start from Caffe2's Xavier values here")
        if not self.p2_only:
            for name in ("FPN.FPN_ON", "FPN.MULTILEVEL_RPN", *(() if self.kind in ("rpn", "retinanet") else ("FPN.MULTILEVEL_ROIS",))):
                self.require(name, True, "heads on a pyramid read all of its levels here")
        return found

    def detector(self) -> dict[str, Any]:
        """The detector and its heads."""
        get = self.options
        if self.kind in ("rpn", "retinanet"):
            return {"name": self.kind}
        if get["FAST_RCNN.ROI_BOX_HEAD"] not in BOX_HEADS:
            raise self.cannot(f"FAST_RCNN.ROI_BOX_HEAD is {get['FAST_RCNN.ROI_BOX_HEAD']!r}; known: {', '.join(BOX_HEADS)}")
        box, norm = BOX_HEADS[get["FAST_RCNN.ROI_BOX_HEAD"]]
        found: dict[str, Any] = {"name": self.kind, "box_head": box}
        sizes = {"width": ("MLP_HEAD_DIM", 1024), **({"conv_channels": ("CONV_HEAD_DIM", 256), "convs": ("NUM_STACKED_CONVS", 4)} if box == "xconv1fc" else {})}
        if box != "conv5":
            head = {field_: get[f"FAST_RCNN.{name}"] for field_, (name, standard) in sizes.items() if get[f"FAST_RCNN.{name}"] != standard}
            found |= {"head": head} if head else {}
        if get["MODEL.CLS_AGNOSTIC_BBOX_REG"]:
            found["class_specific"] = False
        self.require("TEST.BBOX_REG", True, "boxes are always refined by their deltas here")
        if self.kind == "mask_rcnn":
            self.mask_head(found, norm)
        if self.kind == "keypoint_rcnn":
            self.keypoint_head(found)
        if norm != "none":
            found["norm"] = norm
        return found

    def mask_head(self, found: dict[str, Any], norm: str) -> None:
        """The mask head; its size must follow from its pooling."""
        get, kind = self.options, self.options["MRCNN.ROI_MASK_HEAD"]
        if kind not in MASK_HEADS:
            raise self.cannot(f"MRCNN.ROI_MASK_HEAD is {kind!r}; known: {', '.join(MASK_HEADS)}")
        found["mask_head"] = MASK_HEADS[kind]
        if MASK_HEADS[kind] == "v0upshare":
            get.idle["MRCNN.DILATION"] = "this head has no convolution of its own before the upsampling"
        elif MASK_HEADS[kind] == "v0up":
            self.require("MRCNN.DILATION", 1, "the head's own stage is not dilated here")
        if kind.endswith("_gn") != (norm == "group"):
            raise self.cannot("box head and mask head must both have GroupNorm, or neither")
        pooled = get["MRCNN.ROI_XFORM_RESOLUTION"]
        side = 2 * pooled if MASK_HEADS[kind].startswith("v1") else 2 * -(-pooled // max(pooled // 7, 1))
        if get["MRCNN.RESOLUTION"] != side:
            raise self.cannot(f"MRCNN.RESOLUTION is {get['MRCNN.RESOLUTION']}, but this head makes masks of {side} from a pooled side of {pooled}")
        for name, value, reason in (
            ("UPSAMPLE_RATIO", 1, "masks are not upsampled further here"), ("USE_FC_OUTPUT", False, "masks come from a convolution here"),
            ("CLS_SPECIFIC_MASK", True, "there is one mask a class here"), ("WEIGHT_LOSS_MASK", 1.0, "losses are summed as they are here"),
            ("CONV_INIT", "MSRAFill", "training from scratch starts from MSRA values here"),
        ):
            self.require(f"MRCNN.{name}", value, reason)

    def keypoint_head(self, found: dict[str, Any]) -> None:
        """The keypoint head; its size must follow from its pooling."""
        get = self.options
        if get["KRCNN.ROI_KEYPOINTS_HEAD"] != "keypoint_rcnn_heads.roi_pose_head_v1convX":
            raise self.cannot(f"KRCNN.ROI_KEYPOINTS_HEAD is {get['KRCNN.ROI_KEYPOINTS_HEAD']!r}; known: keypoint_rcnn_heads.roi_pose_head_v1convX")
        found["keypoint_head"] = "v1convx"
        if get["KRCNN.HEATMAP_SIZE"] != 4 * get["KRCNN.ROI_XFORM_RESOLUTION"]:
            raise self.cannot("KRCNN.HEATMAP_SIZE must be four times KRCNN.ROI_XFORM_RESOLUTION, which is what this head makes")
        for name, value, reason in (
            ("UP_SCALE", 2, "heat maps are doubled once here"), ("USE_DECONV", False, "there is no deconvolution before the last here"),
            ("USE_DECONV_OUTPUT", True, "the last layer is a deconvolution here"), ("DECONV_KERNEL", 4, "its kernel has a side of 4 here"),
            ("CONV_HEAD_KERNEL", 3, "kernels have a side of 3 here"), ("NMS_OKS", False, "keypoints are not suppressed by likeness here"),
            ("KEYPOINT_CONFIDENCE", "bbox", "a keypoint's score is its box's here"), ("INFERENCE_MIN_SIZE", 0, "heat maps are resized to the box here"),
            ("LOSS_WEIGHT", 1.0, "losses are summed as they are here"),
            ("NORMALIZE_BY_VISIBLE_KEYPOINTS", True, "the loss is a mean over visible keypoints here"),
            ("CONV_INIT", "MSRAFill", "training from scratch starts from MSRA values here"),
        ):
            self.require(f"KRCNN.{name}", value, reason)

    def dataset(self) -> dict[str, Any]:
        """Dataset, classes and splits: rules 1 and 2, classes come from the dataset unless the file gives them."""
        get = self.options
        people = any(name.startswith("keypoints_") for name in get["TRAIN.DATASETS"])
        dataset = "coco_keypoints" if people or self.kind == "keypoint_rcnn" else "coco"
        spec = self.manifests.datasets[dataset]
        classes = len(spec.classes)
        if "MODEL.NUM_CLASSES" in get.given:
            given = get["MODEL.NUM_CLASSES"] - 1
            classes = given if self.kind != "rpn" else classes
        prefix = "keypoints_" if dataset == "coco_keypoints" else ""
        splits = {"train_split": f"{prefix}coco_2017_train", "test_split": f"{prefix}coco_2017_val"}
        for field_, option in (("train_split", "TRAIN.DATASETS"), ("test_split", "TEST.DATASETS")):
            names = get[option]
            if not names:
                continue
            if option == "TEST.DATASETS" and len(names) > 1:
                get.notes.append(f"{option}: results were made for {', '.join(names)}; the row names the first")
                names = names[:1]
            joined = "+".join([names[0], *(name.removeprefix("keypoints_").removeprefix("coco_2014_") for name in names[1:])])
            if joined in spec.splits:
                splits[field_] = joined
            else:
                get.refused[option] = f"{names!r}: dataset {dataset} has the splits {', '.join(spec.splits)}"
        return {"classes": classes, "dataset": dataset, **splits}

    def initial(self) -> str | None:
        """The row of the ImageNet file that training starts from (rule 4)."""
        get = self.options
        if not get["MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS"]:
            return None
        option = next((name for name in ("RESNETS.IMAGENET_PRETRAINED_WEIGHTS", "TRAIN.WEIGHTS") if get[name]), None)
        if option is None:
            return None
        wanted = get[option].rpartition("/")[2]
        for entry in self.manifests.entries.values():
            for spec in entry.weights:
                names = {spec.filename, *(url.rpartition("/")[2] for url in spec.urls)}
                if spec.holds == "imagenet" and wanted in names:
                    return entry.name
        get.refused[option] = f"{get[option]!r}: no row of the manifests has a file of that name"
        return None

    def schedule(self) -> tuple[str, Schedule, bool]:
        """The training schedule, by name where schedules.toml has it; rule 6: the batch is all GPUs' images together."""
        get = self.options
        steps = list(get["SOLVER.STEPS"])
        if steps and steps[0] != 0:
            raise self.cannot(f"SOLVER.STEPS is {steps}; the first step must be 0")
        self.require("SOLVER.WARM_UP_METHOD", "linear", "the warm-up is a ramp here")
        if get["SOLVER.SCALE_MOMENTUM"]:
            self.require("SOLVER.SCALE_MOMENTUM_THRESHOLD", 1.1, "momentum is rescaled where the rate changes by more than 1.1 times here")
        self.require("TRAIN.USE_FLIPPED", True, "images are flipped in training here")
        self.require("TRAIN.ASPECT_GROUPING", True, "batches hold images of like aspect ratio here")
        self.require("TRAIN.ASPECT_CROPPING", False, "images are not cropped here; in the original this leaves masks and keypoints unmoved")
        self.require("TRAIN.GT_MIN_AREA", -1, "objects of any area are trained on here")
        optimizer = get["SOLVER.TYPE"].lower()
        if optimizer not in ("sgd", "adam"):
            raise self.cannot(f"SOLVER.TYPE is {get['SOLVER.TYPE']!r}; known: SGD, Adam")
        decay = get["SOLVER.WEIGHT_DECAY"]
        sides = list(get["TRAIN.SCALES"])
        schedule = Schedule(
            images_per_batch=get["NUM_GPUS"] * get["TRAIN.IMS_PER_BATCH"], lr=get["SOLVER.BASE_LR"], iterations=get["SOLVER.MAX_ITER"], steps=steps[1:],
            gamma=get["SOLVER.GAMMA"], warmup_iterations=get["SOLVER.WARM_UP_ITERS"], warmup_factor=get["SOLVER.WARM_UP_FACTOR"],
            rescale_momentum=get["SOLVER.SCALE_MOMENTUM"] and self.source != "detectron", optimizer=optimizer, momentum=get["SOLVER.MOMENTUM"],
            weight_decay=decay, weight_decay_bias=decay if get["SOLVER.BIAS_WEIGHT_DECAY"] else 0.0, weight_decay_norm=get["SOLVER.WEIGHT_DECAY_GN"],
            bias_lr_factor=2.0 if get["SOLVER.BIAS_DOUBLE_LR"] else 1.0, short_sides=[] if sides == [get["TEST.SCALE"]] else sides)
        fields = schedule.model_dump(exclude={"note"})
        for name, known in self.manifests.schedules.items():
            if known.model_dump(exclude={"note"}) == fields:
                return name, schedule, False
        return f"{self.source}_{self.path.stem}", schedule, True

    def conventions(self) -> tuple[str, dict[str, Any], Conventions]:
        """The bundle nearest to what the file says, what differs from it, and the whole."""
        bundles = self.manifests.conventions
        wanted = self.sections()
        kinds = {"detectron_retinanet": "retinanet", "detectron_rpn": "rpn", "detectron_rpn_c4": "rpn"}
        alone = self.kind if self.kind in kinds.values() else None
        names = [name for name in bundles if name.startswith("detectron") and kinds.get(name) == alone]
        best, adjust = min(((name, self.adjustment(wanted, bundles[name])) for name in names), key=lambda pair: (_count(pair[1]), pair[0] != "detectron"))
        whole = Conventions.model_validate(merge(bundles[best].model_dump(exclude_unset=True), adjust))
        return best, adjust, whole

    @staticmethod
    def adjustment(wanted: dict[str, Any], bundle: Conventions) -> dict[str, Any]:
        """What the wanted sections change in a bundle; a bundle with more than is wanted cannot be chosen (counts as many changes)."""
        base = bundle.model_dump()
        extra = {"augmentation": None} if base.get("augmentation") and "augmentation" not in wanted else {}
        return _difference(wanted, base) | ({"augmentation": {str(i): 0 for i in range(99)}} if extra else {})

    def sections(self) -> dict[str, Any]:
        """Every value of the conventions that the file decides."""
        get = self.options
        means = [value for rows in get["PIXEL_MEANS"] for row in (rows if isinstance(rows, (list, tuple)) else [rows])
                 for value in (row if isinstance(row, (list, tuple)) else [row])]
        self.require("TRAIN.MAX_SIZE", get["TEST.MAX_SIZE"], "the longer side has the same bound in training and at test time here")
        found: dict[str, Any] = {
            "image": {"size": get["TEST.SCALE"], "max_size": get["TEST.MAX_SIZE"], "mean": [float(value) for value in means],
                      "size_divisor": get["FPN.COARSEST_STRIDE"] if self.pyramid else 1},
            "boxes": {"cap": float(get["BBOX_XFORM_CLIP"])},
        }
        if self.kind == "retinanet":
            return found | self.retinanet()
        found |= self.proposals()
        if self.kind == "rpn":
            del found["training_proposals"]  # a proposal network alone is trained without them
            return found
        found["boxes"]["weights"] = [float(value) for value in get["MODEL.BBOX_REG_WEIGHTS"]]
        found |= self.selection()
        found["pooling"] = self.pooling("FAST_RCNN", size=True) | {"canonical_scale": float(get["FPN.ROI_CANONICAL_SCALE"]),
                                                                   "canonical_level": get["FPN.ROI_CANONICAL_LEVEL"]}
        found["roi"] = {"samples": get["TRAIN.BATCH_SIZE_PER_IM"], "positive_fraction": get["TRAIN.FG_FRACTION"], "foreground_iou": get["TRAIN.FG_THRESH"],
                        "background_iou": get["TRAIN.BG_THRESH_HI"], "background_low": get["TRAIN.BG_THRESH_LO"]}
        if self.kind == "mask_rcnn":
            found["mask"] = {"threshold": get["MRCNN.THRESH_BINARIZE"], "width": get["MRCNN.DIM_REDUCED"],
                             "dilation": get["MRCNN.DILATION"] if MASK_HEADS[get["MRCNN.ROI_MASK_HEAD"]].startswith("v1") else 1}
            self.branch_pooling("MRCNN", found, "mask", shared=get["MRCNN.ROI_MASK_HEAD"].endswith("v0upshare"))
        if self.kind == "keypoint_rcnn":
            found["keypoint"] = {"keypoints": get["KRCNN.NUM_KEYPOINTS"], "convs": get["KRCNN.NUM_STACKED_CONVS"], "width": get["KRCNN.CONV_HEAD_DIM"]}
            self.branch_pooling("KRCNN", found, "keypoint", shared=False)
        return found | self.augmentation()

    def pooling(self, section: str, *, size: bool) -> dict[str, Any]:
        """One branch's RoI pooling."""
        get = self.options
        method = get[f"{section}.ROI_XFORM_METHOD"]
        if method not in POOLINGS:
            raise self.cannot(f"{section}.ROI_XFORM_METHOD is {method!r}; known: {', '.join(POOLINGS)}")
        if method == "RoICrop":
            self.require("CROP_RESIZE_WITH_MAX_POOL", True, "RoICrop takes the maximum of two by two points here")
        return {"sampling_ratio": get[f"{section}.ROI_XFORM_SAMPLING_RATIO"], "method": POOLINGS[method],
                **({"size": get[f"{section}.ROI_XFORM_RESOLUTION"]} if size else {})}

    def branch_pooling(self, section: str, found: dict[str, Any], branch: str, *, shared: bool) -> None:
        """A branch's own pooling where it is not the box branch's with 14 cells."""
        own = self.pooling(section, size=True)
        box = {name: found["pooling"][name] for name in own}
        if shared:
            self.require(f"{section}.ROI_XFORM_RESOLUTION", box["size"], "the shared mask head reads what the box head pools here")
        elif own != {**box, "size": 14}:
            found[branch]["pooling"] = own

    def proposals(self) -> dict[str, Any]:
        """Anchors, the proposal network's training, and how proposals are chosen."""
        get = self.options
        self.require("RPN.CLS_ACTIVATION", "sigmoid", "an anchor has one sigmoid objectness here")
        levels = range(get["FPN.RPN_MIN_LEVEL"], get["FPN.RPN_MAX_LEVEL"] + 1)
        many = self.pyramid and not self.p2_only
        sizes = [[float(size) for size in get["RPN.SIZES"]]]
        if many:
            sizes = [[float(get["FPN.RPN_ANCHOR_START_SIZE"] * 2 ** step)] for step, _ in enumerate(levels)]
        standard = many and sizes == [[8.0 * 2**level] for level in levels]
        straddle = float(get["TRAIN.RPN_STRADDLE_THRESH"])
        found: dict[str, Any] = {
            "anchors": {"sizes": None if standard else sizes, "ratios": [float(r) for r in get["FPN.RPN_ASPECT_RATIOS" if many else "RPN.ASPECT_RATIOS"]]},
            "rpn": {"channels": None if get["RPN.OUT_DIM_AS_IN_DIM"] else get["RPN.OUT_DIM"], "samples": get["TRAIN.RPN_BATCH_SIZE_PER_IM"],
                    "positive_fraction": get["TRAIN.RPN_FG_FRACTION"], "foreground_iou": get["TRAIN.RPN_POSITIVE_OVERLAP"],
                    "background_iou": get["TRAIN.RPN_NEGATIVE_OVERLAP"], "straddle": None if straddle < 0 else straddle,
                    "objectness_over": "configured" if many else "sampled"},
        }
        for section, name in (("TEST", "proposals"), ("TRAIN", "training_proposals")):
            self.require(f"{section}.RPN_MIN_SIZE", 0, "a least side in pixels of the original image is not known here")
            post = get[f"{section}.RPN_POST_NMS_TOP_N"]
            found[name] = {"pre_nms": get[f"{section}.RPN_PRE_NMS_TOP_N"], "post_nms": post, "nms_iou": get[f"{section}.RPN_NMS_THRESH"],
                           "collect": int(post * get["FPN.RPN_COLLECT_SCALE"] + 0.5) if many else post}
        found["training_proposals"]["collect_over"] = "batch" if many else "image"
        return found

    def selection(self) -> dict[str, Any]:
        """How detections are chosen."""
        get = self.options
        found: dict[str, Any] = {"score_threshold": get["TEST.SCORE_THRESH"], "nms_iou": get["TEST.NMS"], "max_detections": get["TEST.DETECTIONS_PER_IM"]}
        found["soft"] = get["TEST.SOFT_NMS.METHOD"] if get["TEST.SOFT_NMS.ENABLED"] else "none"
        found["soft_sigma"] = get["TEST.SOFT_NMS.SIGMA"]
        voting = get["TEST.BBOX_VOTE.ENABLED"]
        threshold, method = get["TEST.BBOX_VOTE.VOTE_TH"], get["TEST.BBOX_VOTE.SCORING_METHOD"].lower()
        found |= {"vote_iou": threshold if voting else None, "vote_method": method if voting else "id"}
        return {"detections": found}

    def augmentation(self) -> dict[str, Any]:
        """Test-time augmentation."""
        get, found = self.options, {}
        for section, name in (("BBOX_AUG", "boxes"), ("MASK_AUG", "masks"), ("KPS_AUG", "keypoints")):
            values = {key: get[f"TEST.{section}.{key}"] for key in VIEW_OPTIONS}
            self.require(f"TEST.{section}.SCALE_SIZE_DEP", False, "copies count alike for objects of all sizes here; in the original this option fails")
            for threshold in ("AREA_TH", "AREA_TH_LO", "AREA_TH_HI"):
                get.idle[f"TEST.{section}.{threshold}"] = "read only with SCALE_SIZE_DEP"
            if values["ENABLED"]:
                found[name] = {"flip": values["H_FLIP"], "scales": values["SCALES"], "max_size": values["MAX_SIZE"], "scale_flip": values["SCALE_H_FLIP"],
                               "aspect_ratios": [float(ratio) for ratio in values["ASPECT_RATIOS"]], "aspect_flip": values["ASPECT_RATIO_H_FLIP"]}
        for option in ("SCORE_HEUR", "COORD_HEUR"):
            self.require(f"TEST.BBOX_AUG.{option}", "UNION", "boxes of all copies are put together here, as they must be with a proposal network")
        combine = {"mask_combine": get["TEST.MASK_AUG.HEUR"].lower(), "keypoint_combine": {"HM_AVG": "mean", "HM_MAX": "max"}.get(get["TEST.KPS_AUG.HEUR"])}
        if combine["mask_combine"] not in ("soft_avg", "soft_max", "logit_avg") or combine["keypoint_combine"] is None:
            raise self.cannot("TEST.MASK_AUG.HEUR must be SOFT_AVG, SOFT_MAX or LOGIT_AVG, and TEST.KPS_AUG.HEUR HM_AVG or HM_MAX")
        return {"augmentation": {**found, **combine}} if found else {}

    def retinanet(self) -> dict[str, Any]:
        """RetinaNet's head, training and selection."""
        get = self.options
        for name, value in (("SHARE_CLS_BBOX_TOWER", False), ("CLASS_SPECIFIC_BBOX", False), ("SOFTMAX", False), ("NUM_CONVS", 4)):
            self.require(f"RETINANET.{name}", value, "RetinaNet's head here has two towers of four convolutions and sigmoid classes")
        for name in get.given:
            if name.partition(".")[2].startswith("RPN_") and name.partition(".")[0] in ("TRAIN", "TEST"):
                get.idle[name] = "RetinaNet has no proposal network"
        get.idle["MODEL.BBOX_REG_WEIGHTS"] = "RetinaNet's deltas are not weighted"
        start = float(get["RETINANET.ANCHOR_SCALE"])
        return {
            "anchors": {"ratios": [float(ratio) for ratio in get["RETINANET.ASPECT_RATIOS"]]},
            "retinanet": {
                "scales_per_octave": get["RETINANET.SCALES_PER_OCTAVE"], "sizes": [start * 2**level for level in range(3, 8)],
                "foreground_iou": get["RETINANET.POSITIVE_OVERLAP"], "background_iou": get["RETINANET.NEGATIVE_OVERLAP"],
                "focal_alpha": get["RETINANET.LOSS_ALPHA"], "focal_gamma": get["RETINANET.LOSS_GAMMA"], "prior": get["RETINANET.PRIOR_PROB"],
                "smooth_l1_beta": get["RETINANET.BBOX_REG_BETA"], "box_weight": 1.0 / get["RETINANET.BBOX_REG_WEIGHT"], "score_threshold": get["RETINANET.INFERENCE_TH"], "pre_nms": get["RETINANET.PRE_NMS_TOP_N"],
                "nms_iou": get["TEST.NMS"], "max_detections": get["TEST.DETECTIONS_PER_IM"],
            },
        }


def _count(tree: dict[str, Any]) -> int:
    """How many single values a nested table has."""
    return sum(_count(value) if isinstance(value, dict) else 1 for value in tree.values())
