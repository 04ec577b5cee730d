"""HarDNet, its SSD and RFB detectors: recorded outputs of the originals, the paper's channel rule, every file
name of the checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from detection_zoo.zoo.backbones.hardnet import HarmonicBlock, hardnet68, hardnet85, harmonic_links
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.parity.base import parity
from detection_zoo.zoo.parity.standin import standin_arrays
from detection_zoo.zoo.weights.load import checkpoint_format, load_arrays, load_backbone, load_weights
from detection_zoo.zoo.weights.rename import account

pytestmark = pytest.mark.usefixtures("kept_memory", "kept_fills")

FOLDERS = Path(__file__).resolve().parents[1] / "reference" / "hardnet"
SKIPPED = {
    "transform.largest_deviation_from_rounded_float_bilinear",
    "schedule.coco_resumed_at_100",
    "coco_result",
    "voc_eval",
}


@pytest.mark.parametrize(
    "folder", ["steps", "imagenet_hardnet68", "ssd300_hardnet68_voc", "ssd300_vgg16_voc"]
)
def test_every_recorded_output_is_equal(folder: str) -> None:
    report = parity(FOLDERS / folder)
    assert report.ok, "\n".join(str(line) for line in report.lines if line.verdict != "ok")
    assert {line.name for line in report.lines if line.verdict == "skipped"} == (
        SKIPPED if folder == "steps" else set()
    )


def test_a_changed_record_is_found(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS / "imagenet_hardnet68", tmp_path / "imagenet_hardnet68"))
    with np.load(folder / "outputs.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["b.base.6|samples"] = changed["b.base.6|samples"] * np.float32(1.00001)
    np.savez(folder / "outputs.npz", **changed)
    assert [line.name for line in parity(folder).lines if line.verdict != "ok"] == ["b.base.6"]


def test_a_changed_step_is_found(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS / "steps", tmp_path / "steps"))
    steps = json.loads((folder / "steps.json").read_text())
    for name in [name for name in steps if name.startswith(("loss_", "detect_"))]:
        del steps[name]  # computed for long, and compared above
    steps["initialisation"] = {}
    steps["augment"]["runs"][2]["draws"][3][2] += 1
    steps["schedule"]["voc"]["lr"]["77550"] = 0.004
    (folder / "steps.json").write_text(json.dumps(steps))
    assert [line.name for line in parity(folder).lines if line.verdict == "differs"] == [
        "augment.2.draws",
        "schedule.voc.lr",
    ]


def test_links_and_widths_follow_the_paper() -> None:
    assert [harmonic_links(layer) for layer in range(1, 9)] == [
        [0],
        [1, 0],
        [2],
        [3, 2, 0],
        [4],
        [5, 4],
        [6],
        [7, 6, 4, 0],
    ]
    block = HarmonicBlock(
        128, 16, 1.7, 16, separable=False, activation="relu"
    )  # HarDNet68's second block, as the authors' files have it
    shapes = [(layer.conv.in_channels, layer.conv.out_channels) for layer in block.layers]
    assert shapes == [
        (128, 16),
        (144, 28),
        (28, 16),
        (172, 46),
        (46, 16),
        (62, 28),
        (28, 16),
        (218, 78),
        (78, 16),
        (94, 28),
        (28, 16),
        (122, 46),
        (46, 16),
        (62, 28),
        (28, 16),
        (296, 134),
    ]
    assert block.out_channels == 262


def test_detector_and_classifier_forms_differ_where_the_authors_do() -> None:
    detector, classifier = hardnet68(form="detector"), hardnet68(form="classifier")
    assert isinstance(detector.stages[0].relu, torch.nn.ReLU) and isinstance(
        classifier.stages[0].relu, torch.nn.ReLU6
    )
    assert (detector.stages[5].ceil_mode, detector.stages[10].ceil_mode, classifier.stages[5].ceil_mode) == (
        True,
        False,
        False,
    )
    maps = detector(torch.zeros(1, 3, 300, 300))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "c3": (320, 38, 38),
        "c4": (640, 19, 19),
    }
    assert {name: (s.channels, s.stride) for name, s in classifier.specs.items()} == {
        "c2": (128, 4),
        "c3": (320, 8),
        "c4": (640, 16),
        "c5": (1024, 32),
    }
    assert [
        build_model(f"hardnet{size}_imagenet.hardnet", device="meta").dropout.p
        for size in ("68", "85", "39ds", "68ds")
    ] == [0.1, 0.2, 0.05, 0.05]
    assert hardnet85(bridge=False).bridge is None and hardnet85().bridge is not None


# ---- names and shapes of the files that no recorded folder holds, written out from the authors' code

WIDTHS = {  # growth -> output widths by the number of links of a layer
    24: (24, 40, 70, 118, 200),
    28: (28, 48, 80, 138, 234),
    36: (36, 62, 104, 176, 300),
    48: (48, 82, 138, 236, 400),
    256: (256, 436, 740),
}
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def norm(name: str, channels: int) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def block(
    name: str, out: int, into: int, kernel: tuple[int, int] = (1, 1), norm_name: str = "norm"
) -> Shapes:
    yield f"{name}.conv.weight", (out, into, *kernel)
    yield from norm(f"{name}.{norm_name}", out)


def dense(name: str, into: int, growth: int, layers: int, expected: int) -> Shapes:
    widths = [into]
    for layer in range(1, layers + 1):
        links = [layer - 2**i for i in range(5) if layer % 2**i == 0]
        widths.append(WIDTHS[growth][len(links) - 1])
        yield from block(
            f"{name}.layers.{layer - 1}", widths[layer], sum(widths[link] for link in links), (3, 3)
        )
    assert sum(widths[1::2]) + widths[-1] == expected


def hardnet85_body() -> Shapes:
    yield from block("base.0", 48, 3, (3, 3))
    yield from block("base.1", 96, 48, (3, 3))
    for index, into, growth, layers, joined, out in (
        (3, 96, 24, 8, 214, 192),
        (6, 192, 24, 16, 392, 256),
        (8, 256, 28, 16, 458, 320),
        (11, 320, 36, 16, 588, 480),
        (13, 480, 48, 16, 784, 720),
    ):
        yield from dense(f"base.{index}", into, growth, layers, joined)
        yield from block(f"base.{index + 1}", out, joined)


def heads(channels: list[int], per_cell: list[int], classes: int) -> Shapes:
    for level, (into, boxes) in enumerate(zip(channels, per_cell, strict=True)):
        for kind, values in (("loc", 4), ("conf", classes)):
            yield f"{kind}.{level}.weight", (boxes * values, into, 3, 3)
            yield f"{kind}.{level}.bias", (boxes * values,)


def ssd512_hardnet85() -> Shapes:
    yield from hardnet85_body()
    yield from block("bridge.1", 960, 720, (3, 3))
    yield from block("bridge.2", 720, 960)
    into = 720
    for index, (out, kernel) in enumerate(
        [(256, 1), (512, 3), (128, 1), (256, 3), (128, 1), (256, 3), (128, 1), (256, 3), (128, 1), (256, 4)]
    ):
        yield f"extras.{index}.weight", (out, into, kernel, kernel)
        yield f"extras.{index}.bias", (out,)
        into = out
    yield "L2Norm.weight", (320,)
    yield from heads([320, 720, 512, 256, 256, 256, 256], [6, 6, 6, 6, 6, 4, 4], 81)


def rfb_block(name: str, into: int, out: int) -> Shapes:
    inter = into // 8
    middle = inter // 2 * 3
    for branch, layers in enumerate(
        (
            [(inter, into, 1), (2 * inter, inter, 3), (2 * inter, 2 * inter, 3)],
            [(inter, into, 1), (middle, inter, 3), (2 * inter, middle, 3), (2 * inter, 2 * inter, 3)],
        )
    ):
        for index, (width, before, kernel) in enumerate(layers):
            yield from block(f"{name}.branch{branch}.{index}", width, before, (kernel, kernel), "bn")
    yield from block(f"{name}.ConvLinear", out, 4 * inter, norm_name="bn")
    yield from block(f"{name}.shortcut", out, into, norm_name="bn")


def rfb512_hardnet85() -> Shapes:
    yield from hardnet85_body()
    for branch, layers in enumerate(
        (
            [(80, 320, (1, 1)), (80, 80, (3, 3))],
            [(80, 320, (1, 1)), (80, 80, (3, 1)), (80, 80, (3, 3))],
            [(80, 320, (1, 1)), (80, 80, (1, 3)), (80, 80, (3, 3))],
            [(40, 320, (1, 1)), (60, 40, (1, 3)), (80, 60, (3, 1)), (80, 80, (3, 3))],
        )
    ):
        for index, (out, into, kernel) in enumerate(layers):
            yield from block(f"Norm.branch{branch}.{index}", out, into, kernel, "bn")
    yield from block("Norm.ConvLinear", 512, 320, norm_name="bn")
    yield from block("Norm.shortcut", 512, 320, norm_name="bn")
    for index, (into, out) in enumerate([(720, 1024), (1024, 512), (512, 256), (256, 256), (256, 256)]):
        yield from rfb_block(f"extras.{index}", into, out)
    yield from block("extras.5", 128, 256, norm_name="bn")
    yield from block("extras.6", 256, 128, (4, 4), "bn")
    yield from heads([512, 1024, 512, 256, 256, 256, 256], [6, 6, 6, 6, 6, 4, 4], 81)


def imagenet_hardnet85() -> Shapes:
    yield from hardnet85_body()
    yield from dense("base.16", 720, 256, 4, 1252)
    yield from block("base.18", 1280, 1252)
    yield "base.19.3.weight", (1000, 1280)
    yield "base.19.3.bias", (1000,)


def depthwise(name: str, channels: int) -> Shapes:
    yield f"{name}.dwconv.weight", (channels, 1, 3, 3)
    yield from norm(f"{name}.norm", channels)


def imagenet_hardnet39ds() -> Shapes:
    yield from block("base.0", 24, 3, (3, 3))
    yield from block("base.1", 48, 24)
    yield from depthwise("base.2", 48)
    into = 48
    widths = {16: (16, 26, 40), 20: (20, 32, 52, 82, 132), 64: (64, 102, 164, 262), 160: (160, 256, 410)}
    for index, growth, layers, joined, out, pool in (
        (3, 16, 4, 72, 96, 5),
        (6, 20, 16, 292, 320, 8),
        (9, 64, 8, 518, 640, 11),
        (12, 160, 4, 730, 1024, None),
    ):
        outputs = [into]
        for layer in range(1, layers + 1):
            links = [layer - 2**i for i in range(5) if layer % 2**i == 0]
            outputs.append(widths[growth][len(links) - 1])
            yield from block(
                f"base.{index}.layers.{layer - 1}.layer1",
                outputs[layer],
                sum(outputs[link] for link in links),
            )
            yield from depthwise(f"base.{index}.layers.{layer - 1}.layer2", outputs[layer])
        assert sum(outputs[1::2]) + outputs[-1] == joined
        yield from block(f"base.{index + 1}", out, joined)
        if pool is not None:
            yield from depthwise(f"base.{pool}", out)
        into = out
    yield "base.14.3.weight", (1000, 1024)
    yield "base.14.3.bias", (1000,)


@pytest.mark.parametrize(
    ("row", "shapes", "form"),
    [
        ("ssd512_hardnet85_coco.hardnet", ssd512_hardnet85, "pytorchssd_pth"),
        ("rfb512_hardnet85_coco.hardnet", rfb512_hardnet85, "pytorchssd_pth"),
        ("hardnet85_imagenet.hardnet", imagenet_hardnet85, "hardnet_imagenet_pth"),
        ("hardnet39ds_imagenet.hardnet", imagenet_hardnet39ds, "hardnet_imagenet_pth"),
    ],
)
def test_every_name_of_an_unrecorded_file_has_its_place(row: str, shapes: object, form: str) -> None:
    model = build_model(row, device="meta")
    arrays = {f"module.{name}": np.broadcast_to(np.float32(0), shape) for name, shape in shapes()}
    needed = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    report = account(checkpoint_format(form).translate(arrays), needed, row)
    assert report.complete and len(report.matched) == len(arrays) and not report.dropped


# ---- files: prefix, counters, backbone alone, the wrong file


def tensors(folder: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("module."): torch.as_tensor(array)
        for name, array in standin_arrays(FOLDERS / folder).items()
    }


@pytest.fixture(scope="module")
def vgg_file() -> dict[str, torch.Tensor]:
    return tensors("ssd300_vgg16_voc")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_load_with_and_without_the_prefix(
    vgg_file: dict[str, torch.Tensor], prefix: str, tmp_path: Path
) -> None:
    torch.save({prefix + name: tensor for name, tensor in vgg_file.items()}, tmp_path / "file.pth")
    model = build_model("ssd300_vgg16_voc.hardnet")
    assert load_weights(model, tmp_path / "file.pth", "pytorchssd_pth").complete
    torch.testing.assert_close(model.box_head[3].weight, vgg_file["loc.3.weight"], rtol=0, atol=0)


def test_files_of_old_pytorch_have_no_counters() -> None:
    old = {
        name: tensor
        for name, tensor in tensors("imagenet_hardnet68").items()
        if not name.endswith("num_batches_tracked")
    }
    report = load_arrays(
        build_model("hardnet68_imagenet.hardnet"), old, "hardnet_imagenet_pth", where="old file"
    )
    assert report.complete and len(report.matched) == len(old) and report.defaulted


def test_a_base_file_fills_the_backbone_alone(vgg_file: dict[str, torch.Tensor], tmp_path: Path) -> None:
    base = {
        name.removeprefix("base."): tensor for name, tensor in vgg_file.items() if name.startswith("base.")
    }
    torch.save(base, tmp_path / "vgg16_reducedfc.pth")
    model = build_model("ssd300_vgg16_voc.hardnet")
    before = model.box_head[0].weight.detach().clone()
    load_backbone(model, tmp_path / "vgg16_reducedfc.pth", "pytorchssd_base_pth")
    torch.testing.assert_close(model.backbone.features[31].weight, vgg_file["base.31.weight"], rtol=0, atol=0)
    torch.testing.assert_close(model.box_head[0].weight, before, rtol=0, atol=0)


def test_a_file_of_other_classes_is_refused_and_changes_nothing(vgg_file: dict[str, torch.Tensor]) -> None:
    model = build_model("ssd300_vgg16_coco.hardnet", "random")
    before = model.class_head[0].weight.detach().clone()
    with pytest.raises(
        CheckpointError,
        match=r"class_head\.0\.weight \[126, 512, 3, 3\] in the file, \[486, 512, 3, 3\] in the model",
    ):
        load_arrays(model, vgg_file, "pytorchssd_pth", where="VOC file")
    torch.testing.assert_close(model.class_head[0].weight, before, rtol=0, atol=0)
