"""Peers as rows: torchvision's detectors give what torchvision gives, load its files, and train; timm models
are backbones."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from contracts import QuickFills, check_backbone, check_detector, images_and_targets

from detection_zoo.zoo.build import WithoutRandomFills, assemble, build_model, shapes_only
from detection_zoo.zoo.detectors.peers.torchvision import TorchvisionDetector
from detection_zoo.zoo.errors import CheckpointError, ManifestError
from detection_zoo.zoo.manifest import Component, ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import BACKBONES
from detection_zoo.zoo.settings import with_value
from detection_zoo.zoo.weights.load import checkpoint_format, load_weights

pytestmark = pytest.mark.usefixtures("kept_memory")

PEERS = [
    entry for entry in load_manifests().entries.values() if entry.source == "torchvision" and entry.weights
]
SMALL = "faster_rcnn_mobilenet_v3_large_320_fpn_coco_v1.torchvision"


def row(detector: str, classes: int = 3, **arguments: object) -> ModelEntry:
    return ModelEntry(
        name="peer",
        source="tests",
        title="peer",
        classes=classes,
        dataset="shapes",
        backbone=Component(name="own"),
        detector=Component(name=f"torchvision.{detector}", **arguments),
    )


@functools.cache
def without_values(name: str) -> TorchvisionDetector:
    """A row's model on the meta device."""
    return build_model(name, device="meta")


@pytest.mark.parametrize("entry", PEERS, ids=lambda entry: entry.name)
def test_parameters_are_those_that_torchvision_states(entry: ModelEntry) -> None:
    stated = next(
        record.values["parameters_m"] for record in entry.published if "parameters_m" in record.values
    )
    model = without_values(entry.name)
    assert sum(parameter.numel() for parameter in model.parameters()) == round(stated * 1e6)


@pytest.mark.parametrize(
    "detector",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "ssdlite320_mobilenet_v3_large",
        "maskrcnn_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
    ],
)
def test_detections_are_torchvisions_own(detector: str) -> None:
    with QuickFills():
        model = assemble(row(detector)).eval()
    inner = model.model
    inner.transform.min_size, inner.transform.max_size = (96,), 128
    if hasattr(inner, "rpn"):
        (
            inner.rpn._post_nms_top_n["testing"],
            inner.roi_heads.score_thresh,
            inner.roi_heads.detections_per_img,
        ) = (40, 0.0, 4)
    else:
        inner.score_thresh, inner.detections_per_img = 0.0, 12
    images, sizes, _ = images_and_targets([(64, 90), (70, 60)], polygons=False, keypoints=False, classes=3)
    images = images.sigmoid()
    with torch.no_grad():
        wanted = inner([image[:, :h, :w] for image, (h, w) in zip(images, sizes.tolist(), strict=True)])
        found = model.predict(images, sizes, sizes)
    assert sum(len(each["boxes"]) for each in wanted) > 0
    for ours, every in zip(found, wanted, strict=True):
        theirs = {
            name: values[every["labels"] > 0] for name, values in every.items()
        }  # RetinaNet and FCOS have a class 0 that no object has
        assert (
            torch.equal(ours.boxes, theirs["boxes"])
            and torch.equal(ours.scores, theirs["scores"])
            and torch.equal(ours.labels + 1, theirs["labels"])
        )
        if "masks" in theirs:
            assert torch.equal(ours.masks, theirs["masks"][:, 0] > 0.5)
        if "keypoints" in theirs:
            assert torch.equal(ours.keypoints[..., :2], theirs["keypoints"][..., :2]) and torch.equal(
                ours.keypoints[..., 2], theirs["keypoints_scores"]
            )


