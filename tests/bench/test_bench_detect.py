"""`bench.py detect` on pictures, folders, patterns and videos, and the files that other programs read."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from forked import ROOT, Forked
from in_process import call
from PIL import Image

from detection_zoo.benchmarks.run.detect import check_detect, detect_files
from detection_zoo.benchmarks.run.drawing import draw
from detection_zoo.benchmarks.run.inputs import inputs_of
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Detections

ROW, SLIM = "mask_rcnn_resnet14_slim_fpn.demo", "faster_rcnn_resnet14_slim_fpn.demo"
SIZE, FRAMES = (128, 96), 3  # width and height; of the video


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, one of them in a folder of its own, and a video."""
    folder = tmp_path_factory.mktemp("media")
    pixels = np.random.default_rng(0).integers(0, 255, (FRAMES, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    (folder / "more").mkdir()
    Image.fromarray(pixels[0]).save(folder / "a.png")
    Image.fromarray(pixels[1]).save(folder / "more" / "b.jpg")
    (folder / "notes.txt").write_text("not a picture")
    video = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 8.0, SIZE)
    for frame in pixels:
        video.write(frame)
    video.release()
    return folder


def detect(media: Path, out: Path, *names: str, **options: object) -> list[dict]:
    inputs = inputs_of([str(media / name) for name in names])
    given = {"weights": "random", "spec": BenchmarkSpec(), "min_score": 0.0, **options}
    return detect_files(load_manifests().entry(ROW), inputs, out, **given)[0]


def test_what_arguments_name(media: Path) -> None:
    def names(*arguments: str) -> list[str]:
        return [Path(str(one)).name for one in inputs_of([str(media / name) for name in arguments])]

    assert names("") == ["a.png", "clip.avi"] and names("more", "a.png") == ["b.jpg", "a.png"]
    assert names("**/*.*") == ["a.png", "clip.avi", "b.jpg"]  # notes.txt is passed over
    assert str(inputs_of(["0"])[0]) == "camera 0" and inputs_of(["0"])[0].is_video
    for wrong, said in (("*.gif", "no file matches"), ("no.png", "no such file")):
        with pytest.raises(DatasetError, match=said):
            names(wrong)
    with pytest.raises(DatasetError, match="two inputs would be written as a.png"):
        names("a.png", "a.png")


def test_an_original_is_never_replaced(media: Path) -> None:
    with pytest.raises(DatasetError, match="would overwrite this input"):
        check_detect(load_manifests().entry(ROW), inputs_of([str(media / "a.png")]), media)


def test_a_damaged_video_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(DatasetError, match=r"x\.mp4: OpenCV cannot open it"):
        check_detect(load_manifests().entry(ROW), inputs_of([str(tmp_path)]), tmp_path / "out")


@pytest.mark.parametrize("frames", [None, 2])
def test_a_video_is_written_as_a_video(media: Path, tmp_path: Path, frames: int | None) -> None:
    records = detect(media, tmp_path, "clip.avi", frames=frames)
    assert [record["frame"] for record in records] == list(range(frames or FRAMES))
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    size = (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == len(records) and size == SIZE
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(8.0)


def test_json_and_csv_hold_what_is_returned(media: Path, tmp_path: Path) -> None:
    records = detect(media, tmp_path / "json", "", save="json")
    flat = [(r["image"], r.get("frame"), d["score"], d["box"]) for r in records for d in r["detections"]]
    saved = json.loads((tmp_path / "json" / "detections.json").read_text())
    assert [(r["image"], r["frame"], r["score"], r["box"]) for r in saved] == flat and flat
    detect(media, tmp_path / "csv", "", save="csv")
    lines = list(csv.DictReader((tmp_path / "csv" / "detections.csv").open()))
    assert len(lines) == len(flat) and lines[0]["frame"] == "" and lines[-1]["frame"] == str(FRAMES - 1)
    assert [float(lines[0][name]) for name in ("x1", "y1", "x2", "y2")] == pytest.approx(flat[0][3])


def test_coco_and_yolo_are_read_back(media: Path, tmp_path: Path) -> None:
    """As data of one's own: the same boxes and classes."""
    records = detect(media, tmp_path / "coco", "a.png", save="coco", min_score=0.05)
    file = tmp_path / "coco" / "detections.coco.json"
    coco = open_dataset(f"coco:annotations={file},images={media}")
    boxes = np.array([d["box"] for d in records[0]["detections"]])
    labels = [d["label"] for d in records[0]["detections"]]
    truth = coco.target(0)
    assert truth.labels.tolist() == labels and labels
    assert truth.boxes_xywh[:, :2] == pytest.approx(boxes[:, :2], abs=1e-3)
    assert "score" in json.loads(file.read_text())["annotations"][0]

    detect(media, tmp_path / "yolo", "a.png", save="yolo", min_score=0.05)
    (tmp_path / "yolo" / "images").mkdir()
    (tmp_path / "yolo" / "images" / "a.png").write_bytes((media / "a.png").read_bytes())
    yolo = open_dataset(str(tmp_path / "yolo"))
    assert yolo.target(0).labels.tolist() == labels
    assert yolo.target(0).boxes_xywh == pytest.approx(truth.boxes_xywh, abs=0.51)
    names = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"]
    assert list(names.values()) == list(coco.classes)


def test_labels_scale_with_the_picture() -> None:
    def label_height(side: int) -> int:
        box = np.array([[0.2, 0.5, 0.8, 0.9]], np.float32) * side
        found = Detections(torch.from_numpy(box), torch.tensor([0.9]), torch.tensor([0]))
        drawn = draw(np.zeros((side, side, 3), np.uint8), found, ("person",), 0.5)
        column = drawn[: int(side * 0.5), int(side * 0.2) + 1].max(axis=1)  # above the box, at its left edge
        return int((column > 0).sum())

    small, large = label_height(300), label_height(3000)
    assert 10 <= small <= 25 and large == pytest.approx(90, abs=20)


def test_ctrl_c_keeps_what_was_written(tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "long.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 8.0, SIZE)
    for number in range(2000):
        video.write(np.full((SIZE[1], SIZE[0], 3), number % 255, np.uint8))
    video.release()
    command = (ROOT / "bench.py", "detect", ROW, "long.avi", "--out", "drawn")
    options = ("--weights", "random", "--device", "cpu", "--save", "coco")
    process = Forked(*command, *options, folder=tmp_path)
    drawn = tmp_path / "drawn" / "long.mp4"
    while not (drawn.is_file() and drawn.stat().st_size > 0) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "stopped by Ctrl-C" in err and "Traceback" not in err, err
    frames = cv2.VideoCapture(str(drawn)).get(cv2.CAP_PROP_FRAME_COUNT)
    images = json.loads((tmp_path / "drawn" / "detections.coco.json").read_text())["images"]
    assert 0 < frames < 2000 and abs(len(images) - frames) <= 1


@pytest.fixture(scope="module")
def two_shapes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two drawn images as files."""
    folder, drawn = tmp_path_factory.mktemp("shapes"), open_dataset("shapes", images=2)
    for index in range(2):
        Image.fromarray(drawn.load_image(index)).save(folder / f"{index}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def eager(two_shapes: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, str]:
    """What detecting in float32 on the eager path says."""
    words = ("detect", SLIM, *two_shapes, "--out", str(tmp_path_factory.mktemp("eager")), "--device", "cpu")
    return call(*words, "--json", "--path", "eager", "--dtype", "float32")


@pytest.mark.parametrize(
    ("path", "dtype"), [("fast", "float32"), ("fast", "bfloat16"), ("eager", "bfloat16")]
)
def test_another_path_finds_the_same(
    eager: tuple[int, str, str], two_shapes: list[str], tmp_path: Path, path: str, dtype: str
) -> None:
    """The record says which path and what was compared."""
    words = ("detect", SLIM, *two_shapes, "--out", str(tmp_path), "--device", "cpu", "--json")
    other = call(*words, "--path", path, "--dtype", dtype)
    assert eager[0] == other[0] == 0, other[2]
    exact = dtype == "float32"
    compared = f"{path} path: 2 images compared with eager" if path == "fast" else ""
    assert compared in other[2]
    for own, found in zip(json.loads(eager[1]), json.loads(other[1]), strict=True):
        assert (own["path"], own["dtype"], own["notes"]) == ("eager", "float32", [])
        assert (found["path"], found["dtype"]) == (path, dtype)
        assert [note[: len(compared)] for note in found["notes"]] == [compared] * (path == "fast")
        sure = [d for d in own["detections"] if d["score"] > 0.6]
        same = [[d for d in found["detections"] if d["class"] == one["class"]] for one in sure]
        apart = [
            min(np.abs(np.subtract(d["box"], one["box"])).max() for d in near)
            for one, near in zip(sure, same, strict=True)
        ]
        assert len(apart) > 2 and max(apart) < (0.05 if exact else 4.0)
        scores = [[d["score"] for d in one["detections"][: len(sure)]] for one in (own, found)]
        assert exact == (scores[0] == pytest.approx(scores[1], abs=1e-4))


def test_a_path_that_differs_is_refused(two_shapes: list[str], tmp_path: Path) -> None:
    """Maps that are too large for float16."""
    model = build_model(SLIM, "published")
    next(model.backbone.parameters()).data.mul_(1e6)
    torch.save(model.state_dict(), tmp_path / "large.pth")
    words = ("detect", SLIM, *two_shapes, "--out", str(tmp_path / "drawn"), "--device", "cpu")
    weights = ("--weights", str(tmp_path / "large.pth"), "--path", "fast")
    code, out, err = call(*words, *weights, "--dtype", "float16")
    assert code == 1 and not out and not list((tmp_path / "drawn").iterdir())
    assert f"row {SLIM}: the fast path in float16 exceeds its tolerance: 2 images compared" in " ".join(
        err.split()
    )
    code, _, err = call(*words, "--path", "onnxruntime", "--dtype", "bfloat16")
    assert code == 2 and "onnxruntime computes in float32 here, not bfloat16" in " ".join(err.split())
