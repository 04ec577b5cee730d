"""The proposal network's convolution: its gradient from few cells equals the gradient of whole maps."""

import pytest
import torch
from torch.profiler import profile

from detection_zoo.zoo.parts.rpn import RpnHead
from detection_zoo.zoo.parts.sparse_gradient import SparseGradientConv2d


def layers(dtype=torch.float64, side=3):
    """The layer and torch's own with the same numbers."""
    torch.manual_seed(0)
    own = SparseGradientConv2d(4, 5, side).to(dtype)
    plain = torch.nn.Conv2d(4, 5, side, padding=side // 2, dtype=dtype)
    plain.load_state_dict(own.state_dict())
    return own, plain


def gradients(layer, x, cells):
    """Output and gradients of a loss that sees `cells` (image, row, column) of the output."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    sum((out[image, :, row, column].sin().sum() for image, row, column in cells), out.sum() * 0).backward()
    return out, x.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "cells",
    [
        [],
        [(0, 0, 0), (1, 5, 8), (1, 5, 8), (0, 2, 4), (0, 2, 5)],
        [(0, y, x) for y in range(6) for x in range(9)],
    ],
    ids=["no cell", "five at corners and beside each other", "every cell of an image"],
)
def test_gradients_equal_those_of_whole_maps(side, layout, cells):
    own, plain = layers(side=side)
    x = torch.randn(2, 4, 6, 9, dtype=torch.float64).contiguous(memory_format=layout)
    for ours, theirs in zip(gradients(own, x, cells), gradients(plain, x, cells), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_only_what_needs_a_gradient_gets_one():
    own, _ = layers()
    own.weight.requires_grad_(False)
    x = torch.randn(1, 4, 6, 9, dtype=torch.float64)
    own(x)[0, 0, 2, 3].backward()  # x needs none
    assert own.weight.grad is None and own.bias.grad.tolist() == [1, 0, 0, 0, 0]


def test_a_loss_that_is_no_number_shows_in_every_gradient_that_it_reaches():
    own, _ = layers()
    out = own(torch.randn(1, 4, 6, 9, dtype=torch.float64))
    (out[0, 0, 2, 3] * float("nan")).backward()
    assert own.weight.grad[0].isnan().all() and own.bias.grad[0].isnan()


def test_half_precision_equals_that_of_whole_maps():
    own, plain = layers(torch.float32)
    x = torch.randn(1, 4, 6, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (gradients(layer, x, [(0, 1, 2), (0, 5, 8)]) for layer in (own, plain))
    assert found[0].dtype == torch.bfloat16 and {part.dtype for part in found[1:]} == {torch.float32}
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_sampled_anchors_cost_no_gradient_of_whole_maps():
    head = RpnHead(8, 3)
    x = torch.randn(1, 8, 32, 48, requires_grad=True)

    def large_convolutions(*, sampled):
        logits, _ = head([x])
        loss = logits[0][0, :, 3, 4].sum() if sampled else logits[0].sum()
        with profile(record_shapes=True) as record:
            loss.backward()
        shapes = [
            event.input_shapes for event in record.events() if event.name == "aten::convolution_backward"
        ]
        return sum(shape[2] == [8, 8, 3, 3] for shape in shapes)

    assert large_convolutions(sampled=True) == 0
    assert large_convolutions(sampled=False) == 1
