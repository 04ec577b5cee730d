"""Parity with reference folders: outputs recomputed by zoo.parity, and recorded evaluations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detection_zoo.benchmarks.evaluation.coco_results import detection_records
from detection_zoo.benchmarks.evaluation.voc_evaluation import (
    ClassScore,
    VocDetection,
    VocTruth,
    evaluate_voc,
    mean_ap,
    voc_truth,
)
from detection_zoo.zoo.parity import schedules, updates
from detection_zoo.zoo.parity.base import Output, ParityReport, Reference, compare
from detection_zoo.zoo.parity.base import parity as zoo_parity
from detection_zoo.zoo.parity.files import read_json
from detection_zoo.zoo.parity.settings import Settings
from detection_zoo.zoo.parity.trajectories import check_trajectory
from detection_zoo.zoo.records import Detections

EXACT = 1e-9
SIX_DECIMALS = 1e-6  # tolerance of recorded recall and precision


def check_reference(
    folder: Path | str, row: str | None = None, dtype: str = "float32", checkpoint_format: str | None = None
) -> ParityReport:
    """Recompute and compare everything that a reference folder records; arguments and errors as in
    `zoo.parity.base.parity`."""
    folder = Path(folder)
    if (folder / "expected.json").is_file() and not (folder / "outputs.json").is_file():
        return _voc_case(folder, dtype)
    if (folder / schedules.FILE).is_file():
        return schedules.check_schedules(folder)
    if (folder / updates.FILE).is_file():
        return check_trajectory(folder, row)
    report = zoo_parity(folder, row, dtype, checkpoint_format)
    scored = _evaluations(Reference(folder).meta)
    kept = [
        line
        for line in report.lines
        if not any(name == line.name or name.startswith(f"{line.name}/") for name in scored)
    ]
    return replace(
        report, lines=(*kept, *(compare(name, output, None, dtype) for name, output in scored.items()))
    )


def folder_settings(folder: Path) -> Settings:
    """The settings that a reference folder states in settings.json or in notes."""
    if (folder / updates.FILE).is_file():
        return updates.read_runs(folder)[1][0].settings
    return Reference(folder).settings


def _score(
    name: str, score: ClassScore, wanted: dict[str, Any], ap_key: str, tolerance: float
) -> dict[str, Output]:
    """Compare AP, recall and precision of one class with the recorded values; a recorded null
    means NaN."""
    found = {}
    for field, value, expected, allowed in (
        ("ap", score.ap, wanted[ap_key], EXACT),
        ("recall", score.recall, wanted["recall"], tolerance),
        ("precision", score.precision, wanted["precision"], tolerance),
    ):
        value = np.atleast_1d(np.asarray(value, np.float64))
        if expected is None:
            found[f"{name}/{field}"] = Output(
                np.array([float(np.isnan(value).all())]), 0.0, expected=np.ones(1)
            )
        else:
            found[f"{name}/{field}"] = Output(
                value, allowed, expected=np.atleast_1d(np.asarray(expected, np.float64))
            )
    return found


def _voc_case(folder: Path, dtype: str) -> ParityReport:
    """Check a folder with VOC detections, ground truth and the values of the devkit's
    metric."""
    files = "expected.json, ground_truth.json and detections.json"
    expected, given, made = (
        read_json(folder / f"{part}.json", files) for part in ("expected", "ground_truth", "detections")
    )
    truth = voc_truth(
        given["classes"], ((o["image"], o["class"], o["bbox"], o["difficult"]) for o in given["objects"])
    )
    detections: dict[str, list[VocDetection]] = {}
    for found in made["detections"]:
        detections.setdefault(found["class"], []).append(
            VocDetection(found["image"], found["score"], tuple(found["bbox"]))
        )
    outputs: dict[str, Output] = {}
    for method, key in (("11point", "ap_07"), ("area", "ap_area")):
        scores = evaluate_voc(truth, detections, method=method)
        for name, wanted in expected["per_class"].items():
            outputs |= _score(f"{name} ({method})", scores[name], wanted, key, SIX_DECIMALS)
        mean, wanted = mean_ap(scores), expected["mean"][key]
        outputs[f"mean ({method})"] = Output(
            np.array([np.isnan(mean) if wanted is None else mean], float),
            EXACT,
            expected=np.array([wanted or 1.0]),
        )
    outputs |= {
        f"{name}/{what}": Output(
            np.array([float(value)]), 0.0, expected=np.array([float(expected["per_class"][name][what])])
        )
        for name, counts in _counts(truth, detections, scores).items()
        for what, value in counts.items()
    }
    lines = tuple(compare(name, output, None, dtype) for name, output in outputs.items())
    return ParityReport(str(folder), expected.get("source", "").split("@")[0], None, dtype, lines)


def _counts(
    truth: dict[str, dict[str, VocTruth]],
    detections: dict[str, list[VocDetection]],
    scores: dict[str, ClassScore],
) -> dict[str, dict[str, int]]:
    """Count the objects, difficult objects, detections and true positives of each class."""
    found = {}
    for name, images in truth.items():
        right = (
            scores[name].recall[-1] * scores[name].positives
            if len(scores[name].recall) and scores[name].positives
            else 0
        )
        found[name] = {
            "positives": scores[name].positives,
            "difficult": sum(int(objects.difficult.sum()) for objects in images.values()),
            "detections": len(detections.get(name, [])),
            "true_positives": round(float(right)),
        }
    return found


def _evaluations(meta: dict[str, Any]) -> dict[str, Output]:
    """Check the VOC scores and COCO results recorded in a reference folder."""
    outputs: dict[str, Output] = {}
    if "voc_eval" in meta:
        case = meta["voc_eval"]
        truth = voc_truth((), ((image, *row) for image, rows in case["ground_truth"].items() for row in rows))
        detections = {
            name: [VocDetection(image, score, tuple(box)) for image, score, box in rows]
            for name, rows in case["detections"].items()
        }
        for method in ("11point", "area"):
            scores = evaluate_voc(truth, detections, method=method)
            for name, score in scores.items():
                outputs |= _score(
                    f"voc_eval/{name}_{method}", score, case["result"][f"{name}_{method}"], "ap", EXACT
                )
    if "coco_result" in meta:
        *box, score = meta["coco_result"]["detection"]
        row = meta["coco_result"]["row"]
        found = Detections(torch.tensor([box]), torch.tensor([score]), torch.zeros(1, dtype=torch.int64))
        [written] = detection_records(found, row["image_id"], [row["category_id"]], inclusive=True)["bbox"]
        for field, wanted in row.items():
            outputs[f"coco_result/{field}"] = Output(
                np.atleast_1d(np.asarray(written[field], float)),
                EXACT,
                expected=np.atleast_1d(np.asarray(wanted, float)),
            )
    return outputs