def test_coco_labels_are_category_ids_without_the_unused() -> None:
    with WithoutRandomFills():
        model = assemble(load_manifests().entry(SMALL))
    ids = [c for c in range(1, 91) if c not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    assert (
        model.columns.tolist() == ids
        and model.labels[90] == 79
        and model.labels[12] == -1
        and model.labels[0] == -1
    )
    assert (
        model.model.roi_heads.box_predictor.cls_score.out_features == 91 and model.class_names[0] == "person"
    )


@pytest.mark.parametrize("detector", ["fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn"])
def test_a_peer_keeps_the_contract(detector: str) -> None:
    torch.manual_seed(2)
    with QuickFills():
        model = assemble(row(detector, frozen_norm_eps=0.0))
    model.model.transform.min_size, model.model.transform.max_size = (64,), 96
    heads = model.model.roi_heads
    heads.fg_bg_sampler.batch_size_per_image, heads.detections_per_img = 48, 6
    check_detector(model, [(64, 96), (60, 70)], polygons=True)


def older(name: str) -> str:
    """The name that a file of torchvision before 0.13 has."""
    if ".inner_blocks." in name or ".layer_blocks." in name:
        return name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    if name.startswith("rpn.head.conv."):
        return name.replace("conv.0.0.", "conv.")
    if name.startswith("roi_heads.mask_head."):
        parts = name.split(".")
        return f"roi_heads.mask_head.mask_fcn{int(parts[2]) + 1}.{parts[-1]}"
    if "_head.conv." in name and name.count(".") == 5:
        parts = name.split(".")
        return ".".join([*parts[:3], str(2 * int(parts[3])), parts[-1]])
    return name


@pytest.mark.parametrize("entry", PEERS, ids=lambda entry: entry.name)
def test_files_of_today_and_of_older_versions_are_read(entry: ModelEntry) -> None:
    """The older names are those that torchvision's own loader still takes."""
    model = without_values(entry.name)
    assert isinstance(model, TorchvisionDetector)
    today = model.model.state_dict()
    wanted = {f"model.{name}" for name in today}
    translate = checkpoint_format("torchvision_detection_pth").translate
    assert set(translate(dict(today)).state) == wanted
    if entry.name.startswith(
        (
            "faster_rcnn_resnet50_fpn_coco",
            "mask_rcnn_resnet50_fpn_coco",
            "keypoint",
            "retinanet_resnet50_fpn_coco",
            SMALL,
        )
    ):
        old = {older(name): tensor for name, tensor in today.items()}
        assert len(set(old) - set(today)) >= 10 and set(translate(old).state) == wanted
        model.model.load_state_dict(
            type(today)(old), strict=True, assign=True
        )  # a dict without versions, as old files are


def test_a_file_loads_whole_or_not_at_all(tmp_path) -> None:
    torch.manual_seed(5)
    with QuickFills():
        source = build_model(SMALL)
    state = source.model.state_dict()
    torch.save(state, tmp_path / "peer.pth")
    loaded = build_model(SMALL, tmp_path / "peer.pth")
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), source.state_dict().values(), strict=True)
    )
    state.pop("rpn.head.cls_logits.weight")
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"missing from the file: model\.rpn\.head\.cls_logits\.weight"):
        load_weights(loaded, tmp_path / "cut.pth", "torchvision_detection_pth")


def test_unknown_peers_answer_with_near_names() -> None:
    with pytest.raises(
        ManifestError,
        match=(
            "torchvision.models.detection has no 'fasterrcnn_resnet51_fpn': did you mean"
            " 'fasterrcnn_resnet50_fpn'"
        ),
    ):
        assemble(row("fasterrcnn_resnet51_fpn"))


def timm_row(model: str, **arguments: object) -> ModelEntry:
    return ModelEntry(
        name="pair",
        source="tests",
        title="pair",
        classes=3,
        dataset="shapes",
        backbone=Component(name=f"timm.{model}", **arguments),
        neck=Component(name="fpn", channels=32),
        detector=Component(name="faster_rcnn"),
        conventions=load_manifests().conventions["maskrcnn_benchmark"],
    )


@pytest.mark.parametrize(
    "model",
    [
        "resnet10t",
        "resnet50",
        "mobilenetv3_small_050",
        "efficientnet_b0",
        "convnext_atto",
        "regnetx_002",
        "hardcorenas_a",
        "swin_tiny_patch4_window7_224",
        "ese_vovnet19b_dw",
        "densenet121",
        "vgg16",
    ],
)
def test_timm_models_are_backbones(model: str) -> None:
    pytest.importorskip("timm", reason="timm is an extra: pip install -e .[timm]")
    arguments = {"img_size": 64} if model.startswith("swin") else {}
    with shapes_only():
        backbone = BACKBONES[f"timm.{model}"](**arguments).eval()
        check_backbone(backbone)
    assert list(backbone.specs) == ["c2", "c3", "c4", "c5"] and [
        spec.stride for spec in backbone.specs.values()
    ] == [4, 8, 16, 32]


