"""DetNet_pytorch: recorded outputs of the original, other configurations of it, and files that do not fit."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from parity.steps_detnet import _Steps, head_model, resizing
from parity_reports import report_of

from detection_zoo.zoo.backbones.detnet import detnet59
from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.conventions import Conventions, ProposalConventions
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity import detnet
from detection_zoo.zoo.parity.base import ParityError, Reference, parity
from detection_zoo.zoo.parity.detnet import _Detector, known_values
from detection_zoo.zoo.parity.detnet_model import Pyramid, pool
from detection_zoo.zoo.parity.detnet_settings import detector_components, row_for
from detection_zoo.zoo.parity.prose import read_note, rule_of
from detection_zoo.zoo.weights.load import load_arrays

pytestmark = pytest.mark.usefixtures("kept_memory", "kept_fills")

LIMITS = ProposalConventions(pre_nms=9, inclusive=False, together=True, fill=True, collect=0)
FOLDERS = Path(__file__).resolve().parents[1] / "reference" / "detnet"


@pytest.mark.parametrize(
    "folder", ["ops", "imagenet_detnet59", "faster_rcnn_fpn_detnet59_voc", "faster_rcnn_fpn_resnet101_voc"]
)
def test_every_recorded_output_is_equal(folder: str) -> None:
    report = report_of(f"detnet/{folder}")
    assert report.ok, "\n".join(str(line) for line in report.lines if line.verdict != "ok")
    assert not [line.name for line in report.lines if line.verdict == "skipped" and not line.reason]


def test_a_changed_record_is_found(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS / "ops", tmp_path / "ops"))
    with np.load(folder / "outputs.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["nms_0.5|samples"] = changed["nms_0.5|samples"].copy()
    changed["nms_0.5|samples"][7] += 1
    np.savez(folder / "outputs.npz", **changed)
    report = parity(folder)
    assert not report.ok
    assert [line.name for line in report.lines if line.verdict == "differs"] == ["nms_0.5"]


def test_an_output_nobody_computes_is_not_passed_over(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS / "ops", tmp_path / "ops"))
    with np.load(folder / "outputs.npz") as arrays:
        more = {name: arrays[name] for name in arrays.files}
    more |= {
        f"unheard_of|{part}": more[f"encode|{part}"] for part in ("shape", "moments", "samples", "stride")
    }
    np.savez(folder / "outputs.npz", **more)
    assert not parity(folder).ok


def resnet50_coco(tmp_path: Path) -> Reference:
    """A folder of a configuration that is not recorded: ResNet-50, 81 classes, class-agnostic boxes."""
    source = FOLDERS / "faster_rcnn_fpn_resnet101_voc"
    described = json.loads((source / "checkpoint.json").read_text())
    deeper = tuple(f"RCNN_layer3.0.{block}." for block in range(6, 23))
    described["tensors"] = [
        tensor for tensor in described["tensors"] if not tensor["name"].startswith(deeper)
    ]
    for tensor in described["tensors"]:
        if tensor["name"].startswith("RCNN_cls_score"):
            tensor["shape"][0] = 81
        if tensor["name"].startswith("RCNN_bbox_pred"):
            tensor["shape"][0] = 4
    meta = json.loads((source / "outputs.json").read_text())
    meta["options"] |= {"classes": 81, "class_agnostic": True}
    (tmp_path / "checkpoint.json").write_text(json.dumps(described))
    (tmp_path / "outputs.json").write_text(json.dumps(meta))
    return Reference(tmp_path)


def test_other_configurations_are_built_from_what_the_folder_says(tmp_path: Path) -> None:
    reference = resnet50_coco(tmp_path)
    model = assemble(row_for(reference, None, detector_components(reference)))
    assert model.num_classes == 80 and len(model.backbone.c4) == 6
    report = load_arrays(model, reference.checkpoint(), "detnet_pytorch_pth", where="test")
    assert report.complete and set(report.dropped) == {"RCNN_roi_feat_ds.weight", "RCNN_roi_feat_ds.bias"}
    found = model.eval()(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))
    assert len(found) == 1 and found[0].boxes.shape[1] == 4


def conventions_of(tmp_path: Path, **options: object) -> tuple[Conventions, Reference]:
    reference = resnet50_coco(tmp_path)
    reference.meta["options"] |= {"class_agnostic": False, **options}
    return detector_components(reference)["conventions"], reference


def changed_fields(found: Conventions, usual: Conventions) -> dict:
    """Fields of `found` that are not as in `usual`, by section."""
    pairs = ((name, getattr(found, name), getattr(usual, name)) for name in type(found).model_fields)
    return {
        name: {key: value for key, value in ours.model_dump().items() if value != getattr(theirs, key)}
        for name, ours, theirs in pairs
        if ours != theirs
    }


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {}),
        (
            {"yml": "cfgs/res50_ls.yml"},
            {"proposals": {"post_nms": 1000}},
        ),  # FACTS: 300 (VOC), 1000 with the _ls yml (COCO)
        ({"yml": "cfgs/res50_ls.yml", "overrides": ["TEST.RPN_POST_NMS_TOP_N", "300"]}, {}),
        (
            {"overrides": ["FPN_ANCHOR_SCALES", "[16, 32, 64, 128, 256]", "MAX_NUM_GT_BOXES", "50"]},
            {"anchors": {"sizes": [[16.0], [32.0], [64.0], [128.0], [256.0]]}},
        ),
        ({"overrides": ["TRAIN.RPN_POST_NMS_TOP_N", 1000]}, {"training_proposals": {"post_nms": 1000}}),
        ({"pooling": "pool"}, {"pooling": {"method": "roi_pool"}}),
        ({"pooling": "crop", "overrides": ["POOLING_MODE", "align"]}, {}),
    ],
)
def test_what_the_options_say_of_the_detector_is_followed(
    options: dict, wanted: dict, tmp_path: Path
) -> None:
    found, _ = conventions_of(tmp_path, **options)
    assert changed_fields(found, load_manifests().conventions["detnet_resnet"]) == wanted


def test_options_that_cannot_be_followed_are_told(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="pooling 'crop' is not supported on a pyramid; known: align, pool"):
        conventions_of(tmp_path, pooling="crop")
    _, reference = conventions_of(tmp_path, overrides=["TEST.NMS", "0.5"])
    assert any("TEST.NMS" in note for note in reference.notes)


def test_a_row_of_coco_is_the_folder_of_the_large_scale(tmp_path: Path) -> None:
    row = load_manifests().entry("faster_rcnn_detnet59_fpn_coco.detnet")
    found, _ = conventions_of(tmp_path, yml="cfgs/detnet59_ls.yml", pooled_size=14)
    assert set(changed_fields(found, row.conventions)) == {"image", "targets"}  # the folder is a ResNet's


@pytest.mark.parametrize(("pooling", "operator"), [("pool", torchvision.ops.roi_pool), ("align", None)])
def test_rois_are_pooled_as_configured(pooling: str, operator: Callable[..., torch.Tensor] | None) -> None:
    method = {"pool": "roi_pool", "align": "roi_align_averaged"}[pooling]
    model = head_model(2, pooling={"method": method, "size": 3})
    levels = [torch.rand(1, 2, 32 // 2**i, 32 // 2**i) for i in range(4)]
    rois = torch.tensor([[0, 8.0, 4.0, 60.0, 90.0]])  # of the finest level, scale 1 / 4
    found = pool(model, levels, rois, 128.0)
    own = torchvision.ops.roi_pool(levels[0], rois, 3, 0.25)
    assert torch.equal(found, own) == (operator is not None)


@pytest.mark.parametrize(("gap", "followed"), [(1e-7, True), (1e-3, False)])
def test_near_ties_among_proposals_and_detections_stand_as_recorded(
    gap: float, followed: bool, tmp_path: Path
) -> None:
    anchors = torch.tensor([[10.0, 10, 30, 30], [50, 50, 80, 80], [5, 60, 25, 90]])
    scores = torch.tensor([[0.5 + gap, 0.5, 0.2]], dtype=torch.float64)
    found = Pyramid([], [], [], scores, torch.zeros(1, 3, 4), anchors)
    limits = LIMITS.model_copy(update={"post_nms": 4})
    boxes = anchors + torch.tensor([0.0, 0, 1, 1])  # decoded far corners lie one pixel further
    recorded = torch.cat([torch.zeros(4, 1), torch.cat([boxes[[1, 0, 2]], torch.zeros(1, 4)])], dim=1)[
        None
    ].numpy()
    rows = torch.tensor(
        [[2.0, 10, 10, 30, 30, 0.5 + gap], [2, 50, 50, 80, 80, 0.5], [3, 1, 1, 9, 9, 0.9]],
        dtype=torch.float64,
    )
    kept = {"x/rois": recorded, "x/detections": rows.numpy()[[1, 0, 2]]}
    reference = Reference(tmp_path)
    reference.__dict__["recorded"] = {
        name: {"shape": np.array(value.shape), "samples": value.reshape(-1)[::3], "stride": np.array(3)}
        for name, value in kept.items()
    }
    folder = _Detector.__new__(_Detector)
    folder.reference, folder.kind = reference, torch.float64
    proposals = folder._proposals(
        "x/rois", torch.zeros(1, 3, 100, 100), found, torch.tensor([[100.0, 100.0]]), limits
    )
    assert np.array_equal(proposals.numpy(), recorded) == followed
    detections = folder._settled_detections("x/detections", rows)
    assert np.array_equal(detections.numpy(), kept["x/detections"]) == followed
    assert len(reference.notes) == 2 * followed


def test_near_ties_of_which_nothing_is_recorded_are_ranked_in_double_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors = torch.tensor([[10.0, 10, 30, 30], [50, 50, 80, 80]])
    folder = _Detector.__new__(_Detector)
    folder.reference, folder.kind = Reference(tmp_path), torch.float32
    folder.reference.__dict__["recorded"] = {
        "x/rois": {"shape": np.array([1, 2, 5]), "samples": np.zeros(1), "stride": np.array(10)}
    }

    def finer(model: torch.nn.Module, images: torch.Tensor) -> Pyramid:
        assert images.dtype == torch.float64
        scores = torch.tensor([[0.5, 0.5 + 1e-9]], dtype=torch.float64)
        return Pyramid([], [], [], scores, torch.zeros(1, 2, 4), anchors)

    monkeypatch.setattr(detnet, "pyramid", finer)
    folder.model = torch.nn.Identity()
    limits = LIMITS.model_copy(update={"post_nms": 2})
    for scores, first in (
        ([0.5, 0.5], 50.0),
        ([0.6, 0.5], 10.0),
    ):  # a tie, which the finer scores settle, and none
        found = Pyramid([], [], [], torch.tensor([scores]), torch.zeros(1, 2, 4), anchors)
        proposals = folder._proposals(
            "x/rois", torch.zeros(1, 3, 100, 100), found, torch.tensor([[100.0, 100.0]]), limits
        )
        assert proposals[0, 0, 1] == first


def test_values_known_from_both_samplings(tmp_path: Path) -> None:
    whole = np.arange(6000.0).reshape(6, 1000)
    reference = Reference(tmp_path)
    probed = np.random.RandomState(zlib.crc32(b"a/rois")).randint(
        0, 6000, 512
    )  # as the folders' own words say
    reference.__dict__["recorded"] = {
        "a/rois": {
            "shape": np.array([6, 1000]),
            "samples": whole.reshape(-1)[::11][:512],
            "stride": np.array(11),
        },
        "a/rois@probe": {
            "shape": np.array([512]),
            "samples": whole.reshape(-1)[probed],
            "stride": np.array(1),
        },
    }
    known = known_values(reference, "a/rois")
    assert known.shape == (6, 1000) and np.array_equal(known[~np.isnan(known)], whole[~np.isnan(known)])
    assert (~np.isnan(known)).sum() == len({*probed, *range(0, 6000, 11)[:512]})


def test_strides_of_steps_follow_from_their_maps() -> None:
    steps = _Steps(Reference(FOLDERS / "ops"), torch.float32)
    for name in ("anchors_detnet", "anchors_resnet"):  # 4, 8, 16, 16, 16 and 4, 8, 16, 32, 64
        described = steps.described[name]
        untold = {field: value for field, value in described.items() if field != "strides"}
        assert (
            torch.equal(steps.anchors_over(untold), steps.anchors_over(described))
            and len(steps.anchors_over(untold)) == described["count"]
        )


DEMO = "demo.py rule on the same image: there the longest side (80) IS applied"


@pytest.mark.parametrize(
    ("text", "first", "sides"),
    [
        (DEMO, "bilinear by target 60 / shorter side", (60, 80)),
        (DEMO, "by target 60; the longest side of 90 asked for is NOT applied", (60, 80)),
        ("by target 50, longest side (70) applied", "by target 60; the longest side of 90", (50, 70)),
    ],
)
def test_an_image_of_the_demo_has_the_size_that_its_own_text_says(
    text: str, first: str, sides: tuple[int, int]
) -> None:
    rule = rule_of("outputs.prep_image_demo.meaning", "detnet")
    notes = [read_note(words, rule, "a note") for words in (text, first)]
    assert resizing(notes, longest=True) == sides
    assert resizing(notes, longest=False) == (sides[0], None)


def test_a_size_that_no_text_says_is_an_error() -> None:
    note = read_note("the same image", rule_of("outputs.prep_image_demo.meaning", "detnet"), "a note")
    with pytest.raises(ParityError, match=r"no note states 'target N'"):
        resizing([note], longest=False)


def test_damaged_folders_name_what_they_lack(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS / "ops", tmp_path / "ops"))
    meta = json.loads((folder / "outputs.json").read_text())
    (folder / "outputs.json").write_text(
        json.dumps({name: value for name, value in meta.items() if name != "inputs"})
    )
    with pytest.raises(ParityError, match=r"outputs\.json: field 'inputs' is missing"):
        parity(folder)
    (folder / "outputs.json").write_text("[1]")
    with pytest.raises(ParityError, match=r"outputs\.json: holds a list, an object"):
        parity(folder)
    (folder / "outputs.json").write_text(json.dumps(meta))
    with np.load(folder / "inputs.npz") as arrays:
        given = {name: arrays[name] for name in arrays.files if name != "ex_boxes"}
    np.savez(folder / "inputs.npz", **given)
    with pytest.raises(ParityError, match=r"inputs\.npz: field 'ex_boxes' is missing"):
        parity(folder)
    with np.load(folder / "outputs.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "encode|stride"}
    np.savez(folder / "outputs.npz", **kept)
    with pytest.raises(ParityError, match="'encode' is recorded without its stride"):
        _ = Reference(folder).recorded


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    reference = resnet50_coco(tmp_path)
    model = assemble(row_for(reference, None, detector_components(reference)))
    before = model.box.trunk.conv1.weight.clone()
    arrays = reference.checkpoint()
    arrays["RCNN_top.0.weight"] = arrays["RCNN_top.0.weight"][..., :5, :5]
    arrays.pop("RCNN_smooth3.bias")
    with pytest.raises(CheckpointError, match=r"(?s)neck\.smooth\.2\.bias.*box\.trunk\.conv1\.weight"):
        load_arrays(model, arrays, "detnet_pytorch_pth", where="test")
    assert torch.equal(model.box.trunk.conv1.weight, before)


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.bool])
def test_tensors_of_another_kind_are_not_made_into_weights(kind: torch.dtype) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    arrays = {"bias": torch.ones(2), "weight": torch.ones(2, 2).to(kind)}
    with pytest.raises(
        CheckpointError,
        match=rf"(?s)tensors in the file are not floating point: weight \({kind}\).*Nothing was loaded",
    ):
        load_arrays(model, arrays, "zoo", where="test")
    assert torch.equal(model.weight, before)


def test_the_last_stages_keep_their_stride() -> None:
    backbone = detnet59(norm="batch").eval()
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: (spec.channels, spec.stride) for name, spec in backbone.specs.items()} == {
        "c2": (256, 4),
        "c3": (512, 8),
        "c4": (1024, 16),
        "c5": (1024, 16),
        "c6": (1024, 16),
    }  # Li et al. 2018, table 1
    assert maps["c6"].shape == (1, 1024, 4, 6)
    assert (
        sum(p.numel() for p in backbone.parameters()) + 1024 * 1000 + 1000 == 18_372_648
    )  # the classifier, as counted from the original
