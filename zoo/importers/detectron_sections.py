"""Conventions from a configuration file of Detectron: sizes, anchors, sampling, selection, augmentation. No
torch."""

from __future__ import annotations

from typing import Any

from detection_zoo.zoo.conventions import Conventions
from detection_zoo.zoo.importers.detectron_model import MASK_HEADS, ConfigReader
from detection_zoo.zoo.manifest_files import merge

POOLINGS = {"RoIAlign": "roi_align", "RoIPoolF": "roi_pool", "RoICrop": "roi_crop"}
VIEW_OPTIONS = (
    "ENABLED",
    "H_FLIP",
    "SCALES",
    "MAX_SIZE",
    "SCALE_H_FLIP",
    "ASPECT_RATIOS",
    "ASPECT_RATIO_H_FLIP",
)
ANY_STRADDLE = 100000.0  # pixels; TOML has no null


class ConventionReader(ConfigReader):
    """The file's numbers, as sections of conventions."""

    def conventions(self) -> tuple[str, dict[str, Any], Conventions]:
        """The nearest bundle, the differences from it, and the resulting conventions."""
        bundles = self.manifests.conventions
        wanted = self.sections()
        names = [
            name for name in bundles if name.startswith("detectron") and kind_of(bundles[name]) == self.kind
        ]
        best, adjust = min(
            ((name, self.adjustment(wanted, bundles[name])) for name in names),
            key=lambda pair: (_count(pair[1]), len(pair[0])),
        )
        whole = Conventions.model_validate(merge(bundles[best].model_dump(exclude_unset=True), adjust))
        return best, adjust, whole

    @staticmethod
    def adjustment(wanted: dict[str, Any], bundle: Conventions) -> dict[str, Any]:
        """Changes from a bundle to the given sections; None for a value that a row cannot change."""
        base = bundle.model_dump()
        unwanted = {"augmentation": None} if base.get("augmentation") and "augmentation" not in wanted else {}
        return _difference(wanted, base) | unwanted

    def sections(self) -> dict[str, Any]:
        """All values of the conventions that the file sets."""
        get = self.options
        means = [
            value
            for rows in get["PIXEL_MEANS"]
            for row in (rows if isinstance(rows, (list, tuple)) else [rows])
            for value in (row if isinstance(row, (list, tuple)) else [row])
        ]
        self.require(
            "TRAIN.MAX_SIZE",
            get["TEST.MAX_SIZE"],
            "the longer side has the same bound in training and at test time here",
        )
        found: dict[str, Any] = {
            "image": {
                "size": get["TEST.SCALE"],
                "max_size": get["TEST.MAX_SIZE"],
                "mean": [float(value) for value in means],
                "size_divisor": get["FPN.COARSEST_STRIDE"] if self.pyramid else 1,
            },
            "boxes": {"cap": float(get["BBOX_XFORM_CLIP"])},
        }
        if get["TRAIN.ASPECT_CROPPING"]:  # masks and keypoints are shifted here, but not in the original
            found["targets"] = {"aspect_cropping": True}
        if self.kind == "retinanet":
            return found | self.retinanet()
        found |= self.proposals()
        if self.kind == "rpn":
            del found["training_proposals"]  # a proposal network alone is trained without them
            return found
        found["boxes"]["weights"] = [float(value) for value in get["MODEL.BBOX_REG_WEIGHTS"]]
        found |= self.selection()
        found["pooling"] = self.pooling("FAST_RCNN", size=True) | {
            "canonical_scale": float(get["FPN.ROI_CANONICAL_SCALE"]),
            "canonical_level": get["FPN.ROI_CANONICAL_LEVEL"],
        }
        found["roi"] = {
            "samples": get["TRAIN.BATCH_SIZE_PER_IM"],
            "positive_fraction": get["TRAIN.FG_FRACTION"],
            "foreground_iou": get["TRAIN.FG_THRESH"],
            "background_iou": get["TRAIN.BG_THRESH_HI"],
            "background_low": get["TRAIN.BG_THRESH_LO"],
        }
        if self.kind == "mask_rcnn":
            found["mask"] = {
                "threshold": get["MRCNN.THRESH_BINARIZE"],
                "width": get["MRCNN.DIM_REDUCED"],
                "dilation": (
                    get["MRCNN.DILATION"] if MASK_HEADS[get["MRCNN.ROI_MASK_HEAD"]].startswith("v1") else 1
                ),
            }
            self.branch_pooling(
                "MRCNN", found, "mask", shared=get["MRCNN.ROI_MASK_HEAD"].endswith("v0upshare")
            )
        if self.kind == "keypoint_rcnn":
            found["keypoint"] = {
                "keypoints": get["KRCNN.NUM_KEYPOINTS"],
                "convs": get["KRCNN.NUM_STACKED_CONVS"],
                "width": get["KRCNN.CONV_HEAD_DIM"],
            }
            self.branch_pooling("KRCNN", found, "keypoint", shared=False)
        return found | self.augmentation()

    def pooling(self, section: str, *, size: bool) -> dict[str, Any]:
        """One branch's RoI pooling."""
        get = self.options
        method = get[f"{section}.ROI_XFORM_METHOD"]
        if method not in POOLINGS:
            raise self.cannot(f"{section}.ROI_XFORM_METHOD is {method!r}; known: {', '.join(POOLINGS)}")
        if method == "RoICrop":
            self.require(
                "CROP_RESIZE_WITH_MAX_POOL", True, "RoICrop takes the maximum of two by two points here"
            )
        return {
            "sampling_ratio": get[f"{section}.ROI_XFORM_SAMPLING_RATIO"],
            "method": POOLINGS[method],
            **({"size": get[f"{section}.ROI_XFORM_RESOLUTION"]} if size else {}),
        }

    def branch_pooling(self, section: str, found: dict[str, Any], branch: str, *, shared: bool) -> None:
        """A branch's own pooling where it is not the box branch's with 14 cells."""
        own = self.pooling(section, size=True)
        box = {name: found["pooling"][name] for name in own}
        if shared:
            self.require(
                f"{section}.ROI_XFORM_RESOLUTION",
                box["size"],
                "the shared mask head reads what the box head pools here",
            )
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
            sizes = [[float(get["FPN.RPN_ANCHOR_START_SIZE"] * 2**step)] for step, _ in enumerate(levels)]
        standard = many and sizes == [[8.0 * 2**level] for level in levels]
        straddle = float(get["TRAIN.RPN_STRADDLE_THRESH"])
        found: dict[str, Any] = {
            "anchors": {
                "sizes": None if standard else sizes,
                "ratios": [float(r) for r in get["FPN.RPN_ASPECT_RATIOS" if many else "RPN.ASPECT_RATIOS"]],
            },
            "rpn": {
                "channels": None if get["RPN.OUT_DIM_AS_IN_DIM"] else get["RPN.OUT_DIM"],
                "samples": get["TRAIN.RPN_BATCH_SIZE_PER_IM"],
                "positive_fraction": get["TRAIN.RPN_FG_FRACTION"],
                "foreground_iou": get["TRAIN.RPN_POSITIVE_OVERLAP"],
                "background_iou": get["TRAIN.RPN_NEGATIVE_OVERLAP"],
                "straddle": ANY_STRADDLE if straddle < 0 else straddle,
                "objectness_over": "configured" if many else "sampled",
            },
        }
        for section, name in (("TEST", "proposals"), ("TRAIN", "training_proposals")):
            self.require(
                f"{section}.RPN_MIN_SIZE",
                0,
                "a minimum side in pixels of the original image is not supported here",
            )
            post = get[f"{section}.RPN_POST_NMS_TOP_N"]
            found[name] = {
                "pre_nms": get[f"{section}.RPN_PRE_NMS_TOP_N"],
                "post_nms": post,
                "nms_iou": get[f"{section}.RPN_NMS_THRESH"],
                "collect": int(post * get["FPN.RPN_COLLECT_SCALE"] + 0.5) if many else post,
            }
        found["training_proposals"]["collect_over"] = "batch" if many else "image"
        return found

    def selection(self) -> dict[str, Any]:
        """How detections are chosen."""
        get = self.options
        found: dict[str, Any] = {
            "score_threshold": get["TEST.SCORE_THRESH"],
            "nms_iou": get["TEST.NMS"],
            "max_detections": get["TEST.DETECTIONS_PER_IM"],
        }
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
            self.require(
                f"TEST.{section}.SCALE_SIZE_DEP",
                False,
                "copies have equal weight for objects of all sizes here; in the original this option fails",
            )
            for threshold in ("AREA_TH", "AREA_TH_LO", "AREA_TH_HI"):
                get.idle[f"TEST.{section}.{threshold}"] = "read only with SCALE_SIZE_DEP"
            if values["ENABLED"]:
                found[name] = {
                    "flip": values["H_FLIP"],
                    "scales": values["SCALES"],
                    "max_size": values["MAX_SIZE"],
                    "scale_flip": values["SCALE_H_FLIP"],
                    "aspect_ratios": [float(ratio) for ratio in values["ASPECT_RATIOS"]],
                    "aspect_flip": values["ASPECT_RATIO_H_FLIP"],
                }
        union = "UNION", "boxes of all copies are put together here, as they must be with a proposal network"
        self.require_all("TEST.BBOX_AUG", {"SCORE_HEUR": union, "COORD_HEUR": union})
        combine = {
            "mask_combine": get["TEST.MASK_AUG.HEUR"].lower(),
            "keypoint_combine": {"HM_AVG": "mean", "HM_MAX": "max"}.get(get["TEST.KPS_AUG.HEUR"]),
        }
        if (
            combine["mask_combine"] not in ("soft_avg", "soft_max", "logit_avg")
            or combine["keypoint_combine"] is None
        ):
            raise self.cannot(
                "TEST.MASK_AUG.HEUR must be SOFT_AVG, SOFT_MAX or LOGIT_AVG, and TEST.KPS_AUG.HEUR HM_AVG or"
                " HM_MAX"
            )
        return {"augmentation": {**found, **combine}} if found else {}

    def retinanet(self) -> dict[str, Any]:
        """RetinaNet's head, training and selection."""
        get = self.options
        reason = "RetinaNet's head here has two towers of four convolutions and sigmoid classes"
        head = {"SHARE_CLS_BBOX_TOWER": False, "CLASS_SPECIFIC_BBOX": False, "SOFTMAX": False, "NUM_CONVS": 4}
        self.require_all("RETINANET", {name: (value, reason) for name, value in head.items()})
        for name in get.given:
            if name.partition(".")[2].startswith("RPN_") and name.partition(".")[0] in ("TRAIN", "TEST"):
                get.idle[name] = "RetinaNet has no proposal network"
        get.idle["MODEL.BBOX_REG_WEIGHTS"] = "RetinaNet's deltas are not weighted"
        start = float(get["RETINANET.ANCHOR_SCALE"])
        return {
            "anchors": {"ratios": [float(ratio) for ratio in get["RETINANET.ASPECT_RATIOS"]]},
            "retinanet": {
                "scales_per_octave": get["RETINANET.SCALES_PER_OCTAVE"],
                "sizes": [start * 2**level for level in range(3, 8)],
                "foreground_iou": get["RETINANET.POSITIVE_OVERLAP"],
                "background_iou": get["RETINANET.NEGATIVE_OVERLAP"],
                "focal_alpha": get["RETINANET.LOSS_ALPHA"],
                "focal_gamma": get["RETINANET.LOSS_GAMMA"],
                "prior": get["RETINANET.PRIOR_PROB"],
                "smooth_l1_beta": get["RETINANET.BBOX_REG_BETA"],
                "box_weight": 1.0 / get["RETINANET.BBOX_REG_WEIGHT"],
                "score_threshold": get["RETINANET.INFERENCE_TH"],
                "pre_nms": get["RETINANET.PRE_NMS_TOP_N"],
                "nms_iou": get["TEST.NMS"],
                "max_detections": get["TEST.DETECTIONS_PER_IM"],
            },
        }


def kind_of(bundle: Conventions) -> str:
    """The detector of a bundle, by its sections."""
    if bundle.retinanet is not None:
        return "retinanet"
    if bundle.roi is None:
        return "rpn" if bundle.rpn is not None else "images"
    return "mask_rcnn" if bundle.mask else "keypoint_rcnn" if bundle.keypoint else "faster_rcnn"


def _difference(wanted: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Values of `wanted` that differ from `base`, table by table."""
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            if inner := _difference(value, base[name]):
                found[name] = inner
        elif value != base.get(name):
            found[name] = value
    return found


def _count(tree: dict[str, Any]) -> int:
    """Number of values in a nested table; None, which a row cannot contain, counts as 99."""
    return sum(
        _count(value) if isinstance(value, dict) else 99 if value is None else 1 for value in tree.values()
    )
