"""Checkpoints of Detectron and Detectron.pytorch: every architecture accounted for, real files loaded, broken
ones refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import changed, shared_backbones

from detection_zoo.zoo.build import DETECTORS, assemble
from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnnRules, keypoint_rcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnnRules, mask_rcnn
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.necks import FeaturePyramid
from detection_zoo.zoo.registry import BACKBONES
from detection_zoo.zoo.weights.load import checkpoint_format, load_backbone, load_weights
from detection_zoo.zoo.weights.rename import LoadReport, account

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "detectron_pytorch"
ROWS = [
    row
    for row in load_manifests().entries.values()
    if row.source in ("detectron", "detectron_pytorch")
    and row.published_only is None
    and row.detector is not None
]
Shapes = dict[str, tuple[int, ...]]


def residual_blobs(
    stage: int, blocks: int, before: int, inner: int, out: int, groups: int, norm: str
) -> Shapes:
    """Blobs of one stage, as Detectron names them."""
    found: Shapes = {}
    for block in range(blocks):
        first = before if block == 0 else out
        convs = {"2a": (inner, first, 1, 1), "2b": (inner, inner // groups, 3, 3), "2c": (out, inner, 1, 1)}
        if block == 0:
            convs["1"] = (out, first, 1, 1)
        for branch, shape in convs.items():
            name = f"res{stage}_{block}_branch{branch}"
            found |= {f"{name}_w": shape, f"{name}_{norm}_s": shape[:1], f"{name}_{norm}_b": shape[:1]}
    return found


def body_blobs(
    blocks: tuple[int, ...], groups: int, width: int, norm: str, base: int = 64, last: int = 5
) -> Shapes:
    """Blobs of a ResNet or ResNeXt up to a stage."""
    stem = "conv1_gn" if norm == "gn" else "res_conv1_bn"
    found: Shapes = {"conv1_w": (base, 3, 7, 7), f"{stem}_s": (base,), f"{stem}_b": (base,)}
    for index, stage in enumerate(range(2, last + 1)):
        before = base if index == 0 else base * 2 ** (index + 1)
        found |= residual_blobs(
            stage, blocks[index], before, groups * width * 2**index, base * 4 * 2**index, groups, norm
        )
    return found


def pair(name: str, *shape: int) -> Shapes:
    return {f"{name}_w": shape, f"{name}_b": shape[:1]}


def convolution(name: str, norm: str, *shape: int) -> Shapes:
    return (
        {f"{name}_w": shape, f"{name}_gn_s": shape[:1], f"{name}_gn_b": shape[:1]}
        if norm == "gn"
        else pair(name, *shape)
    )


def pyramid_blobs(
    blocks: tuple[int, ...], norm: str, levels: tuple[int, ...], base: int = 64, channels: int = 256
) -> Shapes:
    found: Shapes = {}
    for stage in levels:
        blob, side = f"res{stage}_{blocks[stage - 2] - 1}_sum", "" if stage == 5 else "_lateral"
        found |= convolution(f"fpn_inner_{blob}{side}", norm, channels, base * 2**stage, 1, 1) | convolution(
            f"fpn_{blob}", norm, channels, channels, 3, 3
        )
    return found


def detector_blobs(row: ModelEntry) -> Shapes:
    """Every blob of a row's pickle, from the architecture's numbers and the names of Detectron."""
    name, kind = row.backbone.name, row.detector.name
    blocks = next(
        blocks
        for depth, blocks in {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}.items()
        if depth in name
    )
    groups, width = {"32x8d": (32, 8), "64x4d": (64, 4)}.get(name.rpartition("_")[2], (1, 64))
    norm = "gn" if row.backbone.arguments["norm"] == "group" else "bn"
    found = body_blobs(blocks, groups, width, norm, last=5 if row.neck or kind != "rpn" else 4)
    if kind == "retinanet":
        found |= (
            pyramid_blobs(blocks, norm, (5, 4, 3))
            | pair("fpn_6", 256, 2048, 3, 3)
            | pair("fpn_7", 256, 256, 3, 3)
        )
        for index in range(4):
            found |= pair(f"retnet_cls_conv_n{index}_fpn3", 256, 256, 3, 3) | pair(
                f"retnet_bbox_conv_n{index}_fpn3", 256, 256, 3, 3
            )
        return (
            found
            | pair("retnet_cls_pred_fpn3", 720, 256, 3, 3)
            | pair("retnet_bbox_pred_fpn3", 36, 256, 3, 3)
        )
    if row.neck:
        found |= pyramid_blobs(blocks, norm, (5, 4, 3, 2))
    end, channels, cells = ("_fpn2", 256, 3) if row.neck else ("", 1024, 15)
    found |= pair(f"conv_rpn{end}", channels, channels, 3, 3) | pair(
        f"rpn_cls_logits{end}", cells, channels, 1, 1
    )
    found |= pair(f"rpn_bbox_pred{end}", 4 * cells, channels, 1, 1)
    if kind == "rpn":
        return found
    classes = row.classes + 1
    hidden = 1024 if row.neck else 2048
    if row.detector.arguments["box_head"] == "2mlp":
        found |= pair("fc6", 1024, 12544) | pair("fc7", 1024, 1024)
    if row.detector.arguments["box_head"] == "xconv1fc":
        found |= pair("fc6", 1024, 12544)
        for index in range(1, 5):
            found |= convolution(f"head_conv{index}", "gn", 256, 256, 3, 3)
    found |= pair("cls_score", classes, hidden) | pair("bbox_pred", 4 * classes, hidden)
    if kind == "mask_rcnn":
        for index in range(1, 5 if row.neck else 1):
            found |= convolution(
                f"_mask_fcn{index}" if norm == "gn" else f"_[mask]_fcn{index}", norm, 256, 256, 3, 3
            )
        found |= pair("conv5_mask", 256 if row.neck else 2048, 256, 2, 2) | pair(
            "mask_fcn_logits", classes, 256, 1, 1
        )
        found["conv5_mask_b"] = (256,)
    if kind == "keypoint_rcnn":
        for index in range(1, 9):
            found |= pair(f"conv_fcn{index}", 512, 256 if index == 1 else 512, 3, 3)
        found |= {"kps_score_lowres_w": (512, 17, 4, 4), "kps_score_lowres_b": (17,)}
    return found


def leftovers(row: ModelEntry, blobs: Shapes) -> Shapes:
    """What a real file holds besides: momenta, biases of the ImageNet file's convolutions, its last layer,
    and fixed kernels."""
    found = {f"{name}_momentum": shape for name, shape in blobs.items() if "_bn_" not in name}
    found |= {
        name.removesuffix("_w") + "_b": shape[:1]
        for name, shape in blobs.items()
        if "_branch" in name and name.endswith("_w")
    }
    found |= {
        "conv1_b": (64,),
        "fc1000_w": (1000, 2048),
        "fc1000_b": (1000,),
        "pred_w": (1000, 2048),
        "pred_b": (1000,),
    }
    if "kps_score_lowres_w" in blobs:
        found |= {"kps_score_w": (17, 17, 4, 4), "kps_score_b": (17,)}
    if (
        row.detector.name == "rpn" and not row.neck
    ):  # the ImageNet file's last stage, which a proposal network without a pyramid does not use
        found |= residual_blobs(5, 3, 1024, 512, 2048, 1, "bn")
    return found


def hollow(shapes: Shapes) -> dict[str, np.ndarray]:
    """Arrays of those shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def account_for(row: ModelEntry, arrays: dict[str, Any], kind: str) -> tuple[LoadReport, int]:
    with shared_backbones():
        state = assemble(row).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    report = account(checkpoint_format(kind).translate(arrays), shapes, row.name)
    return report, sum(tensor.numel() for tensor in state.values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_pickle_of_every_architecture_is_accounted_for(row: ModelEntry) -> None:
    """Nothing missing, nothing left over, and as many numbers in the model as in its blobs."""
    blobs = detector_blobs(row)
    more = leftovers(row, blobs)
    report, numbers = account_for(row, hollow(blobs | more), "detectron_pkl")
    assert report.complete, report.summary()
    assert numbers == sum(int(np.prod(shape)) for shape in blobs.values())
    assert set(report.dropped) == set(more) and len(report.matched) == len(blobs)


@pytest.mark.parametrize("folder", ["e2e_mask_rcnn_R-50-FPN_2x", "e2e_keypoint_rcnn_R-50-FPN_s1x"])
@pytest.mark.parametrize(
    ("file", "kind"), [("checkpoint.json", "detectron_pytorch_pth"), ("checkpoint_pkl.json", "detectron_pkl")]
)
def test_both_recorded_descriptions_fit_their_row(folder: str, file: str, kind: str) -> None:
    described = json.loads((REFERENCE / folder / file).read_text())
    shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in described["tensors"]}
    row = load_manifests().by_config(
        json.loads((REFERENCE / folder / "checkpoint.json").read_text())["config"]
    )
    report, numbers = account_for(row, hollow(shapes), kind)
    assert report.complete, report.summary()
    dropped = {tensor["name"] for tensor in described["tensors"] if tensor.get("loaded") is False}
    assert set(report.dropped) == dropped
    assert numbers == sum(int(np.prod(shape)) for name, shape in shapes.items() if name not in dropped)


