"""Half precision that is half: types of maps under autocast, memory of a training step, boxes in float32."""

from __future__ import annotations

import pytest
import torch

from detection_zoo.zoo.build import assemble, create_entry, create_model
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder
from detection_zoo.zoo.parts.norm import ConvNorm, FrozenAffine, FrozenNorm
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.registry import DETECTORS
from detection_zoo.zoo.settings import with_value

pytestmark = pytest.mark.usefixtures("kept_memory")


@pytest.mark.parametrize("norm", ["frozen", "affine"])
def test_maps_behind_a_frozen_norm_are_half_under_autocast(norm: str) -> None:
    model = create_model("resnet14_slim", "faster_rcnn", 3, backbone_options={"norm": norm})
    types = []
    for module in model.modules():
        if isinstance(module, FrozenNorm | FrozenAffine | ConvNorm):
            module.register_forward_hook(lambda module, given, result: types.append(result.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model.features(torch.randn(1, 3, 64, 64))
    assert len(types) > 20 and set(types) == {torch.bfloat16}


def test_scale_and_shift_are_computed_in_float32() -> None:
    """In half precision throughout, variance + eps would lose eps, and the product many digits."""
    norm = FrozenNorm(4, eps=1e-5)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(4) + 0.1)
    expected = norm(torch.ones(1, 4, 1, 1)).flatten()
    scale, shift = norm.to(torch.bfloat16).scale_and_shift()
    assert scale.dtype == shift.dtype == torch.float32
    torch.testing.assert_close(scale + shift, expected, rtol=0.02, atol=0.02)


def saved_bytes(model: torch.nn.Module, half: bool, size: tuple[int, int]) -> int:
    """Bytes that the losses of two images keep for their gradients, without weights and their copies in half
    precision."""
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    shapes = {tuple(one.shape) for one in model.parameters()}
    weights = shapes | {shape[::-1] for shape in shapes}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # held, so that no other tensor gets its address
        if storage.data_ptr() not in own and tuple(tensor.shape) not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    boxes = torch.tensor([[10.0, 10, 60, 70], [50, 30, 120, 90]])
    outlines = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
    points = torch.cat([(boxes[:, None, :2] + 15).expand(2, 17, 2), torch.full((2, 17, 1), 2.0)], dim=2)
    labels = torch.tensor([0, model.num_classes - 1])
    targets = [Target(boxes, labels, polygons=outlines, keypoints=points) for _ in range(2)]
    torch.manual_seed(0)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        losses = model(torch.randn(2, 3, *size), torch.tensor([size] * 2), targets)
    assert losses
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("detector", list(DETECTORS))
def test_a_training_step_in_half_precision_keeps_half_the_bytes(detector: str) -> None:
    torch.manual_seed(0)
    classes = 1 if "keypoint" in detector else 3
    entry = create_entry("resnet50", detector, classes, backbone_options={"freeze_at": 2})
    if detector == "keypoint_rcnn":
        entry = with_value(entry, "keypoint.samples", 8)
    image, model = entry.conventions.image, assemble(entry).train()
    if hasattr(model, "sampler"):
        model.sampler.pick.count = 32  # boxes of an image
    size = (image.size, image.size) if image.resize == "fixed" else (96, 128)
    whole = saved_bytes(model, False, size)
    assert whole > 10_000_000 and saved_bytes(model, True, size) <= 0.55 * whole


def test_deltas_are_widened_before_they_are_divided() -> None:
    coder, anchors = BoxCoder((10.0, 10.0, 5.0, 5.0)), torch.tensor([[0.0, 0.0, 511.0, 511.0]])
    deltas = torch.tensor([[0.123, -0.3, 0.21, 0.4]], dtype=torch.bfloat16)
    assert torch.equal(coder.decode(deltas, anchors), coder.decode(deltas.float(), anchors))


def test_weights_that_differ_in_x_and_y_are_told_apart() -> None:
    coder, anchors = BoxCoder((1.0, 2.0, 3.0, 4.0)), torch.tensor([[0.0, 0.0, 99.0, 99.0]])
    boxes = torch.tensor([[10.0, 20.0, 79.0, 119.0]])
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes)


def test_anchors_are_laid_once_and_can_be_trained_with() -> None:
    generator = AnchorGenerator([[32.0], [64.0]], (0.5, 1.0), [8, 16])
    maps = [torch.zeros(1, 1, 6, 5), torch.zeros(1, 1, 3, 3)]
    with torch.inference_mode():
        first = generator(maps)
    again = generator(maps)
    assert all(a is b and not a.is_inference() for a, b in zip(first, again, strict=True))
    for width in range(1, 200):
        generator([torch.zeros(1, 1, 1, width)] * 2)
    assert len(generator._laid) <= 64 and torch.equal(generator(maps)[0], first[0])
    with pytest.raises(ValueError, match="anchors are of 2 levels, but there are 1 maps"):
        generator(maps[:1])
