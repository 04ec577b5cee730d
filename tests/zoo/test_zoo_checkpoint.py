"""Checkpoints: names of every source file, the account of every tensor, and files that do not fit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detection_zoo.zoo.build import WithoutRandomFills, assemble, build_model
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.standin import (
    fill,
    read_checkpoint_description,
    standin_arrays,
    write_standin_checkpoint,
)
from detection_zoo.zoo.registry import BACKBONES
from detection_zoo.zoo.weights.load import checkpoint_format, load_arrays, load_backbone, load_weights
from detection_zoo.zoo.weights.rename import plain_names, rename, translate_names

FOLDERS = Path(__file__).resolve().parents[1] / "reference" / "maskrcnn_benchmark"
FORMAT = "maskrcnn_benchmark_pth"
RETINA, C4 = "retinanet_resnet50_fpn_1x.maskrcnn_benchmark", "faster_rcnn_resnet50_c4_1x.maskrcnn_benchmark"


def arrays(folder: str) -> dict[str, np.ndarray]:
    return standin_arrays(FOLDERS / folder)


def filled(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A model whose matrices and biases repeat the same few random numbers, matrices as large as
    torchvision's start."""
    few = torch.randn(100_003, generator=torch.Generator().manual_seed(1))
    with WithoutRandomFills():
        model = make().eval()
    for place, (name, tensor) in enumerate(model.named_parameters()):
        if tensor.dim() > 1 or name.endswith("bias"):
            start = 7919 * place % len(few)  # each tensor has others
            numbers = few.repeat(2 + tensor.numel() // len(few))[start:][: tensor.numel()]
            size = (2 * tensor.shape[1] / tensor.numel()) ** 0.5 if tensor.dim() > 1 else 0.01
            tensor.data = numbers.view_as(tensor).mul_(size)
    return model


@pytest.fixture(scope="module")
def retina() -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    return filled(lambda: assemble(load_manifests().entry(RETINA))), arrays("retinanet_R-50-FPN_1x")


# ---- stand-ins ----


def test_fills_follow_from_the_name_alone() -> None:
    entry = {
        "name": "module.rpn.head.conv.bias",
        "shape": [3],
        "dtype": "float32",
        "fill": "shift",
        "gain": 2.0,
    }
    # numpy.random.RandomState(zlib.crc32(b"module.rpn.head.conv.bias")): three normals, times 0.1, times the
    # gain
    assert fill(entry).tolist() == pytest.approx(
        (0.2 * np.random.RandomState(3_821_637_783).standard_normal(3)).tolist()
    )
    assert (fill({**entry, "name": "x", "fill_name": entry["name"]}) == fill(entry)).all()
    assert fill({**entry, "fill": "zeros"}).tolist() == [0, 0, 0]
    with pytest.raises(CheckpointError, match="unknown fill 'ones'"):
        fill({**entry, "fill": "ones"})


def test_a_written_stand_in_is_loaded_like_a_download(
    tmp_path: Path, retina: tuple[torch.nn.Module, dict[str, np.ndarray]]
) -> None:
    path = write_standin_checkpoint(FOLDERS / "retinanet_R-50-FPN_1x", tmp_path / "retina.pth")
    assert list(torch.load(path, weights_only=True)) == ["model"] and not list(tmp_path.glob("*.part"))
    model = build_model(RETINA, path)
    wanted = retina[1]["module.rpn.head.cls_tower.2.weight"]
    assert (model.head.class_tower[1].conv.weight.detach().numpy() == wanted).all()
    report = load_arrays(model, retina[1], FORMAT, where="stand-in")
    assert report.complete and len(report.matched) == 301 and len(report.dropped) == 5
    bare = write_standin_checkpoint(FOLDERS / "imagenet_vovnet39", tmp_path / "vovnet.pth")
    assert "stem.stem_1/conv.weight" in torch.load(bare, weights_only=True)


# ---- names ----


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.body.layer3.5.bn2.running_var", "backbone.c4.5.conv2.norm.running_var"),
        ("backbone.body.layer1.0.downsample.1.weight", "backbone.c2.0.shortcut.norm.weight"),
        ("backbone.body.stage5.OSA5_2.layers.3.OSA5_2_3/conv.weight", "backbone.c5.1.layers.3.conv.weight"),
        ("backbone.body.stage2.OSA2_1.concat.OSA2_1_concat/norm.bias", "backbone.c2.0.concat.norm.bias"),
        ("backbone.fpn.fpn_inner4.weight", "neck.lateral.c5.conv.weight"),
        ("backbone.fpn.fpn_layer1.1.bias", "neck.output.c2.norm.bias"),  # with GroupNorm
        ("backbone.fpn.top_blocks.p7.bias", "neck.extra.p7.bias"),
        ("roi_heads.box.feature_extractor.xconvs.9.weight", "box.trunk.convs.3.conv.weight"),
        ("roi_heads.box.feature_extractor.xconvs.1.weight", "box.trunk.convs.0.norm.weight"),
        ("roi_heads.box.feature_extractor.head.layer4.2.conv3.weight", "box.trunk.stage.2.conv3.conv.weight"),
        ("roi_heads.mask.feature_extractor.mask_fcn3.0.weight", "mask.convs.2.conv.weight"),
        ("roi_heads.mask.predictor.conv5_mask.bias", "mask.upsample.bias"),
        ("roi_heads.keypoint.feature_extractor.conv_fcn8.bias", "keypoint.convs.7.conv.bias"),
    ],
)
def test_names_of_maskrcnn_benchmark(theirs: str, ours: str) -> None:
    context = {"roi_heads.box.feature_extractor.xconvs.1.weight": 0, theirs: 1}
    wrapped = {f"module.{name}": value for name, value in context.items()}
    assert checkpoint_format("maskrcnn_benchmark_pth").translate(wrapped).state[ours] == context[theirs]


