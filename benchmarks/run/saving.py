"""Write detections as JSON, CSV, YOLO labels or COCO results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from detection_zoo.zoo.manifest import ModelEntry
    from detection_zoo.zoo.records import Detections

Form = Literal["json", "csv", "yolo", "coco"]
CSV_COLUMNS = ("image", "frame", "class", "label", "score", "x1", "y1", "x2", "y2")


def category_ids_of(entry: ModelEntry) -> tuple[int, ...]:
    """Return the COCO category ID of each label; 1 to K if the classes are not COCO's 80."""
    from detection_zoo.zoo.detectors.ssd import COCO_IDS

    if entry.dataset == "coco" and entry.classes == len(COCO_IDS):
        return COCO_IDS
    return tuple(range(1, entry.classes + 1))


def coco_records(
    found: Detections, image_id: int, category_ids: Sequence[int], inclusive: bool
) -> list[dict[str, Any]]:
    """Convert the detections of one image to entries of a COCO results file: box, RLE mask and keypoints in
    one entry.

    Args:
        found: detections on the CPU, in pixels of the original image. image_id: ID of the image.
        category_ids: by label.
        inclusive: x2 and y2 are the last pixels inside.
    """
    from detection_zoo.benchmarks.evaluation.coco_results import detection_records

    kinds = detection_records(found, image_id, category_ids, inclusive=inclusive)
    return [
        {key: value for part in parts for key, value in part.items()}
        for parts in zip(*kinds.values(), strict=True)
    ]


class Saved:
    """Output file of one format, filled image by image and written at the end.

    form: json, csv, yolo or coco. folder: output folder. class_names, category_ids: by label.
    inclusive: as in `coco_records`.
    """

    def __init__(
        self,
        form: Form,
        folder: Path,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        inclusive: bool,
    ) -> None:
        self.form, self.folder, self.inclusive = form, folder, inclusive
        self.category_ids = category_ids
        self.names = [class_names[i] if i < len(class_names) else str(i) for i in range(len(category_ids))]
        self._plain: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, image: str, frame: int | None, size: tuple[int, int], found: Detections) -> None:
        """Add the detections of one image.

        Args:
            image: its path. frame: frame number in a video, from 0. size: height and width in pixels.
            found: detections to save, sorted by descending score, on the CPU.
        """
        height, width = size
        name = Path(image).name if frame is None else f"{Path(image).stem}_{frame:06d}.png"
        if self.form == "yolo":
            offset = 1.0 if self.inclusive else 0.0
            scale = found.boxes.new_tensor([width, height])
            low, high = found.boxes[:, :2], found.boxes[:, 2:] + offset
            places = (((low + high) / 2) / scale).tolist(), ((high - low) / scale).tolist()
            lines = [
                " ".join([str(label), *(f"{value:.6f}" for value in (*centre, *side))])
                for label, centre, side in zip(found.labels.tolist(), *places, strict=True)
            ]
            file = self.folder / "labels" / f"{Path(name).stem}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{line}\n" for line in lines))
        elif self.form == "coco":
            number = len(self._images) + 1
            self._images.append({"id": number, "file_name": name, "height": height, "width": width})
            for record in coco_records(found, number, self.category_ids, self.inclusive):
                more = {"id": len(self._annotations) + 1, "area": record["bbox"][2] * record["bbox"][3]}
                self._annotations.append(more | record | {"iscrowd": 0})
        else:
            rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
            for label, score, box in rows:
                head = {"image": image, "frame": frame, "class": self.names[label], "label": label}
                self._plain.append(head | {"score": score, "box": box})

    def write(self) -> Path:
        """Write the file and return its path; for YOLO this is data.yaml, which expects the images in
        images/."""
        if self.form == "yolo":
            import yaml

            content = {"train": "images", "val": "images", "names": dict(enumerate(self.names))}
            file, text = self.folder / "data.yaml", yaml.safe_dump(content, sort_keys=False)
        elif self.form == "coco":
            pairs = zip(self.category_ids, self.names, strict=True)
            categories = [{"id": number, "name": name} for number, name in pairs]
            content = {"images": self._images, "annotations": self._annotations, "categories": categories}
            file, text = self.folder / "detections.coco.json", json.dumps(content)
        elif self.form == "csv":
            table = io.StringIO()
            lines = csv.writer(table, lineterminator="\n")
            lines.writerow(CSV_COLUMNS)
            for record in self._plain:
                values = [record[name] for name in CSV_COLUMNS[:5]]
                lines.writerow(["" if value is None else value for value in values] + record["box"])
            file, text = self.folder / "detections.csv", table.getvalue()
        else:
            file, text = self.folder / "detections.json", json.dumps(self._plain, indent=1) + "\n"
        file.write_text(text, encoding="utf-8")
        return file
