"""Parity with maskrcnn-benchmark: recorded outputs of the original, changed records, other configurations,
seeds and sizes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.steps_maskrcnn_benchmark import halved
from parity_reports import report_of

from detection_zoo.zoo.build import WithoutRandomFills, assemble, shapes_only
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import (
    Output,
    ParityError,
    ParityReport,
    Reference,
    Skip,
    compare,
    parity,
    recorded_difference,
)
from detection_zoo.zoo.parity.benchmark_batches import Batch, Tolerances
from detection_zoo.zoo.parity.benchmark_settings import (
    departures,
    entry_from_settings,
    schedule_from_settings,
)
from detection_zoo.zoo.parity.maskrcnn_benchmark import outputs
from detection_zoo.zoo.parity.near_ties import settle_ties
from detection_zoo.zoo.parity.prose import read_note, rule_of
from detection_zoo.zoo.parity.settings import Settings, normal_input
from detection_zoo.zoo.weights.load import load_arrays

pytestmark = pytest.mark.usefixtures("kept_memory", "kept_fills")

FOLDERS = Path(__file__).resolve().parents[1] / "reference" / "maskrcnn_benchmark"
RETINA, FASTER, MASK, KEYPOINT, C4 = (
    "retinanet_R-50-FPN_1x",
    "e2e_faster_rcnn_V_39_FPN_2x",
    "e2e_mask_rcnn_V_39_FPN_2x",
    "e2e_keypoint_rcnn_R_50_FPN_1x",
    "e2e_faster_rcnn_R_50_C4_1x",
)


def copied(name: str, to: Path, **changes: Any) -> Path:
    """A folder's copy with fields of its outputs.json replaced."""
    folder = Path(shutil.copytree(FOLDERS / name, to / name))
    meta = json.loads((folder / "outputs.json").read_text())
    (folder / "outputs.json").write_text(json.dumps({**meta, **changes}))
    return folder


def change_arrays(folder: Path, change: Any) -> None:
    with np.load(folder / "outputs.npz") as arrays:
        held = dict(arrays)
    change(held)
    np.savez(folder / "outputs.npz", **held)


