"""The --data argument: from "coco:DIR", "voc:VOCDEVKIT:2007:test", "imagenet:DIR" or "shapes" to a
dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.coco import CocoDataset, find_split
from detection_zoo.zoo.data.imagenet import ImageNetDataset
from detection_zoo.zoo.data.voc import VocDataset
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.registry import did_you_mean

FORMS = {
    "coco": (
        "coco:DIR or coco:DIR:SPLIT, as in coco:/data/coco:val2017 (splits: val2017, train2017, minival,"
        " test-dev2017 ...)"
    ),
    "voc": (
        "voc:VOCDEVKIT:YEAR:SPLIT, as in voc:/data/VOCdevkit:2007:test or"
        " voc:/data/VOCdevkit:2007+2012:trainval"
    ),
    "imagenet": "imagenet:DIR, a folder with labels.csv or with one folder of images a wnid",
    "shapes": "shapes or shapes:SPLIT (train, val)",
}


def open_dataset(
    argument: str,
    *,
    classes: Sequence[str] | int | None = None,
    keypoints: bool = False,
    images: int | Sequence[int | str] | None = None,
    decoder: Literal["pil", "cv2"] = "pil",
) -> Dataset:
    """Open what a --data argument names.

    Args:
        argument: one of the forms above.
        classes: class names in the order of a model's labels (for ImageNet: their number); None takes the
            dataset's own.
        keypoints: take COCO's person_keypoints annotations.
        images: keep the first so many images only, or those of these ids.
        decoder: see `decode_image`.

    Raises:
        DatasetError: the form is unknown, or something is missing or malformed where it points.
    """
    kind, _, rest = argument.partition(":")
    if kind not in FORMS:
        raise DatasetError(
            f"--data {argument!r}: unknown kind of dataset {kind!r}, {did_you_mean(kind, FORMS)}; forms: "
            + "; ".join(FORMS.values())
        )
    if kind != "shapes" and not rest:
        raise DatasetError(f"--data {argument!r}: the folder is missing; write {FORMS[kind]}")
    if isinstance(classes, int) != (kind == "imagenet") and classes is not None:
        model, fitting = (
            ("a classifier", ["imagenet"])
            if isinstance(classes, int)
            else ("a detector", ["coco", "voc", "shapes"])
        )
        raise DatasetError(
            f"--data {argument!r}: the model is {model}, which does not fit a dataset of kind {kind}; give"
            " --data " + ", or ".join(FORMS[one] for one in fitting) + "; or take a row of another task"
        )
    dataset = _OPEN[kind](rest, classes, keypoints, decoder)
    return dataset if images is None else dataset.subset(images)


def _open_coco(
    rest: str, classes: Sequence[str] | None, keypoints: bool, decoder: Literal["pil", "cv2"]
) -> Dataset:
    folder, split = _folder_and_rest(rest)
    images, annotations, split = find_split(folder, split, keypoints)
    name = f"coco:{split}" + (":keypoints" if keypoints else "")
    return CocoDataset(images, annotations, classes=classes, name=name, decoder=decoder)


def _open_voc(
    rest: str, classes: Sequence[str] | None, keypoints: bool, decoder: Literal["pil", "cv2"]
) -> Dataset:
    _refuse_keypoints(keypoints, "PASCAL VOC")
    parts = rest.rsplit(":", 2)
    if len(parts) != 3 or not all(parts):
        raise DatasetError(f"--data 'voc:{rest}': year and split are missing; write {FORMS['voc']}")
    devkit, years, split = parts
    return VocDataset(
        Path(devkit).expanduser(),
        ["2007", "2012"] if years == "0712" else years.split("+"),
        split,
        classes=classes,
        decoder=decoder,
    )


def _open_imagenet(
    rest: str, classes: int | None, keypoints: bool, decoder: Literal["pil", "cv2"]
) -> Dataset:
    _refuse_keypoints(keypoints, "ImageNet")
    return ImageNetDataset(Path(rest).expanduser(), classes=classes, decoder=decoder)


def _open_shapes(
    rest: str, classes: Sequence[str] | None, keypoints: bool, decoder: Literal["pil", "cv2"]
) -> Dataset:
    from detection_zoo.zoo.data.shapes import make_shapes

    split = rest or "val"
    images, annotations, split = find_split(make_shapes(), split, keypoints)
    name = f"shapes:{split}" + (":keypoints" if keypoints else "")
    return CocoDataset(images, annotations, classes=classes, name=name, decoder=decoder)


def _folder_and_rest(rest: str) -> tuple[Path, str | None]:
    """Split "DIR" or "DIR:SPLIT"; a folder whose own name holds a colon is taken as it is."""
    whole = Path(rest).expanduser()
    if whole.is_dir() or ":" not in rest:
        return whole, None
    folder, split = rest.rsplit(":", 1)
    return Path(folder).expanduser(), split or None


def _refuse_keypoints(keypoints: bool, title: str) -> None:
    if keypoints:
        raise DatasetError(
            f"{title} has no keypoint annotations; take a COCO folder with person_keypoints_*.json, or shapes"
        )


_OPEN = {"coco": _open_coco, "voc": _open_voc, "imagenet": _open_imagenet, "shapes": _open_shapes}
