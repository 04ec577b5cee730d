"""Rows without a manifest entry: backbone and detector encoded in the name, so that any process can build
them."""

from __future__ import annotations

from detection_zoo.zoo.errors import UnknownName
from detection_zoo.zoo.manifest import CREATED, ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests

SUFFIX = f".{CREATED}"
CLASSIFIER = "classifier"  # in place of a detector, for ImageNet


def created_name(backbone: str, detector: str, data: str) -> str:
    """The name of a row without a manifest: detector, backbone and dataset.

    Args:
        backbone: a registered name, or "timm.NAME".
        detector: a registered name, or "classifier".
        data: a --data argument; user folders count as COCO.
    """
    kind = data.partition(":")[0]
    dataset = kind if kind in ("shapes", "voc", "imagenet") else "coco"
    if "keypoint" in detector and dataset in ("shapes", "coco"):
        dataset += "_keypoints"
    return f"{detector}_{backbone}_{dataset}{SUFFIX}"


def row_named(name: str) -> ModelEntry:
    """The row of a manifest, or the one that `created_name` names, with its default conventions.

    Raises:
        UnknownName: no such row, backbone or detector.
        ManifestError: backbone and detector do not go together.
    """
    manifests = load_manifests()
    if name in manifests.entries or not name.endswith(SUFFIX):
        return manifests.entry(name)
    from detection_zoo.zoo.build import create_entry
    from detection_zoo.zoo.registry import BACKBONES, DETECTORS, did_you_mean

    text = name.removesuffix(SUFFIX)
    dataset = max((d for d in manifests.datasets if text.endswith(f"_{d}")), key=len, default="")
    text = text.removesuffix(f"_{dataset}")
    detectors = [*DETECTORS, CLASSIFIER]
    detector = max((d for d in detectors if text.startswith(f"{d}_")), key=len, default="")
    if not detector or not dataset:
        what, known = ("dataset", manifests.datasets) if detector else ("detector", detectors)
        raise UnknownName(f"row {name}: unknown {what}, {did_you_mean(text, known)}")
    backbone = text.removeprefix(f"{detector}_")
    try:
        BACKBONES[backbone]
    except KeyError as error:
        raise UnknownName(f"row {name}: {error.args[0]}") from None
    count = len(manifests.datasets[dataset].classes) or 1000
    entry = create_entry(backbone, None if detector == CLASSIFIER else detector, count, dataset=dataset)
    return entry.model_copy(update={"name": name})