def keep_stages(folder: Path, *prefixes: str) -> None:
    """Forget the recorded outputs of all other stages."""
    with np.load(folder / "outputs.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name.startswith(prefixes)}
    np.savez(folder / "outputs.npz", **kept)


def failures(report: ParityReport) -> str:
    return "\n".join(str(line) for line in report.lines if line.verdict != "ok")


@pytest.mark.parametrize(
    "folder",
    [
        "common_steps",
        "imagenet_vovnet39",
        FASTER,
        MASK,
        RETINA,
        C4,
        pytest.param(KEYPOINT, marks=pytest.mark.slow),
    ],
)
def test_every_recorded_output_is_equal(folder: str) -> None:
    report = report_of(f"maskrcnn_benchmark/{folder}")
    assert report.ok, failures(report)
    assert not report.notes  # a row fits: it says the same as the recorded settings
    assert report.count("ok") + report.count("skipped") >= len(Reference(FOLDERS / folder).recorded)


@pytest.mark.parametrize("folder", ["common_steps", RETINA])
def test_doubles_agree_too(folder: str) -> None:
    report = parity(FOLDERS / folder, dtype="float64")
    assert report.ok, failures(report)


# ---- a check that can fail ----


def test_changed_records_are_found(tmp_path: Path) -> None:
    folder = copied("common_steps", tmp_path)

    def change(held: dict[str, np.ndarray]) -> None:
        held["match.rpn|samples"][3] += 1
        held["coder.roi.decode|samples"][5] += 0.1
        held["anchors.all.fpn.x2|moments"][0] += 1  # what lies between the samples
        for part in ("shape", "moments", "samples", "stride"):
            held[f"unheard_of|{part}"] = held[f"iou|{part}"]

    change_arrays(folder, change)
    report = parity(folder)
    assert {line.name for line in report.lines if line.verdict == "differs"} == {
        "match.rpn",
        "coder.roi.decode",
        "anchors.all.fpn.x2",
    }
    assert [line.name for line in report.lines if line.verdict == "skipped" and not line.reason] == [
        "unheard_of"
    ] and not report.ok


def test_numbers_of_outputs_json_are_compared(tmp_path: Path) -> None:
    meta = json.loads((FOLDERS / RETINA / "outputs.json").read_text())
    meta["optimiser"]["learning_rate"]["lr"][2] *= 1.0001
    meta["optimiser"]["groups"][1]["parameters"] += 1
    meta["optimiser"]["frozen_parameters"].pop()
    folder = copied(RETINA, tmp_path, optimiser=meta["optimiser"])
    keep_stages(folder, "B.")
    report = parity(folder)
    differing = {line.name for line in report.lines if line.verdict == "differs"}
    assert differing == {
        "optimiser.learning_rate",
        "optimiser.group1.parameters",
        "optimiser.frozen_differing",
    }


@pytest.mark.parametrize(
    ("section", "field", "value", "differing"),
    [
        ("boxes", "weights", [1.0, 1.0, 1.0, 1.0], "A.detections.image0.boxes"),
        ("boxes", "offset", 0.0, "A.detections.image0.boxes"),
        ("retinanet", "box_weight", 1.0, "train.loss_retina_reg"),
        ("retinanet", "background_iou", 0.3, "train.retina.labels.image0"),
    ],
)
def test_a_wrong_convention_is_found(
    section: str, field: str, value: Any, differing: str, tmp_path: Path
) -> None:
    folder = copied(RETINA, tmp_path, settings=None)  # nothing but the row says how to build
    keep_stages(folder, f"{differing.split('.')[0]}.", "A.retina.logits")
    entry = load_manifests().entry("retinanet_resnet50_fpn_1x.maskrcnn_benchmark")
    own = getattr(entry.conventions, section).model_copy(update={field: value})
    wrong = entry.model_copy(update={"conventions": entry.conventions.model_copy(update={section: own})})
    reference = Reference(folder)
    computed = outputs(reference, wrong, "float32", None)
    lines = {
        name: compare(name, computed.get(name), kept, "float32") for name, kept in reference.recorded.items()
    }
    assert lines[differing].verdict == "differs" and lines["A.retina.logits.0"].verdict == "ok"


def test_a_row_that_departs_from_the_recorded_settings_is_named(tmp_path: Path) -> None:
    settings = json.loads((FOLDERS / RETINA / "outputs.json").read_text())["settings"]
    settings["RETINANET"]["NMS_TH"] = 0.41
    settings["SOLVER"]["GAMMA"] = 0.2
    folder = copied(RETINA, tmp_path, settings=settings)
    keep_stages(folder, "A.retina.")  # enough for remarks: the rest is not computed
    notes = parity(folder).notes
    asked = parity(tmp_path / RETINA, row="retinanet_resnet50_fpn_1x.maskrcnn_benchmark")
    assert asked.notes[0].endswith(".detection_rule, .rule: built as the row is")
    with pytest.raises(CheckpointError, match="missing from the file"):
        parity(tmp_path / RETINA, row="faster_rcnn_vovnet39_fpn_2x.vovnet")
    assert (
        len(notes) == 2
        and "departs from the recorded settings in .detection_rule, .rule" in notes[0]
        and "solver settings" in notes[1]
    )


# ---- configurations without a row ----


def test_a_configuration_without_a_row_is_built_from_its_settings(tmp_path: Path) -> None:
    report = parity(copied(RETINA, tmp_path, config="configs/retinanet/another.yaml"))
    assert report.ok and report.row is None, failures(report)
    assert report.notes == (
        (
            "no manifest row has source_config 'configs/retinanet/another.yaml': built from the recorded"
            " settings"
        ),
    )
    with pytest.raises(ParityError, match="and no 'settings' are recorded"):
        parity(copied(RETINA, tmp_path / "again", config="configs/retinanet/another.yaml", settings=None))


def other_configuration(
    to: Path, base: str, names: dict[str, str], change: Any, **settings: Any
) -> Reference:
    """A folder as another configuration would have it: checkpoint names changed by `change`, settings by
    section or whole."""
    folder = copied(base, to, config="configs/other.yaml")
    described = json.loads((folder / "checkpoint.json").read_text())
    described["tensors"] = [entry for tensor in described["tensors"] for entry in change(tensor)]
    (folder / "checkpoint.json").write_text(json.dumps(described))
    meta = json.loads((folder / "outputs.json").read_text())
    for section, values in settings.items():
        meta["settings"][section] = {**meta["settings"].get(section, {}), **values}
    meta["settings"].update(names)
    (folder / "outputs.json").write_text(json.dumps(meta))
    return Reference(folder)


def loads(reference: Reference) -> torch.nn.Module:
    with WithoutRandomFills():
        model = assemble(entry_from_settings(reference))
    load_arrays(model, reference.checkpoint(), "maskrcnn_benchmark_pth", where=str(reference.folder))
    return model


def test_group_norm_configurations_are_built_and_loaded(tmp_path: Path) -> None:
    def grouped(tensor: dict[str, Any]) -> list[dict[str, Any]]:
        """Names and shapes of the source's GroupNorm variants of V-39 Mask R-CNN."""
        name, shape = tensor["name"], tensor["shape"]
        if name.endswith(("running_mean", "running_var")) or ".box.feature_extractor.fc7." in name:
            return []
        parts = name.rsplit(".", 1)
        if "fpn_" in name or "mask_fcn" in name and "logits" not in name:
            if parts[1] == "bias":
                return [
                    {**tensor, "name": f"{parts[0]}.1.{part}", "fill": "shift"} for part in ("weight", "bias")
                ]
            return [{**tensor, "name": f"{parts[0]}.0.weight"}]
        if ".box.feature_extractor.fc6.weight" in name:
            base = name.replace("fc6.weight", "xconvs")
            convs = [
                {**tensor, "name": f"{base}.{3 * i}.weight", "shape": [256, 256, 3, 3]} for i in range(4)
            ]
            norms = [
                {**tensor, "name": f"{base}.{3 * i + 1}.{part}", "shape": [256], "fill": "shift"}
                for i in range(4)
                for part in ("weight", "bias")
            ]
            return [*convs, *norms, {**tensor, "shape": shape}]
        return [tensor]

    reference = other_configuration(
        tmp_path, MASK, {}, grouped, ROI_BOX_HEAD={"FEATURE_EXTRACTOR": "FPNXconv1fcFeatureExtractor"}
    )
    model = loads(reference)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        43.455, abs=6e-4
    )  # as counted in the source


