"""Recognise the layout of the user's data by its files: COCO, YOLO, PASCAL VOC or ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detection_zoo.zoo.data.coco import ANNOTATION_FOLDERS, find_split
from detection_zoo.zoo.data.coco_reader import CocoAnnotations, read_coco
from detection_zoo.zoo.data.fields import dataset_text
from detection_zoo.zoo.data.imagenet import IMAGE_SUFFIXES
from detection_zoo.zoo.data.voc_folder import read_voc_folder
from detection_zoo.zoo.data.yolo import find_yolo, read_yolo
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.registry import did_you_mean

SPLITS = ("val", "valid", "validation", "val2017", "test", "train")  # for evaluation, the first that exists
TRAINING_SPLITS = ("train", "train2017", "trainval", *SPLITS)  # for training, the first that exists
ROBOFLOW = "_annotations.coco.json"
WANTED = (
    "COCO (annotations/*.json, Roboflow's SPLIT/_annotations.coco.json, one *.json next to images/), YOLO"
    " (data.yaml, or classes.txt with images/ and labels/), PASCAL VOC (VOC2007/ImageSets, or Annotations/"
    " and JPEGImages/) and ImageNet (labels.csv, or one folder of images per class)"
)


@dataclass(frozen=True)
class Recognised:
    """The user's data: name as in records; layout: the recognised one, as text; annotations: None for
    ImageNet folders; images: the folder that file names are relative to."""

    name: str
    layout: str
    images: Path
    annotations: CocoAnnotations | None = None


def recognise(
    path: Path, split: str | None = None, keypoints: bool = False, order: Sequence[str] = SPLITS
) -> Recognised:
    """Recognise a folder or file, and read its annotations.

    Args:
        path: a folder, a COCO annotation file or a data.yaml.
        split: "train", "valid" ... where there are several; None: the first of `order` that exists.
        keypoints: take COCO's person_keypoints annotations.
        order: names of splits; default: those to evaluate on first.

    Raises:
        DatasetError: the path does not exist, or has none of the layouts; lists them.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    for look in (_coco_file, _coco_folders, _roboflow, _json_beside_images, _yolo, _devkit, _voc, _imagenet):
        found = look(path, split, keypoints, order)
        if found is not None:
            return found
    content = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise DatasetError(f"{path}: contains {content or 'nothing'}, none of these layouts: {WANTED}")


def coco_parts(annotations: Path, images: Path | None) -> Recognised:
    """A COCO annotation file with its folder of images, which is searched for if it is not given."""
    read = read_coco(annotations)
    folder = _folder_of_images(annotations, read) if images is None else images
    return Recognised(f"coco:{annotations.stem}", "COCO annotations", folder, read)


def _folder_of_images(file: Path, read: CocoAnnotations) -> Path:
    stem = file.stem.partition("_")[2] or file.stem
    near = (file.parent, file.parent.parent)
    places = [
        near[0],
        *(base / name for base in near for name in (stem, "images", f"images/{stem}")),
        near[1],
    ]
    present = (place for place in places if (place / read.file_names[0]).is_file())
    return next(present, next((place for place in places[1:-1] if place.is_dir()), file.parent))


def _coco_file(path: Path, split: str | None, keypoints: bool, order: Sequence[str]) -> Recognised | None:
    return coco_parts(path, None) if path.suffix == ".json" and path.is_file() else None


def _coco_folders(path: Path, split: str | None, keypoints: bool, order: Sequence[str]) -> Recognised | None:
    folder = next((path / name for name in ANNOTATION_FOLDERS if (path / name).is_dir()), None)
    files = sorted(folder.glob("*.json")) if folder is not None else []
    if not files:
        return None
    official = any(p.name.startswith(("instances_", "person_keypoints_", "image_info_")) for p in files)
    if official:
        stems = {p.stem.removeprefix("instances_") for p in files}
        wanted = split or next((name for name in order if name in stems), None)
        try:
            images, file, split = find_split(path, wanted, keypoints)
            name = f"coco:{split}" + (":keypoints" if keypoints else "")
            return Recognised(name, "COCO in its official layout", images, read_coco(file))
        except DatasetError:
            if len(files) > 1 or keypoints:
                raise
    chosen = _chosen({p.stem: p for p in files}, split, path, order)
    return coco_parts(chosen, None)


