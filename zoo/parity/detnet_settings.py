"""What DetNet_pytorch's reference folders state of a model: backbone, neck, detector and conventions, as a
manifest row."""

from __future__ import annotations

import dataclasses
import re
from ast import literal_eval
from collections.abc import Iterable
from typing import Any

from detection_zoo.zoo.conventions import Conventions
from detection_zoo.zoo.detectors.faster_rcnn import RcnnRules
from detection_zoo.zoo.manifest import Component, ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests, merge
from detection_zoo.zoo.parity.base import ParityError, Reference

_SETTINGS = {  # the configuration's name of a number -> section and field of the conventions
    "TEST.RPN_PRE_NMS_TOP_N": ("proposals", "pre_nms"),
    "TEST.RPN_POST_NMS_TOP_N": ("proposals", "post_nms"),
    "TRAIN.RPN_PRE_NMS_TOP_N": ("training_proposals", "pre_nms"),
    "TRAIN.RPN_POST_NMS_TOP_N": ("training_proposals", "post_nms"),
    "TRAIN.BATCH_SIZE": ("roi", "samples"),
    "TRAIN.RPN_BATCHSIZE": ("rpn", "samples"),
    "FPN_ANCHOR_SCALES": ("anchors", "sizes"),
}
# they follow from the backbone and the objects, or have no effect
_ELSEWHERE = ("FPN_FEAT_STRIDES", "MAX_NUM_GT_BOXES", "ANCHOR_SCALES", "FEAT_STRIDE", "POOLING_SIZE")
_POOLINGS = {"align": "roi_align_averaged", "pool": "roi_pool"}


def _blocks(names: Iterable[str], layer: str) -> int:
    """How many residual blocks a checkpoint has in one layer."""
    return 1 + max(
        int(found[1]) for name in names if (found := re.match(rf"{re.escape(layer)}(\d+)\.", name))
    )


def detector_components(reference: Reference) -> dict[str, Any]:
    """Backbone, neck, detector and class count of a folder, from its options and its checkpoint's names."""
    options, names = (
        reference.meta["options"],
        [tensor["name"] for tensor in reference.description["tensors"]],
    )
    if any(name.startswith("RCNN_layer5.") for name in names):
        backbone, neck = (
            Component(name="detnet59", norm="frozen_eps", freeze_at=2),
            Component(name="smoothed_fpn"),
        )
    else:
        depth = {(4, 6): 50, (4, 23): 101, (8, 36): 152}[
            _blocks(names, "RCNN_layer2.0."), _blocks(names, "RCNN_layer3.0.")
        ]
        backbone = Component(name=f"resnet{depth}", norm="frozen_eps", freeze_at=2, stem_pool="ceil")
        neck = Component(name="smoothed_fpn", extra="max_pool")
    arguments = {"deltas": "one"} if options.get("class_agnostic") else {}
    return {
        "backbone": backbone,
        "neck": neck,
        "detector": Component(name="faster_rcnn", box_head="2conv", **arguments),
        "classes": options["classes"] - 1,
        "conventions": _configured(reference, "detnet" if backbone.name == "detnet59" else "detnet_resnet"),
    }


def _configured(reference: Reference, bundle: str) -> Conventions:
    """A bundle with what a folder's options change: its yml, its flags, and its overrides of the yml."""
    options = reference.meta["options"]
    given = options.get("overrides", [])
    overrides = dict(zip(given[::2], given[1::2], strict=True))
    pooling = overrides.pop("POOLING_MODE", options.get("pooling", "align"))
    if pooling not in _POOLINGS:
        raise ParityError(
            f"{reference.folder}: pooling {pooling!r} is not supported on a pyramid; known:"
            f" {', '.join(_POOLINGS)}"
        )
    changed: dict[str, Any] = {"pooling": {"size": options["pooled_size"], "method": _POOLINGS[pooling]}}
    if options.get("yml", "").endswith("_ls.yml"):
        changed["proposals"] = {"post_nms": 1000}
    for theirs, (section, field) in _SETTINGS.items():
        if theirs in overrides:
            value = literal_eval(str(overrides.pop(theirs)))
            value = [[float(size)] for size in value] if field == "sizes" else value
            changed = merge(changed, {section: {field: value}})
    if other := sorted(set(overrides) - set(_ELSEWHERE)):
        reference.notes.append(f"the options set {', '.join(other)}, which are not supported")
    base = load_manifests().conventions[bundle].model_dump(exclude_unset=True)
    return Conventions.model_validate(merge(base, changed))


def row_for(reference: Reference, entry: ModelEntry | None, own: dict[str, Any]) -> ModelEntry:
    """The manifest row, or where the folder is of another model, a row made of what the folder itself states
    (`own`, fields of ModelEntry)."""
    if entry is not None:
        differing = [name for name, value in own.items() if not _same(getattr(entry, name), value)]
        if not differing:
            return entry
        reference.notes.append(
            f"the folder differs from row {entry.name} in {', '.join(differing)}; built as the folder states"
        )
    return ModelEntry(
        name=reference.folder.name, source="detnet", title=reference.folder.name, dataset="voc_0712", **own
    )


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two fields of a row agree; of conventions, the sections that the detector uses count."""
    if not isinstance(ours, Conventions) or not isinstance(theirs, Conventions):
        return ours == theirs
    return all(
        getattr(ours, section.name) == getattr(theirs, section.name)
        for section in dataclasses.fields(RcnnRules)
    )