def test_resnext_configurations_take_groups_from_the_checkpoint(tmp_path: Path) -> None:
    def wider(tensor: dict[str, Any]) -> list[dict[str, Any]]:
        """ResNeXt-50-32x8d in place of ResNet-50: all inner widths times four, 3x3 of 32 groups."""
        name, shape = tensor["name"], list(tensor["shape"])
        if ".layer" in name and "downsample" not in name:
            if ".conv1." in name or ".bn1." in name or ".bn2." in name or ".conv2." in name:
                shape[0] *= 4
            if ".conv3." in name:
                shape[1] *= 4
            if ".conv2." in name:
                shape[1] = shape[0] // 32
        return [{**tensor, "shape": shape, "fill": "zeros"}]

    reference = other_configuration(tmp_path, RETINA, {}, wider, BACKBONE={"CONV_BODY": "R-50-FPN-RETINANET"})
    model = loads(reference)
    first = model.backbone.c3[0]
    assert (
        first.conv2.conv.groups == 32
        and first.conv2.conv.stride == (2, 2)
        and first.conv1.conv.stride == (1, 1)
    )
    stated = other_configuration(tmp_path / "stated", RETINA, {}, wider, RESNETS={"STRIDE_IN_1X1": True})
    assert loads(stated).backbone.c3[0].conv1.conv.stride == (2, 2)


def test_c4_mask_configurations_share_the_box_heads_stage(tmp_path: Path) -> None:
    def with_mask(tensor: dict[str, Any]) -> list[dict[str, Any]]:
        name = tensor["name"]
        if ".head.layer4." in name:
            return [tensor, {**tensor, "name": name.replace(".box.", ".mask.")}]
        if name.endswith("predictor.cls_score.weight"):
            shapes = {
                "conv5_mask.weight": [2048, 256, 2, 2],
                "conv5_mask.bias": [256],
                "mask_fcn_logits.weight": [81, 256, 1, 1],
                "mask_fcn_logits.bias": [81],
            }
            return [
                tensor,
                *(
                    {**tensor, "name": f"module.roi_heads.mask.predictor.{part}", "shape": shape}
                    for part, shape in shapes.items()
                ),
            ]
        return [tensor]

    head = {
        "SHARE_BOX_FEATURE_EXTRACTOR": True,
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,
        "RESOLUTION": 14,
        "POSTPROCESS_MASKS_THRESHOLD": 0.5,
    }
    reference = other_configuration(tmp_path, C4, {"MASK_ON": True}, with_mask, ROI_MASK_HEAD=head)
    model = loads(reference)
    assert model.mask.pooler is None
    last = reference.checkpoint()["module.roi_heads.mask.feature_extractor.head.layer4.0.conv1.weight"]
    assert (
        model.box.trunk.stage[0].conv1.conv.weight.detach().numpy() == last
    ).all()  # the later of two names wins, as on loading there


