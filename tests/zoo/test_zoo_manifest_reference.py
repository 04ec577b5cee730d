"""Rows beside the figures that were collected from the sources, value by value and link by link, where that
folder is at hand.

The folder (DETECTION_ZOO_REFERENCE) holds published.csv and weights.csv for each source, detectron_zoo.csv,
and folders of recorded outputs.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests

MANIFESTS = load_manifests()
SOURCES = {  # folder -> the manifests that its tables went into
    "vovnet": ("vovnet", "maskrcnn_benchmark"),
    "detectron_pytorch": ("detectron_pytorch",),
    "detnet": ("detnet",),
    "hardnet": ("hardnet",),
}
METRICS = {  # (metric, unit) of published.csv -> ours
    ("train memory", "GB"): "train_memory_gb",
    ("memory_per_gpu", "MB"): "train_memory_mb",
    ("inference time", "ms"): "inference_time_ms",
    ("inference time", "s/image"): "inference_time_s",
    ("time", "ms"): "inference_time_ms",
    ("time", "s"): "inference_time_s",
    ("inference total, batch 8", "s/image"): "inference_time_s",
    ("inference model, batch 8", "s/image"): "inference_model_time_s",
    ("inference model, batch 1", "s/image"): "inference_model_time_s",
    ("inference Caffe2, batch 1", "s/image"): "inference_model_time_s",
    ("train time", "s/iter"): "train_time_s_per_iteration",
    ("total train time", "h"): "train_time_hours",
    ("speed_per_epoch", "h"): "epoch_time_h",
    ("images a GPU", ""): "images_per_gpu",
    ("batch_size", "images"): "images_per_batch",
    ("gpus", ""): "gpus",
    ("lr", ""): "learning_rate",
    ("lr_decay", "epochs"): "lr_decay_epochs",
    ("max_epoch", "epochs"): "max_epochs",
    ("speed", "fps"): "fps",
    ("top-1 error", "%"): "top1_error",
    ("top-5 error", "%"): "top5_error",
    ("top1_error", "%"): "top1_error",
    ("top-1", "%"): "top1",
    ("parameters", "M"): "parameters_m",
    ("multiply-accumulates (224x224)", "G"): "gmacs",
    ("mAP@0.5 (VOC07 metric)", "%"): "voc_map",
    ("mAP@[.5:.95]", "%"): "box_ap",
}
RECALLS_OF_KEYPOINTS = {
    "ar1": "ar",
    "ar10": "ar50",
    "ar100": "ar75",
}  # what COCO's key point summary holds in those places
AREAS = {"all": "", "small": "_s", "medium": "_m", "large": "_l"}
SPLITS = {  # split of published.csv, in the dataset it stands beside -> ours
    ("COCO", "train"): "coco_2014_train+valminusminival",
    ("COCO keypoints", "train"): "keypoints_coco_2014_train+valminusminival",
    ("COCO", "test-dev"): "coco_2017_test-dev",
    ("COCO", "minival"): "coco_2014_minival",
    ("coco_2017", "val"): "coco_2017_val",
    ("keypoints_coco_2017", "val"): "keypoints_coco_2017_val",
    ("COCO 2017", "val2017"): "coco_2017_val",
    ("VOC2007", "test"): "voc_2007_test",
    ("PASCAL VOC 2007", "07test"): "voc_2007_test",
    ("PASCAL VOC 07+12", "07test"): "voc_2007_test",
}


@pytest.fixture(scope="module")
def reference() -> Path:
    given = os.environ.get("DETECTION_ZOO_REFERENCE")
    if not given:
        pytest.skip("needs the collected figures: set DETECTION_ZOO_REFERENCE to their folder")
    assert Path(given).is_dir(), f"DETECTION_ZOO_REFERENCE={given} is not a folder"
    return Path(given)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of(names: tuple[str, ...]) -> list[ModelEntry]:
    return [e for e in MANIFESTS.entries.values() if e.source in names]


def numbers(row: dict[str, str]) -> list[tuple[str, Decimal]]:
    """Our metrics and values for one row of published.csv, in our units."""
    metric, unit, value = row["metric"], row["unit"], row["value"]
    if " + " in value:  # a time in two parts
        first, second = value.split(" + ")
        return [("inference_time_s", Decimal(first)), ("inference_extra_time_s", Decimal(second))]
    if (metric, unit) in METRICS:
        return [(METRICS[metric, unit], Decimal(value))]
    if metric == "mAP":
        return [("voc_map" if row["dataset"] == "VOC2007" else "box_ap", Decimal(value))]
    if metric.startswith(("overall fps", "inference time")):
        return [("fps" if unit == "fps" else "inference_time_ms", Decimal(value))]
    if unit == "fraction":  # "AP@[0.50:0.95] small maxDets=100"
        what, area, most = metric.split()
        if what.startswith("AR"):
            suffix = f"ar{most.removeprefix('maxDets=')}" if area == "all" else f"ar{AREAS[area]}"
        else:
            suffix = (
                "ap" + {"[0.50:0.95]": "", "0.50": "50", "0.75": "75"}[what.removeprefix("AP@")] + AREAS[area]
            )
        return [(f"box_{suffix}", Decimal(value) * 100)]
    kind, _, statistic = metric.replace(" ", "_").partition(
        "_"
    )  # "box APs", "mask_AP50:95", "keypoint_AR100"
    assert kind in ("box", "mask", "keypoint") and unit in ("%", "percent"), (metric, unit)
    suffix = statistic.removesuffix("50:95").lower() if statistic.endswith("50:95") else statistic.lower()
    suffix = f"{suffix[:2]}_{suffix[2:]}" if suffix[2:] in ("s", "m", "l") else suffix
    return [
        (
            f"{kind}_{RECALLS_OF_KEYPOINTS.get(suffix, suffix) if kind == 'keypoint' else suffix}",
            Decimal(value),
        )
    ]


def split_of(row: dict[str, str]) -> str | None:
    return SPLITS.get((row["dataset"], row["split"]), row["split"] or None)


def near(value: float | Decimal) -> str:
    return f"{float(value):.9g}"


@pytest.mark.parametrize("folder", SOURCES)
def test_every_published_number_stands_in_a_row_and_no_other(reference: Path, folder: str) -> None:
    collected = Counter(
        (row["model"], row["source_file"], split_of(row), row["hardware"] or None, metric, near(value))
        for row in table(reference / folder / "published.csv")
        for metric, value in numbers(row)
    )
    ours = Counter(
        (p.title or e.title, p.source, p.split, p.hardware, metric, near(value))
        for e in rows_of(SOURCES[folder])
        for p in e.published
        for metric, value in p.values.items()
    )
    assert not collected - ours, f"missing: {list((collected - ours).items())[:5]}"
    assert not ours - collected, f"of our own making: {list((ours - collected).items())[:5]}"


@pytest.mark.parametrize("folder", SOURCES)
def test_every_link_stands_in_a_row_with_what_it_holds(reference: Path, folder: str) -> None:
    ours = {
        (address, spec.holds)
        for e in rows_of((*SOURCES[folder], "detectron"))
        for spec in e.weights
        for address in (*spec.urls, spec.manual)
    }
    links = [row for row in table(reference / folder / "weights.csv") if row["url"]]
    missing = [row["model"] for row in links if (row["url"], row["kind"]) not in ours]
    assert links and not missing


COLUMNS = {
    "im/gpu": "images_per_gpu",
    "train mem (GB)": "train_memory_gb",
    "train time (s/iter)": "train_time_s_per_iteration",
    "train time total (hr)": "train_time_hours",
    "box AP": "box_ap",
    "mask AP": "mask_ap",
    "kp AP": "keypoint_ap",
    "prop. AR": "proposal_ar",
}


def test_every_row_of_detectrons_tables_is_here(reference: Path) -> None:
    entries = {e.table["model id"]: e for e in rows_of(("detectron",)) if "model id" in e.table}
    kinds = {
        "weights_url": "detector",
        "boxes_url": "results",
        "masks_url": "results",
        "keypoints_url": "results",
    }
    collected = table(reference / "detectron_zoo.csv")
    assert len(collected) == 82 and len(entries) == 80  # two rows are printed again in the GroupNorm tables
    for row in collected:
        entry = entries[row["model id"]]
        time, _, extra = row["inference time (s/im)"].partition(" + ")
        expected = {ours: float(row[column]) for column, ours in COLUMNS.items() if row[column]} | {
            "inference_time_s": float(time)
        }
        if extra:
            expected["inference_extra_time_s"] = float(extra)
        title = row["backbone"] if row["table"] == "e2e_mask_rcnn_bn" else None
        assert [p.values for p in entry.published if p.title == title] == [expected], row["model id"]
        assert (
            row["config"] in ("", entry.title)
            and (title or entry.table["backbone"] == row["backbone"])
            and entry.table["type"] in row["type"]
        )
        for column, holds in kinds.items():
            found = [spec for spec in entry.weights if spec.holds == holds and spec.urls[0] == row[column]]
            assert bool(found) == bool(row[column]), (row["model id"], column)
            assert all(
                spec.md5_url == row[column] + ".md5sum"
                and spec.urls[1].startswith("https://s3-us-west-2.amazonaws.com/detectron/")
                for spec in found
            )


def test_every_folder_of_recorded_outputs_names_one_row(reference: Path) -> None:
    repositories = {
        "stigma0617": ("vovnet", "maskrcnn_benchmark"),
        "roytseng-tw": ("detectron_pytorch",),
        "guoruoqian": ("detnet",),
        "PingoLH": ("hardnet",),
    }
    found = []
    for description in sorted(reference.glob("*/*/checkpoint.json")):
        checkpoint, outputs = (
            json.loads((description.parent / name).read_text())
            for name in ("checkpoint.json", "outputs.json")
        )
        if not checkpoint.get("tensors"):
            continue
        entry = MANIFESTS.by_config(
            outputs.get("config") or checkpoint.get("config") or description.parent.name
        )
        assert (
            entry.source in repositories[outputs["source"].split("/")[0]] and entry.published_only is None
        ), description.parent
        found.append(entry.name)
    assert len(found) >= 24 and len(set(found)) == len(found)
