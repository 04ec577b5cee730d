"""The --data argument: from a path, "coco:DIR", "voc:VOCDEVKIT:2007:test", "imagenet:DIR" or "shapes" to a
dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.class_choice import ClassChoice
from detection_zoo.zoo.data.coco import CocoDataset, find_split
from detection_zoo.zoo.data.imagenet import ImageNetDataset
from detection_zoo.zoo.data.recognise import SPLITS, TRAINING_SPLITS, Recognised, coco_parts, recognise
from detection_zoo.zoo.data.voc import VocDataset
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.home import expanded
from detection_zoo.zoo.registry import did_you_mean

FORMS = {
    "coco": (
        "coco:DIR or coco:DIR:SPLIT, as in coco:/data/coco:val2017 (splits: val2017, train2017, minival,"
        " test-dev2017 ...), or coco:annotations=FILE,images=DIR"
    ),
    "voc": (
        "voc:VOCDEVKIT:YEAR:SPLIT, as in voc:/data/VOCdevkit:2007:test or"
        " voc:/data/VOCdevkit:2007+2012:trainval"
    ),
    "imagenet": "imagenet:DIR, a folder with labels.csv or with one folder of images a wnid",
    "shapes": "shapes or shapes:SPLIT (train, val)",
    "path": "PATH or PATH:SPLIT of own data, whose layout is recognised",
}


def open_dataset(
    argument: str,
    *,
    classes: Sequence[str] | int | None = None,
    keypoints: bool = False,
    images: int | Sequence[int | str] | None = None,
    decoder: Literal["pil", "cv2"] = "pil",
    training: bool = False,
) -> Dataset:
    """Open what a --data argument names.

    Args:
        argument: one of the forms above.
        classes: class names in the order of a model's labels (for ImageNet: their number); None takes the
            dataset's own.
        keypoints: take COCO's person_keypoints annotations.
        images: keep only the first N images, or those of these ids.
        decoder: see `decode_image`.
        training: of own data that names no split, take the one to train on.

    Raises:
        DatasetError: the form is unknown, or something is missing or malformed where it points.
    """
    argument, choice = ClassChoice.split(argument)
    kind, _, rest = argument.partition(":")
    own = None
    if kind not in _OPEN or (not rest and kind != "shapes"):
        folder, split = _folder_and_rest(argument)
        if not folder.exists():
            raise DatasetError(_no_such_form(argument, kind))
        own = recognise(folder, split, keypoints, TRAINING_SPLITS if training else SPLITS)
        kind = "coco" if own.annotations is not None else "imagenet"
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
    if own is not None and own.annotations is not None:
        dataset: Dataset = _own(own, classes, decoder, choice)
    elif kind in ("coco", "shapes"):
        dataset = _OPEN[kind](rest, classes, keypoints, decoder, choice)
    elif choice != ClassChoice():
        raise DatasetError(
            f"--data {argument!r}: --classes and --map are for boxes in coco:, shapes and paths"
        )
    elif own is not None:
        dataset = ImageNetDataset(own.images, classes=classes, decoder=decoder)
    else:
        dataset = _OPEN[kind](rest, classes, keypoints, decoder)
    return dataset if images is None else dataset.subset(images)


def _no_such_form(argument: str, kind: str) -> str:
    if kind in _OPEN:
        return f"--data {argument!r}: the folder is missing; write {FORMS[kind]}"
    if "/" in kind or kind.startswith((".", "~")):
        return f"{argument}: no such file or folder (--data)"
    return (
        f"--data {argument!r}: unknown kind of dataset {kind!r}, {did_you_mean(kind, _OPEN)}; forms: "
        + "; ".join(FORMS.values())
    )


def _own(
    found: Recognised, classes: Sequence[str] | None, decoder: Literal["pil", "cv2"], choice: ClassChoice
) -> CocoDataset:
    dataset = CocoDataset(
        found.images, found.annotations, classes=classes, name=found.name, decoder=decoder, choice=choice
    )
    dataset.notes = (f"recognised as {found.layout}", *dataset.notes)
    return dataset


def _open_coco(
    rest: str,
    classes: Sequence[str] | None,
    keypoints: bool,
    decoder: Literal["pil", "cv2"],
    choice: ClassChoice,
) -> Dataset:
    if rest.startswith("annotations="):
        file, _, images = rest.removeprefix("annotations=").partition(",images=")
        parts = coco_parts(expanded(file), expanded(images) if images else None)
        return _own(parts, classes, decoder, choice)
    folder, split = _folder_and_rest(rest)
    images, annotations, split = find_split(folder, split, keypoints)
    name = f"coco:{split}" + (":keypoints" if keypoints else "")
    return CocoDataset(images, annotations, classes=classes, name=name, decoder=decoder, choice=choice)


def _open_voc(
    rest: str, classes: Sequence[str] | None, keypoints: bool, decoder: Literal["pil", "cv2"]
) -> Dataset:
    _refuse_keypoints(keypoints, "PASCAL VOC")
    parts = rest.rsplit(":", 2)
    if len(parts) != 3 or not all(parts):
        raise DatasetError(f"--data 'voc:{rest}': year and split are missing; write {FORMS['voc']}")
    devkit, years, split = parts
    return VocDataset(
        expanded(devkit),
        ["2007", "2012"] if years == "0712" else years.split("+"),
        split,
        classes=classes,
        decoder=decoder,
    )


def _open_imagenet(
    rest: str, classes: int | None, keypoints: bool, decoder: Literal["pil", "cv2"]
) -> Dataset:
    _refuse_keypoints(keypoints, "ImageNet")
    return ImageNetDataset(expanded(rest), classes=classes, decoder=decoder)


def _open_shapes(
    rest: str,
    classes: Sequence[str] | None,
    keypoints: bool,
    decoder: Literal["pil", "cv2"],
    choice: ClassChoice,
) -> Dataset:
    from detection_zoo.zoo.data.shapes import make_shapes

    split = rest or "val"
    images, annotations, split = find_split(make_shapes(), split, keypoints)
    name = f"shapes:{split}" + (":keypoints" if keypoints else "")
    return CocoDataset(images, annotations, classes=classes, name=name, decoder=decoder, choice=choice)


def _folder_and_rest(rest: str) -> tuple[Path, str | None]:
    """Split "DIR" or "DIR:SPLIT"; a folder whose own name holds a colon is taken as it is."""
    whole = expanded(rest)
    if whole.is_dir() or ":" not in rest:
        return whole, None
    folder, split = rest.rsplit(":", 1)
    return expanded(folder), split or None


def _refuse_keypoints(keypoints: bool, title: str) -> None:
    if keypoints:
        raise DatasetError(
            f"{title} has no keypoint annotations; take a COCO folder with person_keypoints_*.json, or shapes"
        )


_OPEN = {"coco": _open_coco, "voc": _open_voc, "imagenet": _open_imagenet, "shapes": _open_shapes}