def test_settings_that_cannot_be_followed_are_errors(tmp_path: Path) -> None:
    for number, (section, values, message) in enumerate(
        [
            ("ROI_BOX_HEAD", {"DILATION": 2}, r"ROI_BOX_HEAD\.DILATION = 2 is not supported"),
            ("BACKBONE", {"CONV_BODY": "EFFICIENT-7"}, "backbone 'EFFICIENT-7' is unknown"),
            ("ROI_BOX_HEAD", {"FEATURE_EXTRACTOR": "Own"}, "box head 'Own' is unknown"),
        ]
    ):
        reference = other_configuration(
            tmp_path / str(number), FASTER, {}, lambda tensor: [tensor], **{section: values}
        )
        with pytest.raises(ParityError, match=message):
            entry_from_settings(reference)


def test_departures_see_single_numbers() -> None:
    reference = Reference(FOLDERS / FASTER)
    entry = entry_from_settings(reference)
    boxes = entry.conventions.boxes.model_copy(update={"weights": [10.0, 10.0, 5.0, 4.0]})
    other = entry.model_copy(update={"conventions": entry.conventions.model_copy(update={"boxes": boxes})})
    with shapes_only():
        assert list(departures(assemble(entry), assemble(entry))) == []
        assert list(departures(assemble(entry), assemble(other))) == [".coder", ".sampler"]
        frozen = entry.model_copy(update={"backbone": entry.backbone.model_copy(update={"freeze_at": 1})})
        assert all(name.startswith("backbone.stem") for name in departures(assemble(entry), assemble(frozen)))
    assert schedule_from_settings(reference.meta["settings"]) == load_manifests().schedules["vovnet_2x"]


# ---- reading what a folder says ----


def batch_of(words: str, divisor: int) -> Batch:
    """The batch of an input's note."""
    return Batch.of(read_note(words, rule_of("inputs.A", "maskrcnn_benchmark"), "inputs.A"), divisor)


def test_inputs_are_read_from_their_text() -> None:
    one = batch_of(("normal_input(5, (1,3,64,96)), one image of height 64 and width 96"), 32)
    assert (
        one.images.shape == (1, 3, 64, 96)
        and one.sizes.tolist() == [[64, 96]]
        and (one.images.numpy() == normal_input(5, (1, 3, 64, 96))).all()
    )
    text = (
        "three images, normal_input(1, (3,40,50)), normal_input(2,(3,33,64)) and normal_input(3, (3,64,20)),"
        " zero-padded at the right and bottom to (3,3,64,96); true sizes (height, width) (40,50), (33,64) and"
        " (64,20) are what clipping uses"
    )
    batch = batch_of((text), 32)
    assert batch.images.shape == (3, 3, 64, 96) and batch.sizes.tolist() == [[40, 50], [33, 64], [64, 20]]
    assert (batch.images[1, :, :33, :64].numpy() == normal_input(2, (3, 33, 64))).all()
    assert not batch.images[1, :, 33:].any() and not batch.images[2, :, :, 20:].any()
    unsaid = batch_of(("normal_input(1,(3,40,50)) and normal_input(2,(3,33,70))"), 32)
    assert unsaid.images.shape == (2, 3, 64, 96) and unsaid.sizes.tolist() == [[40, 50], [33, 70]]
    with pytest.raises(ParityError, match="inputs.A: does not state 'normal_input"):
        batch_of(("an image of a cat"), 1)
    with pytest.raises(ParityError, match="1 true sizes are stated for 2 images"):
        batch_of(("normal_input(1,(2,3,40,50)), true sizes (height, width) (40,50)"), 1)