def test_the_wrapper_prefix_goes_only_where_all_names_have_it() -> None:
    assert plain_names({"module.a": 1, "module.b": 2}) == ({"a": 1, "b": 2}, {})
    assert plain_names({"module.a": 1, "b": 2}) == ({"module.a": 1, "b": 2}, {})
    assert rename("layer1.conv", ((r"layer(\d)", r"c\1"), (r"c1", "first"))) == "first.conv"
    with pytest.raises(CheckpointError, match="both a1 and a2 of the file are a of the model"):
        translate_names({"a1": 1, "a2": 2}, ((r"\d", ""),))


def test_a_module_that_a_file_holds_twice_takes_the_later_values() -> None:
    """C4 Mask R-CNN: the mask head is the box head's last stage, and a state dict names both."""
    from detection_zoo.zoo.weights.formats.maskrcnn_benchmark import _detector

    box, mask = (
        f"roi_heads.{branch}.feature_extractor.head.layer4.0.conv1.weight" for branch in ("box", "mask")
    )
    found = _detector({box: 1, mask: 2})
    assert found.state == {"box.trunk.stage.0.conv1.conv.weight": 2} and found.aliases == {
        "box.trunk.stage.0.conv1.conv.weight": box
    }
    assert found.dropped == {box: f"the same module as {mask}, which comes later in the file"}


# ---- the account ----


def test_missing_extra_and_misshapen_tensors_are_named_and_nothing_is_loaded(
    retina: tuple[torch.nn.Module, dict[str, np.ndarray]],
) -> None:
    model, good = retina
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    short = {name: array for name, array in good.items() if not name.endswith("fpn_inner3.bias")}
    with pytest.raises(
        CheckpointError,
        match=r"300 matched, 1 missing.*\n.*missing from the file: neck\.lateral\.c4\.conv\.bias",
    ):
        load_arrays(model, short, FORMAT, where="short")
    with pytest.raises(
        CheckpointError, match=r"1 unexpected.*\n.*unknown to the model: rpn\.head\.extra\.weight"
    ):
        load_arrays(model, good | {"module.rpn.head.extra.weight": np.zeros(3)}, FORMAT, where="long")
    with pytest.raises(
        CheckpointError,
        match=r"head\.box_deltas\.weight \[36, 256, 1, 1\] in the file, \[36, 256, 3, 3\] in the model",
    ):
        load_arrays(
            model,
            good | {"module.rpn.head.bbox_pred.weight": np.zeros((36, 256, 1, 1))},
            FORMAT,
            where="thin",
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_norm_layers_under_another_word_are_an_error_and_not_left_at_their_start() -> None:
    model = build_model("faster_rcnn_vovnet39_fpn_2x.vovnet", device="meta")
    described = read_checkpoint_description(FOLDERS / "e2e_faster_rcnn_V_39_FPN_2x")
    renamed = {
        tensor["name"].replace("/norm.", "/bn."): np.broadcast_to(np.float32(0), tensor["shape"])
        for tensor in described["tensors"]
    }
    with pytest.raises(CheckpointError, match="156 missing, 156 unexpected"):
        load_arrays(model, renamed, FORMAT, where="the successor's file")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    model = Classifier(BACKBONES["resnet14_slim"](), 2)
    whole = tmp_path / "whole.pth"
    torch.save({"model": model.state_dict()}, whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.pth: refused: malformed zip file"):
        load_weights(model, cut, FORMAT)

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    evil = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, evil)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_weights(model, evil, FORMAT)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"blobs": Evil()}))
    with pytest.raises(CheckpointError, match=r"evil\.pkl"):
        load_weights(model, tmp_path / "evil.pkl", "detectron_imagenet_pkl")
    assert not (tmp_path / "executed").exists()
    torch.save({"model": {"weight": [1, 2]}}, whole)
    with pytest.raises(CheckpointError, match="has no state dict"):
        load_weights(model, whole, FORMAT)
    with pytest.raises(
        CheckpointError,
        match="unknown checkpoint format 'maskrcnn_pth': did you mean 'maskrcnn_benchmark_pth'",
    ):
        load_weights(model, whole, "maskrcnn_pth")


