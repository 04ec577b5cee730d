"""Damaged and hostile annotations, labels, lists, results, configurations and records: each is read, or
refused with an error of ours; nothing hangs, grows or escapes as another error.

The full run: DETECTION_ZOO_TEST_DATA_FUZZ=20000 python -m pytest tests/zoo/test_zoo_data_fuzz.py -s
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from records import measured, run_of

from detection_zoo.benchmarks.evaluation.coco_results import read_results
from detection_zoo.benchmarks.store import read_runs, write_record
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.errors import ZooError
from detection_zoo.zoo.importers.detectron_config import read_options
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, SHARED_FILES, read_manifests

EXAMPLES = int(os.environ.get("DETECTION_ZOO_TEST_DATA_FUZZ", "900"))
LONGEST_S, MOST_MIB = 20, 200
HOSTILE = [
    *("", "\0", "²", "-1", "0", "1e400", "NaN", "-Infinity", "null", "true", '"x"', "{}", "[[]]", "[null]"),
    *("9" * 5000, "[" * 5000, '{"a":' * 3000, "99999999999", "1e9", "1" + "0" * 400, "../../../etc/passwd"),
    *(
        '"\\ud800"',
        "\ud800",
        "\u202e\x1b[2J",
        "\r",
        "a\n" * 50,
        "&a;",
        "<!DOCTYPE a>",
        "<a>" * 100,
        "]]>",
        "%",
    ),
    *("- " * 500, "&x [*x, *x]", "!!python/object/apply:os.system ['true']", "? [a, b]\n: c", "\\", '"' * 9),
]
TOKEN = re.compile(r"[A-Za-z_]+|-?\d+(?:\.\d+)?|[^\sA-Za-z_0-9]")


def photo() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)).save(out, "JPEG")
    return out.getvalue()


def coco_text() -> str:
    square, rle = [[1, 1, 9, 1, 9, 9]], {"size": [20, 20], "counts": [20, 40, 340]}
    notes = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 32, "segmentation": square},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [1, 0, 2, 20], "area": 40, "segmentation": rle},
    ]
    for note in notes:
        note["iscrowd"] = int(note["segmentation"] is rle)
    images = [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 20}]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return json.dumps({"images": images, "annotations": notes, "categories": categories})


VOC = (
    '<?xml version="1.0" encoding="utf-8"?><annotation><filename>a.jpg</filename><size><width>20</width>'
    "<height>20</height><depth>3</depth></size><object><name>dog</name><difficult>0</difficult><bndbox>"
    "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
DEVKIT = "VOC2007/ImageSets/Main/test.txt"


def read_all(argument: str) -> None:
    """Everything that a run asks of a dataset."""
    dataset = open_dataset(argument)
    for index in range(min(len(dataset), 3)):
        dataset.image_id(index), dataset.image_size(index), dataset.target(index), dataset.load_image(index)


def read_coco_results(folder: Path, kind: str | None = None) -> None:
    dataset = open_dataset(f"coco:annotations={folder / 'truth.json'},images={folder}")
    read_results(folder / "results.json", dataset, kind)


def read_store(folder: Path) -> None:
    stored = read_runs(folder)
    assert len(stored.runs) + len(stored.problems) == 1


def read_rows(folder: Path) -> None:
    for name in SHARED_FILES:
        shutil.copy(MANIFEST_FOLDER / name, folder / name)
    read_manifests(folder)


def a_record(folder: Path) -> str:
    path = write_record(
        folder, run_of("faster_rcnn_vovnet39_fpn_2x.vovnet", {"model_ms": measured(20.0, "ms")})
    )
    return path.read_text()


RESULTS = [
    {"image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "score": 0.5},
    {"image_id": 1, "category_id": 2, "bbox": [1, 0, 2, 20], "score": 0.25},
]
MASKS = [{**RESULTS[0], "segmentation": {"size": [20, 20], "counts": "n17=0000000000000b5"}}]
CONFIG = "MODEL:\n  TYPE: generalized_rcnn\n  NUM_CLASSES: 81\nTRAIN:\n  SCALES: (800,)\n  MAX_SIZE: 1333\n"
# files of each kind, the first of which is damaged, and what reads them
KINDS: dict[str, tuple[dict[str, str | bytes], Callable[[Path], None]]] = {
    "coco": ({"annotations.json": coco_text(), "a.jpg": photo()}, lambda f: read_all(str(f))),
    "voc xml": (
        {"VOC2007/Annotations/a.xml": VOC, DEVKIT: "a\n", "VOC2007/JPEGImages/a.jpg": photo()},
        lambda f: read_all(f"voc:{f}:2007:test"),
    ),
    "own voc xml": ({"Annotations/a.xml": VOC, "JPEGImages/a.jpg": photo()}, lambda f: read_all(str(f))),
    "voc image set": (
        {DEVKIT: "a\n", "VOC2007/Annotations/a.xml": VOC, "VOC2007/JPEGImages/a.jpg": photo()},
        lambda f: (read_all(f"voc:{f}:2007:test"), read_all(str(f))),
    ),
    "yolo labels": (
        {
            "labels/a.txt": "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.4 0.1 0.4 0.4\n",
            "data.yaml": "names: [cat, dog]\nval: images\n",
            "images/a.jpg": photo(),
        },
        lambda f: read_all(str(f)),
    ),
    "yolo yaml": (
        {
            "data.yaml": "path: .\nnames:\n  0: cat\n  1: dog\nval: images\nkpt_shape: [3, 3]\n",
            "labels/a.txt": "0 0.5 0.5 0.25 0.25\n",
            "images/a.jpg": photo(),
        },
        lambda f: read_all(str(f)),
    ),
    "yolo list": (
        {
            "val.txt": "images/a.jpg\n",
            "data.yaml": "names: [cat, dog]\nval: val.txt\n",
            "images/a.jpg": photo(),
        },
        lambda f: read_all(str(f)),
    ),
    "imagenet labels": (
        {"labels.csv": "file,wnid,class_index,name\na.jpg,n01,0,tench\n", "a.jpg": photo()},
        lambda f: read_all(f"imagenet:{f}"),
    ),
    "image": ({"a.jpg": photo(), "annotations.json": coco_text()}, lambda f: read_all(str(f))),
    "results": ({"results.json": json.dumps(RESULTS), "truth.json": coco_text()}, read_coco_results),
    "mask results": (
        {"results.json": json.dumps(MASKS), "truth.json": coco_text()},
        lambda f: read_coco_results(f, "segm"),
    ),
    "detectron yaml": ({"config.yaml": CONFIG}, lambda f: read_options(f / "config.yaml")),
    "manifest": ({"demo.toml": (MANIFEST_FOLDER / "demo.toml").read_text()}, read_rows),
}


def damaged(content: str | bytes, draw: Random) -> bytes:
    """The content with one to three tokens or bytes replaced, doubled, moved or cut."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        if isinstance(content, bytes):
            data = bytearray(content)
            place = draw.randrange(len(data) or 1)
            data[place : place + draw.choice((0, 1, 4))] = draw.randbytes(draw.choice((0, 1, 4)))
            content = bytes(data[: draw.choice((len(data), len(data), place))])
            continue
        tokens = list(TOKEN.finditer(content))
        if not tokens:
            break
        token, other = draw.choice(tokens), draw.choice(tokens)
        new = draw.choice((draw.choice(HOSTILE), draw.choice(HOSTILE), other[0], token[0] * 2, ""))
        content = content[: token.start()] + new + content[token.end() :]
        if draw.random() < 0.05:
            content = content[: token.start()]
    if isinstance(content, bytes):
        return content
    encoded = content.encode("utf-8", "surrogatepass")
    return encoded + draw.choice((b"",) * 8 + (b"\xff\xfe", b"\0"))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("kind", [*KINDS, "record"])
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    draw, counts, slowest = Random(kind), Counter(), 0.0
    if kind == "record":
        files, read = {"": a_record(tmp_path / "first")}, read_store
        files = {f"{json.loads(files[''])['run']['id']}.json": files[""]}
    else:
        files, read = KINDS[kind]
    first = next(iter(files))
    examples = max(1, EXAMPLES // len(KINDS))
    folder = tmp_path / "files"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    read(folder)
    before = peak_mib()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for _ in range(examples):
        content = damaged(files[first], draw)
        (folder / first).write_bytes(content)
        signal.alarm(LONGEST_S)
        began = time.process_time()
        try:
            read(folder)
            counts["read"] += 1
        except ZooError as error:
            assert len(str(error)) < 2000, content[:300]
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {content[:1500]!r}") from error
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.process_time() - began)
    growth = peak_mib() - before
    print(f"{kind}: {dict(counts)}, {growth:.0f} MiB of growth, slowest {slowest:.2f} s")
    assert growth < MOST_MIB


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize(
    "kind", ["coco", "voc xml", "yolo yaml", "imagenet labels", "image", "results", "voc image set"]
)
def test_what_is_no_regular_file_is_refused_at_once(
    kind: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    files, read = KINDS[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    first = tmp_path / next(iter(files))
    first.unlink()
    make(first)
    signal.alarm(LONGEST_S)  # a pipe that is opened waits for its other end
    with pytest.raises(ZooError):
        read(tmp_path)
    signal.alarm(0)
