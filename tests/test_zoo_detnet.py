"""DetNet_pytorch: recorded outputs of the original, other configurations of it, and files that do not fit."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.backbones.detnet import detnet59
from zoo.build import assemble
from zoo.errors import CheckpointError
from zoo.parity.base import Reference, parity
from zoo.parity.detnet import detector_components, row_for
from zoo.weights.load import load_arrays

FOLDERS = Path(__file__).parent / "reference" / "detnet"


@pytest.mark.parametrize("folder", ["ops", "imagenet_detnet59", "faster_rcnn_fpn_detnet59_voc", "faster_rcnn_fpn_resnet101_voc"])
def test_every_recorded_output_is_equal(folder: str) -> None:
    report = parity(FOLDERS / folder)
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
    more |= {f"unheard_of|{part}": more[f"encode|{part}"] for part in ("shape", "moments", "samples", "stride")}
    np.savez(folder / "outputs.npz", **more)
    assert not parity(folder).ok


def resnet50_coco(tmp_path: Path) -> Reference:
    """A folder of a configuration that is not recorded: ResNet-50, 81 classes, class-agnostic boxes."""
    source = FOLDERS / "faster_rcnn_fpn_resnet101_voc"
    described = json.loads((source / "checkpoint.json").read_text())
    deeper = tuple(f"RCNN_layer3.0.{block}." for block in range(6, 23))
    described["tensors"] = [tensor for tensor in described["tensors"] if not tensor["name"].startswith(deeper)]
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


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    reference = resnet50_coco(tmp_path)
    model = assemble(row_for(reference, None, detector_components(reference)))
    before = model.box_head.conv1.weight.clone()
    arrays = reference.checkpoint()
    arrays["RCNN_top.0.weight"] = arrays["RCNN_top.0.weight"][..., :5, :5]
    arrays.pop("RCNN_smooth3.bias")
    with pytest.raises(CheckpointError, match=r"(?s)neck\.smooth\.2\.bias.*box_head\.conv1\.weight"):
        load_arrays(model, arrays, "detnet_pytorch_pth", where="test")
    assert torch.equal(model.box_head.conv1.weight, before)


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.bool])
def test_tensors_of_another_kind_are_not_made_into_weights(kind: torch.dtype) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    arrays = {"bias": torch.ones(2), "weight": torch.ones(2, 2).to(kind)}
    with pytest.raises(CheckpointError, match=rf"(?s)not real floating-point numbers in the file: weight \({kind}\).*Nothing was loaded"):
        load_arrays(model, arrays, "zoo", where="test")
    assert torch.equal(model.weight, before)


def test_the_last_stages_keep_their_stride() -> None:
    backbone = detnet59(norm="batch").eval()
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: (spec.channels, spec.stride) for name, spec in backbone.specs.items()} == {
        "c2": (256, 4), "c3": (512, 8), "c4": (1024, 16), "c5": (1024, 16), "c6": (1024, 16)}  # Li et al. 2018, table 1
    assert maps["c6"].shape == (1, 1024, 4, 6)
    assert sum(p.numel() for p in backbone.parameters()) + 1024 * 1000 + 1000 == 18_372_648  # the classifier, as counted from the original