def test_a_classifier_takes_the_last_map_and_efficientnet_pytorch_s_names(tmp_path: Path) -> None:
    """A file with the names of efficientnet_pytorch, in the order in which both packages register them, gives
    timm's own logits."""
    timm = pytest.importorskip("timm", reason="timm is an extra: pip install -e .[timm]")
    entry = load_manifests().entry("efficientnet_lite0_imagenet.timm")
    torch.manual_seed(4)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    wide = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    layers = ["_conv_stem", "_bn0", *(f"_blocks.0.{layer}" for layer in wide[2:])]
    layers += [f"_blocks.{block}.{layer}" for block in range(1, 16) for layer in wide]
    layers += ["_conv_head", "_bn1", "_fc"]
    names: list[str] = []
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for layer in layers:
        parts = norm if "_bn" in layer else ("weight", "bias") if layer == "_fc" else ("weight",)
        names += [f"{layer}.{part}" for part in parts]
    torch.save(dict(zip(names, theirs.state_dict().values(), strict=True)), tmp_path / "lite0.pth")
    ours = assemble(entry).eval()
    assert {name: spec.channels for name, spec in ours.backbone.specs.items()} == {"c5": 1280}
    assert load_weights(ours, tmp_path / "lite0.pth", entry.weights[0].format).complete
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-6)
    torch.save(dict(list(theirs.state_dict().items())[:60]), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="has 0 blocks where EfficientNet-B0 and -Lite0 have 16"):
        load_weights(ours, tmp_path / "other.pth", entry.weights[0].format)


def test_detector_on_a_timm_backbone_keeps_the_contract() -> None:
    pytest.importorskip("timm", reason="timm is an extra: pip install -e .[timm]")
    torch.manual_seed(2)
    model = assemble(timm_row("resnet10t", norm="frozen"))
    assert not [name for name, _ in model.backbone.named_parameters() if ".bn" in name]
    check_detector(model, [(64, 96), (60, 70)])


def test_what_timm_cannot_give_is_said() -> None:
    pytest.importorskip("timm", reason="timm is an extra: pip install -e .[timm]")
    with pytest.raises(ManifestError, match="timm has no model 'resnet49': did you mean"):
        assemble(timm_row("resnet49"))
    with pytest.raises(ManifestError, match="norm must be 'batch' or 'frozen'"):
        assemble(timm_row("resnet10t", norm="group"))


def test_peers_and_timm_rows_run_through_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, torchvision's Faster R-CNN and ours on a timm backbone: one runner, times of the same phases,
    real pre-processing."""
    pytest.importorskip("timm", reason="timm is an extra: pip install -e .[timm]")
    from detection_zoo.benchmarks.run.arguments import chosen_rows
    from detection_zoo.benchmarks.run.options import SweepOptions
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.benchmarks.run.sweep import run_sweep
    from detection_zoo.benchmarks.spec import BenchmarkSpec

    monkeypatch.setattr(BenchmarkSpec, "least_passes", 2)
    spec = BenchmarkSpec(
        groups=("inference",), timed_images=2, images=2, time_budget_s=0.1, warm_up_budget_s=0.1
    )
    options = SweepOptions(tmp_path / "runs", isolate=False)
    names = ["mask_rcnn_resnet14_slim_fpn.demo", "mask_rcnn_resnet10t_fpn_slim.timm"]
    rows = [with_value(each, "detections.max_detections", 10) for each in chosen_rows(names)]
    phases = None
    for run in run_sweep(rows, spec, Sources("shapes"), options).runs:
        assert run.status == "finished", run.reason
        phases = phases or set(run.measurements)
        assert (
            set(run.measurements) == phases
            and {"forward_ms", "postprocess_ms", "model_ms", "end_to_end_ms"} <= phases
        )