def test_the_shared_stage_of_a_c4_mask_model_is_taken_from_the_box_head() -> None:
    names = [f"{head}.res5.{block}.conv1.weight" for head in ("Box_Head", "Mask_Head") for block in range(3)]
    translated = checkpoint_format("detectron_pytorch_pth").translate({name: name for name in names})
    assert set(translated.state.values()) == set(names[:3]) and set(translated.dropped) == set(names[3:])
    own = checkpoint_format("detectron_pytorch_own_mask_stage_pth").translate({name: name for name in names})
    assert own.state["mask.stage.0.conv1.conv.weight"] == "Mask_Head.res5.0.conv1.weight" and not own.dropped


# ---- real files, of a small model ----

SLIM = (1, 1, 1, 1)


def small_mask_model() -> torch.nn.Module:
    backbone = BACKBONES["resnet14_slim"](norm="affine")
    rules, neck = changed(MaskRcnnRules(), mask={"width": 8}), FeaturePyramid(backbone.specs, channels=8)
    return mask_rcnn(backbone, 3, rules, neck=neck, head={"width": 16}).eval()


def small_blobs() -> dict[str, np.ndarray]:
    shapes = body_blobs(SLIM, 1, 16, "bn", base=16) | pyramid_blobs(
        SLIM, "bn", (5, 4, 3, 2), base=16, channels=8
    )
    shapes |= (
        pair("conv_rpn_fpn2", 8, 8, 3, 3)
        | pair("rpn_cls_logits_fpn2", 3, 8, 1, 1)
        | pair("rpn_bbox_pred_fpn2", 12, 8, 1, 1)
    )
    shapes |= (
        pair("fc6", 16, 392) | pair("fc7", 16, 16) | pair("cls_score", 4, 16) | pair("bbox_pred", 16, 16)
    )
    for index in range(1, 5):
        shapes |= pair(f"_[mask]_fcn{index}", 8, 8, 3, 3)
    shapes |= pair("conv5_mask", 8, 8, 2, 2) | pair("mask_fcn_logits", 4, 8, 1, 1)
    draws = np.random.RandomState(0)
    return {name: draws.standard_normal(shape).astype("float32") for name, shape in shapes.items()}


