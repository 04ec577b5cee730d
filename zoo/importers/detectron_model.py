"""The model of a Detectron configuration file: backbone, pyramid, heads, data and schedule. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.importers.detectron_config import Options
from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.manifest_files import load_manifests

RESNEXTS = {
    (101, 32, 8): "resnext101_32x8d",
    (101, 64, 4): "resnext101_64x4d",
    (152, 32, 8): "resnext152_32x8d",
}
BOX_HEADS = {
    "fast_rcnn_heads.roi_2mlp_head": ("2mlp", "none"),
    "fast_rcnn_heads.roi_Xconv1fc_head": ("xconv1fc", "none"),
    "fast_rcnn_heads.roi_Xconv1fc_gn_head": ("xconv1fc", "group"),
    "ResNet.ResNet_roi_conv5_head": ("conv5", "none"),
}
MASK_HEADS = {
    f"mask_rcnn_heads.mask_rcnn_fcn_head_{name}": name for name in ("v1up4convs", "v1up", "v0up", "v0upshare")
}
MASK_HEADS["mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs_gn"] = "v1up4convs"
NORMS = {
    ("bottleneck_transformation", "basic_bn_stem", "basic_bn_shortcut"): "affine",
    ("bottleneck_gn_transformation", "basic_gn_stem", "basic_gn_shortcut"): "group",
}
# the only supported values of options, and what is fixed instead
MASK_HEAD_OPTIONS = {
    "UPSAMPLE_RATIO": (1, "masks are not upsampled further here"),
    "USE_FC_OUTPUT": (False, "masks come from a convolution here"),
    "CLS_SPECIFIC_MASK": (True, "there is one mask per class here"),
    "WEIGHT_LOSS_MASK": (1.0, "losses are summed as they are here"),
    "CONV_INIT": ("MSRAFill", "training from scratch starts from MSRA values here"),
}
KEYPOINT_HEAD_OPTIONS = {
    "UP_SCALE": (2, "heat maps are doubled once here"),
    "USE_DECONV": (False, "there is no deconvolution before the last here"),
    "USE_DECONV_OUTPUT": (True, "the last layer is a deconvolution here"),
    "DECONV_KERNEL": (4, "its kernel has a side of 4 here"),
    "CONV_HEAD_KERNEL": (3, "kernels have a side of 3 here"),
    "NMS_OKS": (False, "keypoint NMS by OKS is not supported here"),
    "KEYPOINT_CONFIDENCE": ("bbox", "a keypoint's score is its box's here"),
    "INFERENCE_MIN_SIZE": (0, "heat maps are resized to the box here"),
    "LOSS_WEIGHT": (1.0, "losses are summed as they are here"),
    "NORMALIZE_BY_VISIBLE_KEYPOINTS": (True, "the loss is a mean over visible keypoints here"),
    "CONV_INIT": ("MSRAFill", "training from scratch starts from MSRA values here"),
}
BODY = re.compile(r"(?:(FPN)\.fpn_|ResNet\.)ResNet(50|101|152)_conv([45])(_P2only)?_body")


class ConfigReader:
    """Reader of one configuration file.

    Args:
        path: of the file, for messages. options: what it sets. source: manifest that the row is for.
    """

    def __init__(self, path: Path, options: Options, source: str) -> None:
        self.path, self.options, self.source, self.manifests = path, options, source, load_manifests()
        body = BODY.fullmatch(options["MODEL.CONV_BODY"])
        if body is None:
            raise self.cannot(
                f"MODEL.CONV_BODY is {options['MODEL.CONV_BODY']!r}; only ResNet bodies, plain (conv4, conv5)"
                " and with FPN, are known"
            )
        self.pyramid, self.p2_only = bool(body[1]), bool(body[4])
        self.depth, self.last = int(body[2]), f"c{body[3]}"
        self.kind = self.find_kind()

    def cannot(self, reason: str) -> ManifestError:
        """An error that names the file."""
        return ManifestError(f"{self.path}: {reason}")

    def require(self, name: str, value: Any, reason: str) -> None:
        """Record an option as not supported if its value, given or default, is not the only supported one."""
        if self.options[name] != value:
            self.options.refused[name] = f"{self.options[name]!r}: {reason}"

    def require_all(self, section: str, known: dict[str, tuple[Any, str]]) -> None:
        """`require` for options of one section, by name: the value and the reason."""
        for name, (value, reason) in known.items():
            self.require(f"{section}.{name}", value, reason)

    def find_kind(self) -> str:
        """The detector by name."""
        get = self.options
        if get["RETINANET.RETINANET_ON"]:
            return "retinanet"
        if get["MODEL.RPN_ONLY"]:
            return "rpn"
        if not get["MODEL.FASTER_RCNN"]:
            raise self.cannot(
                "MODEL.FASTER_RCNN is off: a second stage alone needs stored proposals, which are not read"
                " here"
            )
        masks, keypoints = get["MODEL.MASK_ON"], get["MODEL.KEYPOINTS_ON"]
        if masks and keypoints:
            raise self.cannot(
                "MODEL.MASK_ON and MODEL.KEYPOINTS_ON together: no model with both branches is supported here"
            )
        return "mask_rcnn" if masks else "keypoint_rcnn" if keypoints else "faster_rcnn"

    def backbone(self) -> dict[str, Any]:
        """The ResNet or ResNeXt."""
        get = self.options
        functions = tuple(get[f"RESNETS.{name}_FUNC"] for name in ("TRANS", "STEM", "SHORTCUT"))
        if functions not in NORMS:
            raise self.cannot(
                f"RESNETS.TRANS_FUNC, STEM_FUNC and SHORTCUT_FUNC are {functions}; all three must have the"
                f" same norm, one of {list(NORMS)}"
            )
        groups, width = get["RESNETS.NUM_GROUPS"], get["RESNETS.WIDTH_PER_GROUP"]
        known = RESNEXTS.get((self.depth, groups, width))
        freeze = get["TRAIN.FREEZE_AT"] if "TRAIN.FREEZE_AT" in get.given else get["RESNETS.FREEZE_AT"]
        name = known or f"resnet{self.depth}"
        found: dict[str, Any] = {"name": name, "norm": NORMS[functions], "freeze_at": freeze}
        if known is None and (groups, width) != (1, 64):
            found |= {"groups": groups, "width_per_group": width}
        if get["RESNETS.STRIDE_1X1"] != (known is None):
            found["stride_in_1x1"] = get["RESNETS.STRIDE_1X1"]
        if self.last == "c4":
            found["last"] = "c4"
        if get["RESNETS.RES5_DILATION"] != 1:
            found["dilation_c5"] = get["RESNETS.RES5_DILATION"]
        self.require(
            "TRAIN.FREEZE_CONV_BODY",
            False,
            "freezing the pyramid with the backbone is not supported here; set freeze_at in the row",
        )
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
            known = {
                "EXTRA_CONV_LEVELS": (True, "RetinaNet's pyramid here ends with two strided convolutions"),
                "RPN_MIN_LEVEL": (3, "RetinaNet's pyramid here starts with level 3"),
                "RPN_MAX_LEVEL": (7, "RetinaNet's pyramid here ends with level 7"),
            }
            self.require_all("FPN", known)
        else:
            self.require(
                "FPN.EXTRA_CONV_LEVELS",
                False,
                "strided convolutions on top of the pyramid are RetinaNet's; in the original this option"
                " fails",
            )
            lowest, highest = get["FPN.RPN_MIN_LEVEL"], get["FPN.RPN_MAX_LEVEL"]
            if (
                lowest != get["FPN.ROI_MIN_LEVEL"]
                or get["FPN.ROI_MAX_LEVEL"] != 5
                or highest not in (5, 6)
                or lowest not in (2, 3, 4, 5)
            ):
                raise self.cannot(
                    "FPN levels: RPN_MIN_LEVEL must be ROI_MIN_LEVEL, ROI_MAX_LEVEL 5 and RPN_MAX_LEVEL 5"
                    " or 6"
                )
            found |= {"levels": [f"c{level}" for level in range(lowest, 6)]} if lowest != 2 else {}
            found |= {"extra": "none"} if highest == 5 else {}
        found |= {"channels": get["FPN.DIM"]} if get["FPN.DIM"] != 256 else {}
        found |= {"norm": "group"} if get["FPN.USE_GN"] else {}
        found |= {"only": "p2"} if self.p2_only else {}
        self.require("FPN.ZERO_INIT_LATERAL", False, "laterals start from Caffe2's Xavier values here")
        if not self.p2_only:
            for name in (
                "FPN.FPN_ON",
                "FPN.MULTILEVEL_RPN",
                *(() if self.kind in ("rpn", "retinanet") else ("FPN.MULTILEVEL_ROIS",)),
            ):
                self.require(name, True, "heads on a pyramid read all of its levels here")
        return found

    def detector(self) -> dict[str, Any]:
        """The detector and its heads."""
        get = self.options
        if self.kind in ("rpn", "retinanet"):
            return {"name": self.kind}
        if get["FAST_RCNN.ROI_BOX_HEAD"] not in BOX_HEADS:
            raise self.cannot(
                f"FAST_RCNN.ROI_BOX_HEAD is {get['FAST_RCNN.ROI_BOX_HEAD']!r}; known: {', '.join(BOX_HEADS)}"
            )
        box, norm = BOX_HEADS[get["FAST_RCNN.ROI_BOX_HEAD"]]
        found: dict[str, Any] = {"name": self.kind, "box_head": box}
        sizes = {"width": ("MLP_HEAD_DIM", 1024)} if box != "conv5" else {}
        if box == "xconv1fc":
            sizes |= {"conv_channels": ("CONV_HEAD_DIM", 256), "convs": ("NUM_STACKED_CONVS", 4)}
        sizes = {field: (get[f"FAST_RCNN.{name}"], usual) for field, (name, usual) in sizes.items()}
        head = {field: size for field, (size, usual) in sizes.items() if size != usual}
        found |= {"head": head} if head else {}
        if get["MODEL.CLS_AGNOSTIC_BBOX_REG"]:
            found["deltas"] = "object"
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
            raise self.cannot(
                f"MRCNN.RESOLUTION is {get['MRCNN.RESOLUTION']}, but this head makes masks of {side} from a"
                f" pooled side of {pooled}"
            )
        self.require_all("MRCNN", MASK_HEAD_OPTIONS)

    def keypoint_head(self, found: dict[str, Any]) -> None:
        """The keypoint head; its size must follow from its pooling."""
        get = self.options
        if get["KRCNN.ROI_KEYPOINTS_HEAD"] != "keypoint_rcnn_heads.roi_pose_head_v1convX":
            raise self.cannot(
                f"KRCNN.ROI_KEYPOINTS_HEAD is {get['KRCNN.ROI_KEYPOINTS_HEAD']!r}; known:"
                " keypoint_rcnn_heads.roi_pose_head_v1convX"
            )
        found["keypoint_head"] = "v1convx"
        if get["KRCNN.HEATMAP_SIZE"] != 4 * get["KRCNN.ROI_XFORM_RESOLUTION"]:
            raise self.cannot(
                "KRCNN.HEATMAP_SIZE must be four times KRCNN.ROI_XFORM_RESOLUTION, which is what this head"
                " makes"
            )
        self.require_all("KRCNN", KEYPOINT_HEAD_OPTIONS)

    def dataset(self) -> dict[str, Any]:
        """Dataset, classes and splits: rules 1 and 2, classes come from the dataset unless the file gives
        them."""
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
                get.notes.append(
                    f"{option}: results were made for {', '.join(names)}; the row names the first"
                )
                names = names[:1]
            others = (name.removeprefix("keypoints_").removeprefix("coco_2014_") for name in names[1:])
            joined = "+".join([names[0], *others])
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
        option = next(
            (name for name in ("RESNETS.IMAGENET_PRETRAINED_WEIGHTS", "TRAIN.WEIGHTS") if get[name]), None
        )
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
        """The training schedule, by name where schedules.toml has it; rule 6: the batch is all GPUs' images
        together."""
        get = self.options
        steps = list(get["SOLVER.STEPS"])
        if steps and steps[0] != 0:
            raise self.cannot(f"SOLVER.STEPS is {steps}; the first step must be 0")
        self.require("SOLVER.WARM_UP_METHOD", "linear", "the warm-up is a ramp here")
        if get["SOLVER.SCALE_MOMENTUM"]:
            self.require(
                "SOLVER.SCALE_MOMENTUM_THRESHOLD",
                1.1,
                "momentum is rescaled where the rate changes by more than 1.1 times here",
            )
        training = {
            "USE_FLIPPED": (True, "images are flipped in training here"),
            "ASPECT_GROUPING": (True, "batches have images of similar aspect ratio here"),
            "ASPECT_HI": (2.0, "images are cropped beyond 2 to 1 here"),
            "ASPECT_LO": (0.5, "images are cropped beyond 1 to 2 here"),
            "GT_MIN_AREA": (-1, "objects of any area are trained on here"),
        }
        cropped = get["TRAIN.ASPECT_CROPPING"]
        self.require_all(
            "TRAIN", {n: k for n, k in training.items() if cropped or not n.endswith(("HI", "LO"))}
        )
        optimizer = get["SOLVER.TYPE"].lower()
        if optimizer not in ("sgd", "adam"):
            raise self.cannot(f"SOLVER.TYPE is {get['SOLVER.TYPE']!r}; known: SGD, Adam")
        decay = get["SOLVER.WEIGHT_DECAY"]
        sides = list(get["TRAIN.SCALES"])
        schedule = Schedule(
            images_per_batch=get["NUM_GPUS"] * get["TRAIN.IMS_PER_BATCH"],
            gpus=get["NUM_GPUS"],
            lr=get["SOLVER.BASE_LR"],
            iterations=get["SOLVER.MAX_ITER"],
            steps=steps[1:],
            gamma=get["SOLVER.GAMMA"],
            warmup_iterations=get["SOLVER.WARM_UP_ITERS"],
            warmup_factor=get["SOLVER.WARM_UP_FACTOR"],
            rescale_momentum=get["SOLVER.SCALE_MOMENTUM"] and self.source != "detectron",
            optimizer=optimizer,
            momentum=get["SOLVER.MOMENTUM"],
            weight_decay=decay,
            weight_decay_bias=decay if get["SOLVER.BIAS_WEIGHT_DECAY"] else 0.0,
            weight_decay_norm=get["SOLVER.WEIGHT_DECAY_GN"],
            bias_lr_factor=2.0 if get["SOLVER.BIAS_DOUBLE_LR"] else 1.0,
            short_sides=[] if sides == [get["TEST.SCALE"]] else sides,
        )
        fields = schedule.model_dump(exclude={"note"})
        for name, known in self.manifests.schedules.items():
            if known.model_dump(exclude={"note"}) == fields:
                return name, schedule, False
        return f"{self.source}_{self.path.stem}", schedule, True
