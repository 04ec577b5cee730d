"""Detectron2 as a peer: resizing as it resizes, a clear word where it is absent, and its own outputs where it
is installed."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch
from contracts import check_detector, images_and_targets

from detection_zoo.zoo.build import assemble, build_model
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.errors import CheckpointError, ManifestError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.weights.load import checkpoint_format, load_weights

SLIM = "faster_rcnn_resnet50_fpn_slim.detectron2"
FAMILIES = [
    "faster_rcnn_resnet50_fpn_1x",
    "faster_rcnn_resnet50_c4_1x",
    "faster_rcnn_resnet50_dc5_1x",
    "mask_rcnn_resnet50_fpn_1x",
    "mask_rcnn_resnet50_c4_1x",
    "keypoint_rcnn_resnet50_fpn_1x",
    "retinanet_resnet50_fpn_1x",
]
needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="Detectron2 is not installed"
)


def small(name: str) -> ModelEntry:
    """The row with fewer proposals and detections, every score kept."""
    entry = load_manifests().entry(f"{name}.detectron2")
    options = {
        "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
        "TEST.DETECTIONS_PER_IMAGE": 8,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    }
    return entry.model_copy(update={"detector": entry.detector.model_copy(update={"options": options})})


@pytest.mark.parametrize(
    ("height", "width", "plan"),
    [
        (480, 640, (800, 1067)),  # 640 * 800 / 480 = 1066.67
        (427, 640, (800, 1199)),  # 1199.06
        (333, 500, (800, 1201)),  # 1201.2
        (200, 640, (417, 1333)),  # 800 * 1333 / 2560 = 416.56
        (500, 375, (1067, 800)),
        (800, 800, (800, 800)),
        (320, 401, (800, 1003)),  # 1002.5: half goes up, where half to even gives 1002
    ],
)
def test_sides_are_rounded_half_up(height: int, width: int, plan: tuple[int, int]) -> None:
    found = ShorterSide(800, 1333, "half_up").plan(height, width)
    assert (found.height, found.width) == plan


def test_without_detectron2_a_row_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)  # what import finds where it is not installed
    with pytest.raises(ManifestError, match="needs the package detectron2: http"):
        assemble(load_manifests().entry(SLIM))


def test_files_of_its_zoo_are_read_without_running_them(tmp_path: Path) -> None:
    import numpy as np

    path, names = (
        tmp_path / "model.pkl",
        (
            "backbone.bottom_up.stem.conv1.weight",
            "pixel_mean",
            "proposal_generator.anchor_generator.cell_anchors.0",
        ),
    )
    path.write_bytes(
        pickle.dumps(
            {"model": {name: np.ones(3, np.float32) for name in names}, "__author__": "Detectron2 Model Zoo"}
        )
    )
    form = checkpoint_format("detectron2_pkl")
    found = form.translate(form.read(path))
    assert set(found.state) == {"model.backbone.bottom_up.stem.conv1.weight"} and set(found.dropped) == set(
        names[1:]
    )
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError, match="has no state dict .* it contains a list"):
        form.read(path)


@needs_detectron2
@pytest.mark.parametrize("name", FAMILIES)
def test_detections_are_detectron2s_own(name: str) -> None:
    torch.manual_seed(3)
    model = assemble(small(name)).eval()
    images, sizes, _ = images_and_targets([(64, 96), (80, 64)], polygons=False, keypoints=False, classes=2)
    images = images + 110
    batch = [
        {"image": image[:, :h, :w], "height": 2 * h, "width": 2 * w}
        for image, (h, w) in zip(images, sizes.tolist(), strict=True)
    ]
    with torch.no_grad():
        wanted = [each["instances"] for each in model.model(batch)]
        found = model.predict(images, sizes, 2 * sizes)
    assert sum(map(len, wanted)) > 0
    for ours, theirs in zip(found, wanted, strict=True):
        assert (
            torch.equal(ours.boxes, theirs.pred_boxes.tensor)
            and torch.equal(ours.scores, theirs.scores)
            and torch.equal(ours.labels, theirs.pred_classes)
        )
        assert (ours.masks is not None) == name.startswith("mask") and (
            ours.masks is None or torch.equal(ours.masks, theirs.pred_masks)
        )
        assert (ours.keypoints is not None) == name.startswith("keypoint") and (
            ours.keypoints is None or torch.equal(ours.keypoints, theirs.pred_keypoints)
        )


@needs_detectron2
@pytest.mark.parametrize("name", FAMILIES)
def test_it_keeps_the_contract(name: str) -> None:
    torch.manual_seed(2)
    model = assemble(small(name))
    # the contract's images are around zero; with fresh weights a large constant grows beyond all bounds
    model.model.pixel_mean.zero_()
    check_detector(
        model, [(64, 96), (80, 64)], polygons=name.startswith("mask"), keypoints=name.startswith("keypoint")
    )


@needs_detectron2
def test_a_file_loads_whole_or_not_at_all(tmp_path: Path) -> None:
    entry, path = load_manifests().entry(SLIM), tmp_path / "model.pkl"
    source = build_model(entry, "random")
    content = {
        name.removeprefix("model."): tensor.numpy() + 0.5 for name, tensor in source.state_dict().items()
    }
    path.write_bytes(pickle.dumps({"model": content, "__author__": "Detectron2 Model Zoo"}))
    loaded = build_model(entry)
    load_weights(loaded, path, "detectron2_pkl")
    assert all(
        torch.equal(tensor, torch.from_numpy(content[name.removeprefix("model.")]))
        for name, tensor in loaded.state_dict().items()
    )
    content.pop("roi_heads.box_head.fc1.weight")
    path.write_bytes(pickle.dumps({"model": content}))
    with pytest.raises(CheckpointError, match=r"roi_heads\.box_head\.fc1\.weight"):
        load_weights(loaded, path, "detectron2_pkl")