def _chosen(there: dict[str, Path], split: str | None, path: Path, order: Sequence[str]) -> Path:
    """The file of a split, else that of the first usual split, else the only one."""
    ends = {stem.rpartition("_")[2]: file for stem, file in there.items()} | there
    if split is not None and split not in ends:
        raise DatasetError(f"{path}: has no split {split!r}; {did_you_mean(split, ends)}")
    name = split or next((name for name in order if name in ends), None)
    if name is None and len(there) > 1:
        raise DatasetError(f"{path}: choose a split with PATH:SPLIT; there are {', '.join(there)}")
    return ends[name] if name is not None else next(iter(there.values()))


def _roboflow(path: Path, split: str | None, keypoints: bool, order: Sequence[str]) -> Recognised | None:
    there = {file.parent.name: file for file in sorted(path.glob(f"*/{ROBOFLOW}"))}
    if (path / ROBOFLOW).is_file():
        there = {path.name: path / ROBOFLOW}
    if not there:
        return None
    file = _chosen(there, split, path, order)
    name = f"coco:{path.name}:{file.parent.name}"
    return Recognised(name, "COCO as Roboflow exports it", file.parent, read_coco(file))


def _json_beside_images(
    path: Path, split: str | None, keypoints: bool, order: Sequence[str]
) -> Recognised | None:
    files = (
        {p.stem: p for p in sorted(path.glob("*.json")) if p.name != "notes.json"} if path.is_dir() else {}
    )
    return coco_parts(_chosen(files, split, path, order), None) if files else None


def _yolo(path: Path, split: str | None, keypoints: bool, order: Sequence[str]) -> Recognised | None:
    described = path.suffix in (".yaml", ".yml") or (path.is_dir() and any(path.glob("*.y*ml")))
    listed = (path / "classes.txt").is_file() and (path / "labels").is_dir()
    if not (described or listed):
        return None
    found = find_yolo(path, split, order)
    folder = path.parent if path.is_file() else path
    boxes = "YOLO pose, boxes alone" if found.keypoints else "YOLO"
    return Recognised(f"yolo:{folder.name}:{found.name}", boxes, folder, read_yolo(found))


def _devkit(path: Path, split: str | None, keypoints: bool, order: Sequence[str]) -> Recognised | None:
    years = [path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*"))]
    sets = [year / "ImageSets" / "Main" for year in years if (year / "ImageSets" / "Main").is_dir()]
    if not sets:
        return None
    there = {p.stem: p for p in sorted(sets[0].glob("*.txt")) if "_" not in p.stem}
    file = _chosen(there, split, path, order)
    names = [line.split()[0] for line in dataset_text(file).splitlines() if line.strip()]
    year = sets[0].parent.parent
    read, corners = read_voc_folder(year / "Annotations", year / "JPEGImages", names)
    layout = (
        f"a PASCAL VOC devkit, measured by COCO's AP ({corners}); voc:DEVKIT:YEAR:SPLIT measures by VOC's"
    )
    return Recognised(f"voc:{year.name}:{file.stem}", layout, year, read)


def _voc(path: Path, split: str | None, keypoints: bool, order: Sequence[str]) -> Recognised | None:
    inside = [path / split] if split else [path, *(path / name for name in order)]
    for folder in inside:
        xml = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
        images = next((p for p in (folder / "JPEGImages", folder / "images") if p.is_dir()), folder)
        if folder.is_dir() and any(xml.glob("*.xml")):
            read, corners = read_voc_folder(xml, images)
            return Recognised(f"voc:{folder.name}", f"PASCAL VOC's XML files ({corners})", images, read)
    return None


def _imagenet(path: Path, split: str | None, keypoints: bool, order: Sequence[str]) -> Recognised | None:
    if order == TRAINING_SPLITS and (path / "train").is_dir() and not (path / "labels.csv").is_file():
        path = path / "train"
    root = path / "val" if (path / "val").is_dir() else path
    folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
    if (path / "labels.csv").is_file() or any(
        p.suffix.lower() in IMAGE_SUFFIXES for folder in folders for p in folder.iterdir()
    ):
        return Recognised("imagenet", "an ImageNet folder", path)
    return None