# ---- ImageNet files ----


def test_a_classifiers_file_fills_the_detectors_backbone_and_nothing_else(tmp_path: Path) -> None:
    path = write_standin_checkpoint(FOLDERS / "imagenet_vovnet39", tmp_path / "vovnet39.pth")
    model = filled(lambda: assemble(load_manifests().entry("mask_rcnn_vovnet39_fpn_2x.vovnet")))
    untouched = model.box.trunk.fc6.weight.detach().clone()
    report = load_backbone(model, path, "vovnet_imagenet_pth")
    assert (
        len(report.matched) == 195 and not report.missing
    )  # all of the body, as the source's rule takes them
    assert set(report.dropped.values()) == {
        "the classifier's last layer",
        "a counter of training, which frozen norms do not keep",
    }
    assert torch.equal(model.box.trunk.fc6.weight, untouched)
    with pytest.raises(CheckpointError, match="missing"):
        deeper = build_model("mask_rcnn_vovnet57_fpn_2x.vovnet", device="meta")
        load_backbone(deeper, path, "vovnet_imagenet_pth")


def caffe2_blobs(model: Classifier) -> dict[str, np.ndarray]:
    """A ResNet-50 classifier's tensors under Caffe2's names, with what such files hold besides."""
    names = {
        "stem.conv.conv.weight": "conv1_w",
        "stem.conv.norm.weight": "res_conv1_bn_s",
        "stem.conv.norm.bias": "res_conv1_bn_b",
    }
    blobs: dict[str, np.ndarray] = {
        "conv1_b": np.zeros(64),
        "fc1000_w": model.fc.weight.detach().numpy(),
        "fc1000_b": model.fc.bias.detach().numpy(),
    }
    for name, tensor in model.backbone.state_dict().items():
        parts = name.split(".")
        if name not in names and parts[0] != "stem":
            branch = "branch1" if parts[2] == "shortcut" else f"branch2{'abc'[int(parts[2][-1]) - 1]}"
            suffix = {"conv.weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}[".".join(parts[3:])]
            names[name] = f"res{parts[0][1]}_{parts[1]}_{branch}_{suffix}"
        blobs[names[name]] = tensor.numpy()
    return blobs | {"res2_0_branch2a_b": np.zeros(64), "fc1000_w_momentum": np.zeros(3)}


def test_caffe2_files_leave_statistics_at_their_start_and_reach_a_c4_head(tmp_path: Path) -> None:
    blobs = caffe2_blobs(filled(lambda: Classifier(BACKBONES["resnet50"](norm="affine"), 1000)))
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    model = filled(lambda: assemble(load_manifests().entry(C4)))
    with torch.no_grad():
        model.box.trunk.stage[2].conv3.conv.weight.zero_()  # it had the numbers of the file
    report = load_backbone(model, path, "detectron_imagenet_pkl")
    assert (
        len(report.matched) == 159 and len(report.defaulted) == 106
    )  # 53 convolutions; mean 0 and variance 1 of 53 norms stay
    assert (model.box.trunk.stage[2].conv3.conv.weight.detach().numpy() == blobs["res5_2_branch2c_w"]).all()
    assert (model.backbone.stem.conv.norm.weight.numpy() == blobs["res_conv1_bn_s"]).all()
    assert model.backbone.stem.conv.norm.running_var.unique().tolist() == [1.0]


def test_torchvisions_resnet_files_fit(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = Classifier(BACKBONES["resnet18"](norm="batch", freeze_at=0), 1000).eval()
    assert load_weights(ours, tmp_path / "resnet18.pth", "torchvision_resnet_pth").complete
    images = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    old = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "old.pth")
    assert load_weights(ours, tmp_path / "old.pth", "torchvision_resnet_pth").complete


@pytest.mark.parametrize("name", ["resnext101_32x8d", "resnet50"])
def test_bottlenecks_compute_what_torchvisions_do(name: str, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = filled(lambda: getattr(torchvision.models, name)(weights=None))
    with WithoutRandomFills():
        ours = Classifier(BACKBONES[name](norm="batch", freeze_at=0, stride_in_1x1=False), 1000).eval()
    load_arrays(ours, theirs.state_dict(), "torchvision_resnet_pth", where="torchvision")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_a_description_that_is_missing_or_cut_short(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: no such file"):
        standin_arrays(tmp_path)
    (tmp_path / "checkpoint.json").write_text('{"tensors": [')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        standin_arrays(tmp_path)
    (tmp_path / "checkpoint.json").write_text(json.dumps({"names": []}))
    with pytest.raises(CheckpointError, match="has no list 'tensors'"):
        standin_arrays(tmp_path)
