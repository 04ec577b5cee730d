"""AP by class and pictures that lie beside the records."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image
from records import run_of

from detection_zoo.benchmarks.report.beside import MOST_PICTURES, SIDE, class_accuracies, row_pictures
from detection_zoo.benchmarks.spec import StoredFile

ROW = "faster_rcnn_vovnet39_fpn_2x.vovnet"


def test_ap_by_class_is_read_where_the_detections_are(tmp_path: Path) -> None:
    def run(name: str):
        file = StoredFile(name=f"{name}/accuracy.json", sha256="0" * 64, bytes=2)
        return run_of(ROW, {}, id=name).model_copy(update={"files": {"accuracy": file}})

    per_class = {"cat": {"box_ap": 10.0, "mask_ap": 9.0}, "dog": {"box_ap": 30.5}, "absent": {}}
    for name, text in (("good", json.dumps({"per_class": per_class})), ("damaged", "{")):
        (tmp_path / "detections" / name).mkdir(parents=True)
        (tmp_path / "detections" / name / "accuracy.json").write_text(text)
    runs = [run("good"), run("damaged"), run("elsewhere"), run_of(ROW, {}, id="none")]
    found = class_accuracies(tmp_path / "runs", runs)
    assert found == {"good": {"dog": 30.5, "cat": 10.0}} and list(found["good"]) == ["dog", "cat"]


def test_pictures_of_a_row_are_small_and_few(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / ROW
    folder.mkdir(parents=True)
    for number in range(MOST_PICTURES + 2):
        Image.new("RGB", (2000, 1000), (number, 90, 90)).save(folder / f"{number:02d}.png")
    (folder / "labels.txt").write_text("no picture")
    found = row_pictures(tmp_path / "runs", [ROW, "another.row"])
    assert list(found) == [ROW] and [name for name, _ in found[ROW]] == [
        f"{n:02d}" for n in range(MOST_PICTURES)
    ]
    data = base64.b64decode(found[ROW][0][1].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (SIDE, SIDE // 2)