def write_pickle(path: Path, blobs: dict[str, Any], wrapped: bool = True) -> Path:
    path.write_bytes(
        pickle.dumps(
            {"blobs": blobs, "cfg": "MODEL:\n  TYPE: generalized_rcnn\n"} if wrapped else blobs, protocol=2
        )
    )
    return path


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_real_pickle_fills_the_model(wrapped: bool, tmp_path: Path) -> None:
    blobs = small_blobs()
    more = {"res2_0_branch2a_b": np.zeros(16, "float32"), "fc6_w_momentum": np.zeros((16, 392), "float32")}
    model = small_mask_model()
    report = load_weights(
        model, write_pickle(tmp_path / "model_final.pkl", {**blobs, **more}, wrapped), "detectron_pkl"
    )
    assert len(report.matched) == len(blobs) == len(model.state_dict()) and set(report.dropped) == set(more)
    where = {
        "fpn_inner_res5_0_sum_b": "neck.lateral.c5.conv.bias",
        "fpn_res2_0_sum_w": "neck.output.c2.conv.weight",
        "fc6_w": "box.trunk.fc6.weight",
        "res3_0_branch1_bn_s": "backbone.c3.0.shortcut.norm.weight",
        "_[mask]_fcn3_b": "mask.convs.2.conv.bias",
        "bbox_pred_w": "box.predictor.box_deltas.weight",
        "conv5_mask_w": "mask.upsample.weight",
        "rpn_cls_logits_fpn2_b": "rpn.head.objectness.bias",
        "res_conv1_bn_b": "backbone.stem.conv.norm.bias",
    }
    for blob, name in where.items():
        assert torch.equal(model.state_dict()[name], torch.from_numpy(blobs[blob])), blob


