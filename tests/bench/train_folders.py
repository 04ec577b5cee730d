"""Small folders in COCO's layout, cut from `shapes`, to train on in tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from detection_zoo.zoo.data.datasets import open_dataset


def small_folder(folder: Path, images: int = 4, classes: tuple[str, ...] | None = None) -> str:
    """The first images of shapes with an object of the classes, as split `train`; the --data argument.

    Args:
        classes: None keeps all; else the objects of others are left out, and these are called my_NAME.
    """
    shapes = open_dataset("shapes:val")
    document: dict[str, Any] = json.loads(shapes.annotation_file.read_text())
    categories = [c for c in document["categories"] if classes is None or c["name"] in classes]
    ids = {c["id"] for c in categories}
    objects = [a for a in document["annotations"] if a["category_id"] in ids and not a.get("iscrowd")]
    used = {a["image_id"] for a in objects}
    chosen = [i for i in document["images"] if i["id"] in used][:images]
    kept = {i["id"] for i in chosen}
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    for image in chosen:
        shutil.copy(shapes.images_folder / image["file_name"], folder / "train" / image["file_name"])
    if classes is not None:
        categories = [{**c, "name": f"my_{c['name']}"} for c in categories]
    content = {
        "images": chosen,
        "annotations": [a for a in objects if a["image_id"] in kept],
        "categories": categories,
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return f"coco:{folder}:train"