def test_tolerances_are_those_the_folder_advises(tmp_path: Path) -> None:
    advised = Tolerances.of(Reference(FOLDERS / FASTER))
    assert (advised.maps, advised.lists, advised.gradients) == (1e-5, 1e-4, 5e-3)
    silent = Reference(tmp_path)
    silent.__dict__["settings"] = Settings()
    assert Tolerances.of(silent) == Tolerances(1e-4, 1e-4, 5e-3)


def test_differences_of_samples_shapes_and_moments() -> None:
    value = np.linspace(0, 1, 2000)
    kept = {
        "shape": np.array([2000]),
        "moments": np.array([value.mean(), value.std()]),
        "samples": value[::3][:512],
        "stride": np.array(3),
    }
    assert recorded_difference(value, kept) == 0
    assert recorded_difference(value.reshape(20, 100), kept) == math.inf
    between = value.copy()
    between[1::3] += 0.01
    assert 0.004 < recorded_difference(between, kept) < 0.02
    assert recorded_difference(np.where(np.arange(2000) == 3, np.nan, value), kept) == math.inf
    assert compare("x", Output(np.zeros(3), 0.0, [0.0, 0.0, 0.0]), None, "float32").verdict == "ok"
    assert (
        compare("x", Output(np.zeros(2), 0.0, [0.0, 0.0, 0.0]), None, "float32").reason == "the shape is (2,)"
    )
    assert compare("x", Skip("no draws are recorded"), kept, "float32").reason == "no draws are recorded"


def test_near_ties_may_change_places_and_nothing_else_may() -> None:
    scores = np.array([0.9, 0.5000004, 0.5, 0.3])
    rows = np.arange(16.0).reshape(4, 4)
    assert settle_ties(scores, rows, rows[[0, 2, 1, 3]]).tolist() == [0, 2, 1, 3]
    assert settle_ties(scores, rows, rows[[1, 0, 2, 3]]).tolist() == [0, 1, 2, 3]
    assert settle_ties(scores, rows, rows[:2]).tolist() == [0, 1, 2, 3]
    partly = rows[[0, 2, 1, 3]].astype(float)
    partly[1] = np.nan  # nothing is known of the first of the two that changed places
    assert settle_ties(scores, rows, partly).tolist() == [0, 2, 1, 3]
    partly[2] = np.nan
    assert settle_ties(scores, rows, partly).tolist() == [0, 1, 2, 3]
    clipped = np.array([[0.0, 9], [0, 5], [0, 7]])
    assert settle_ties(
        np.full(3, 0.5), clipped, np.array([[np.nan, np.nan], [0, 5], [0, np.nan]])
    ).tolist() == [0, 1, 2]


def test_levels_of_odd_sizes_are_halved_upwards() -> None:
    assert halved((100, 152), (13, 19)) == [(100, 152), (50, 76), (25, 38), (13, 19)]
    with pytest.raises(ParityError, match="no halving leads"):
        halved((100, 152), (12, 19))


def test_folders_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"outputs\.json: no such file"):
        parity(tmp_path)
    with pytest.raises(ParityError, match="there is no adapter for source 'somebody/else'"):
        parity(copied("common_steps", tmp_path, source="somebody/else@1"))
    folder = copied("common_steps", tmp_path / "again")
    (folder / "outputs.npz").write_bytes((folder / "outputs.npz").read_bytes()[:1000])
    with pytest.raises(ParityError, match="is the file cut short"):
        parity(folder)
    (folder / "outputs.json").write_text("{")
    with pytest.raises(ParityError, match="not valid JSON"):
        parity(folder)
    with pytest.raises(ValueError, match="float32 or float64"):
        parity(FOLDERS / "common_steps", dtype="float16")


def test_a_report_counts_prints_and_becomes_json() -> None:
    report = report_of("maskrcnn_benchmark/imagenet_vovnet39")
    assert report.summary().startswith(
        f"{FOLDERS / 'imagenet_vovnet39'}: {report.count('ok')} ok, 0 differ, 0 skipped (float32, row"
        " vovnet39_imagenet.vovnet)"
    )
    told = json.loads(json.dumps(report.to_json()))
    assert told["ok"] and len(told["lines"]) == len(report.lines) and told["lines"][0]["verdict"] == "ok"
    assert any("1x128x32x40" in str(line) for line in report.lines)