class Evil:
    """Something that runs code when an ordinary unpickler reads it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("1 + 1",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cls_score_w": np.zeros((5, 16), "float32"), "cls_score_b": np.zeros(5, "float32")},
            r"cls_score_w|class_logits.weight \[5, 16\] in the file, \[4, 16\]",
        ),
        ({"fc7_w": None}, r"missing from the file: box.trunk.fc7.weight"),
        (
            {"conv_rpn_fpn2_w": np.zeros((8, 8, 1, 1), "float32")},
            r"rpn.head.conv.weight \[8, 8, 1, 1\] in the file, \[8, 8, 3, 3\] in the model",
        ),
        ({"fpn_res9_0_sum_w": np.zeros(1, "float32")}, r"unknown to the model: fpn_res9_0_sum_w"),
        ({"fc6_b": Evil()}, r"refused: the pickle names '(builtins|__builtin__).eval', which could run code"),
        ({"fc6_b": [1.0, 2.0]}, r"has no state dict .*'fc6_b' \(a list\)"),
    ],
)
def test_a_broken_pickle_is_one_clear_error_and_changes_nothing(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    blobs = {name: value for name, value in {**small_blobs(), **change}.items() if value is not None}
    model = small_mask_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(model, write_pickle(tmp_path / "broken.pkl", blobs), "detectron_pkl", row="small.demo")
    assert "broken.pkl" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_files_that_hold_no_blobs_are_refused(tmp_path: Path) -> None:
    for content in ([1, 2], {}):
        path = tmp_path / "other.pkl"
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(CheckpointError, match="has no state dict"):
            load_weights(small_mask_model(), path, "detectron_pkl")


def test_a_real_torch_file_fills_the_model(tmp_path: Path) -> None:
    """The keypoint head's fixed kernel stands in the file and is left out."""
    backbone = BACKBONES["resnet14_slim"](norm="affine")
    model = keypoint_rcnn(
        backbone,
        1,
        neck=FeaturePyramid(backbone.specs, channels=8),
        head={"width": 16},
        rules=changed(KeypointRcnnRules(), keypoint={"convs": 2, "width": 8}),
    ).eval()
    theirs = {
        "Conv_Body.conv_body.res1.conv1.weight": "backbone.stem.conv.conv.weight",
        "Conv_Body.conv_body.res4.0.bn2.bias": "backbone.c4.0.conv2.norm.bias",
        "Conv_Body.conv_body.res5.0.downsample.1.weight": "backbone.c5.0.shortcut.norm.weight",
        "Conv_Body.conv_top.weight": "neck.lateral.c5.conv.weight",
        "Conv_Body.topdown_lateral_modules.2.conv_lateral.bias": "neck.lateral.c2.conv.bias",
        "Conv_Body.posthoc_modules.3.bias": "neck.output.c2.conv.bias",
        "RPN.FPN_RPN_bbox_pred.bias": "rpn.head.deltas.bias",
        "Box_Head.fc2.weight": "box.trunk.fc7.weight",
        "Keypoint_Head.conv_fcn.2.bias": "keypoint.convs.1.conv.bias",
        "Keypoint_Outs.classify.weight": "keypoint.upsample.weight",
    }
    described = json.loads((REFERENCE / "e2e_keypoint_rcnn_R-50-FPN_s1x" / "checkpoint.json").read_text())[
        "tensors"
    ]
    translated = checkpoint_format("detectron_pytorch_pth").translate(
        {tensor["name"]: None for tensor in described}
    )
    assert {name: ours for ours, name in translated.origin.items() if name in theirs} == theirs
    state = {translated.origin[name]: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    state["Keypoint_Outs.upsample.upconv.weight"] = torch.zeros(17, 17, 4, 4)
    torch.save(
        {"step": 3, "train_size": 8, "batch_size": 2, "model": state, "optimizer": {"state": {}}},
        tmp_path / "model_step3.pth",
    )
    report = load_weights(model, tmp_path / "model_step3.pth", "detectron_pytorch_pth")
    assert set(report.dropped) == {"Keypoint_Outs.upsample.upconv.weight"}
    assert torch.equal(model.state_dict()["keypoint.upsample.weight"], state["Keypoint_Outs.classify.weight"])


def test_imagenet_statistics_are_folded_into_scale_and_shift(tmp_path: Path) -> None:
    backbone = BACKBONES["resnet14_slim"](norm="affine")

    class Body(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

    state = {"fc.weight": torch.zeros(10, 8)}
    for name, tensor in backbone.state_dict().items():
        part = name.replace("stem.conv.conv", "conv1").replace("stem.conv.norm", "bn1")
        part = part.replace(".shortcut.conv", ".downsample.0").replace(".shortcut.norm", ".downsample.1")
        for stage in range(2, 6):
            part = part.replace(f"c{stage}.", f"layer{stage - 1}.")
        for index in (1, 2, 3):
            part = part.replace(f"conv{index}.conv", f"conv{index}").replace(
                f"conv{index}.norm", f"bn{index}"
            )
        state[part] = torch.rand_like(tensor) + 0.5
    for name in [name for name in state if "bn" in name or "downsample.1" in name]:
        norm = name.rpartition(".")[0]
        state |= {
            f"{norm}.running_mean": torch.rand_like(state[name]),
            f"{norm}.running_var": torch.rand_like(state[name]) + 0.5,
            f"{norm}.num_batches_tracked": torch.tensor(7),
        }
    torch.save(state, tmp_path / "resnet14_caffe.pth")
    report = load_backbone(Body(), tmp_path / "resnet14_caffe.pth", "caffe_resnet_pth")
    assert report.dropped["fc.weight"] == "the classifier's last layer"
    weight, bias, mean, var = (
        state[f"layer2.0.bn2.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    torch.testing.assert_close(backbone.c3[0].conv2.norm.weight, weight / torch.sqrt(var + 1e-5))
    torch.testing.assert_close(backbone.c3[0].conv2.norm.bias, bias - mean * weight / torch.sqrt(var + 1e-5))
    assert torch.equal(backbone.c3[0].conv2.conv.weight, state["layer2.0.conv2.weight"])
    del state["layer2.0.bn2.running_mean"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(
        CheckpointError, match="has layer2.0.bn2.running_var, and not layer2.0.bn2.running_mean"
    ):
        load_backbone(Body(), tmp_path / "cut.pth", "caffe_resnet_pth")


def test_the_families_are_imported() -> None:
    assert {"rpn", "retinanet", "mask_rcnn", "keypoint_rcnn", "faster_rcnn"} <= set(DETECTORS)
