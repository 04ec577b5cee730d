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
from detection_zoo.zoo.data.recognise import SPLITS, TRAINING_SPLITS, coco_parts, recognise
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
KINDS = ("coco", "voc", "imagenet", "shapes")


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
    if kind not in KINDS or (not rest and kind != "shapes"):
        folder, split = _folder_and_rest(argument)
        if not folder.exists():
            raise DatasetError(_no_such_form(argument, kind))
        own = recognise(folder, split, keypoints, TRAINING_SPLITS if training else SPLITS)
        kind = "coco" if own.annotations is not None else "imagenet"
    if isinstance(classes, int) != (kind == "imagenet") and classes is not None:
        model, fitting = "a detector", ["coco", "voc", "shapes"]
        if isinstance(classes, int):
            model, fitting = "a classifier", ["imagenet"]
        raise DatasetError(
            f"--data {argument!r}: the model is {model}, which does not fit a dataset of kind {kind}; give"
            " --data " + ", or ".join(FORMS[one] for one in fitting) + "; or take a row of another task"
        )
    if kind in ("coco", "shapes"):
        if rest.startswith("annotations=") and own is None:
            file, _, folder = rest.removeprefix("annotations=").partition(",images=")
            own = coco_parts(expanded(file), expanded(folder) if folder else None)
        place, annotations, name = (
            _split_of(kind, rest, keypoints) if own is None else (own.images, own.annotations, own.name)
        )
        dataset: Dataset = CocoDataset(
            place, annotations, classes=classes, name=name, decoder=decoder, choice=choice
        )
        if own is not None:
            dataset.notes = (f"recognised as {own.layout}", *dataset.notes)
    elif choice != ClassChoice():
        raise DatasetError(
            f"--data {argument!r}: --classes and --map are for boxes in coco:, shapes and paths"
        )
    elif own is not None:
        dataset = ImageNetDataset(own.images, classes=classes, decoder=decoder)
    elif keypoints:
        raise DatasetError(
            f"{'ImageNet' if kind == 'imagenet' else 'PASCAL VOC'} has no keypoint annotations; take a COCO"
            " folder with person_keypoints_*.json, or shapes"
        )
    elif kind == "imagenet":
        dataset = ImageNetDataset(expanded(rest), classes=classes, decoder=decoder)
    else:
        dataset = _open_voc(rest, classes, decoder)
    return dataset if images is None else dataset.subset(images)


def _no_such_form(argument: str, kind: str) -> str:
    if kind in KINDS:
        return f"--data {argument!r}: the folder is missing; write {FORMS[kind]}"
    if "/" in kind or kind.startswith((".", "~")):
        return f"{argument}: no such file or folder (--data)"
    return (
        f"--data {argument!r}: unknown kind of dataset {kind!r}, {did_you_mean(kind, KINDS)}; forms: "
        + "; ".join(FORMS.values())
    )


def _split_of(kind: str, rest: str, keypoints: bool) -> tuple[Path, Path, str]:
    """Image folder, annotation file and name of a split of a COCO folder or of `shapes`."""
    if kind == "shapes":
        from detection_zoo.zoo.data.shapes import make_shapes

        folder, split = make_shapes(), rest or "val"
    else:
        folder, split = _folder_and_rest(rest)
    images, annotations, split = find_split(folder, split, keypoints)
    return images, annotations, f"{kind}:{split}" + (":keypoints" if keypoints else "")


def _open_voc(rest: str, classes: Sequence[str] | None, decoder: Literal["pil", "cv2"]) -> Dataset:
    parts = rest.rsplit(":", 2)
    if len(parts) != 3 or not all(parts):
        raise DatasetError(f"--data 'voc:{rest}': year and split are missing; write {FORMS['voc']}")
    devkit, years, split = parts
    years = ["2007", "2012"] if years == "0712" else years.split("+")
    return VocDataset(expanded(devkit), years, split, classes=classes, decoder=decoder)


def _folder_and_rest(rest: str) -> tuple[Path, str | None]:
    """Split "DIR" or "DIR:SPLIT"; a folder name with a colon is not split."""
    whole = expanded(rest)
    if whole.is_dir() or ":" not in rest:
        return whole, None
    folder, split = rest.rsplit(":", 1)
    return expanded(folder), split or None
