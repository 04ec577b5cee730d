"""What makes a training step on a CPU take less time changes no result: fused updates, channels-last maps,
fixed norms within the convolutions of frozen stages."""

import copy

import pytest
import torch
from torch import nn

from detection_zoo.zoo.build import create_model
from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.parts.norm import ConvNorm, FrozenAffine, FrozenNorm
from detection_zoo.zoo.training.recipe import build_optimizer, training_mode

SCHEDULE = Schedule(images_per_batch=4, lr=0.1, weight_decay=0.01, weight_decay_bias=0.01, momentum=0.9)


def plain_sgd(layer):
    return torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)


def update(layer, optimizer, seeds):
    """Updates with gradients in torch's own layout, whatever the parameters have."""
    for seed in seeds:
        for number, parameter in enumerate(layer.parameters()):
            draw = torch.Generator().manual_seed(10 * seed + number)
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


def same(first, second):
    """The last elements of a tensor, fewer than a vector holds, round the product and the sum apart."""
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-7)


def layer(layout):
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3).to(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_updates_equal_torch_s_plain_ones_in_every_layout(layout):
    ours, theirs = layer(layout), layer(layout)
    optimizer = build_optimizer(ours, SCHEDULE)
    assert all(group["fused"] for group in optimizer.param_groups)
    update(ours, optimizer, range(3))
    update(theirs, plain_sgd(theirs), range(3))
    same(ours, theirs)


def test_a_state_saved_in_another_layout_without_fused_updates_goes_on_as_unbroken():
    saved, ours = layer(torch.contiguous_format), layer(torch.channels_last)
    before = plain_sgd(saved)
    update(saved, before, range(2))
    optimizer = build_optimizer(ours, SCHEDULE)
    state = copy.deepcopy(before.state_dict())
    state["param_groups"][0]["lr_factor"] = 1.0
    ours.load_state_dict(saved.state_dict())
    optimizer.load_state_dict(state)
    assert all(group["fused"] for group in optimizer.param_groups)
    update(ours, optimizer, [2])
    update(saved, before, [2])
    same(ours, saved)


def test_maps_of_a_training_on_a_cpu_are_channels_last():
    torch.manual_seed(0)
    model = create_model("resnet14_slim", "faster_rcnn", 3)
    images = torch.randn(1, 3, 64, 96)
    wanted = {name: level.clone() for name, level in model.features(images).items()}
    found = training_mode(model, SCHEDULE).features(images)
    for name, level in found.items():
        assert level.is_contiguous(memory_format=torch.channels_last), name
        torch.testing.assert_close(level, wanted[name], rtol=1e-4, atol=1e-4)


def test_pooled_features_are_flattened_without_a_copy():
    model = training_mode(create_model("resnet14_slim", "faster_rcnn", 3), SCHEDULE)
    copied = []
    model.box.trunk.register_forward_pre_hook(lambda _, given: copied.append(not given[0].is_contiguous()))
    model.box(model.features(torch.randn(1, 3, 64, 96)), [torch.tensor([[4.0, 4.0, 40.0, 30.0]])])
    assert copied == [False]


@pytest.mark.parametrize("kind", ["frozen", "affine"])
@pytest.mark.parametrize("half", [False, True])
def test_frozen_convolutions_take_their_norm_along_in_training(kind, half):
    torch.manual_seed(0)
    block = ConvNorm(3, 5, 3, norm=kind)
    for buffer in block.norm.buffers():
        buffer.copy_(torch.rand(5) + 0.5)
    calls = []
    block.norm.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 8, 9)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        apart = block.eval()(x)
        trained = block.train()(x)
        block.requires_grad_(False)
        assert torch.equal(block.eval()(x), apart) and len(calls) == 3
        folded = block.train()(x)
    assert len(calls) == 3 and not folded.requires_grad and folded.dtype == apart.dtype
    assert torch.equal(trained, apart)
    bound = 3e-2 if half else 1e-5
    torch.testing.assert_close(folded, apart.detach(), rtol=bound, atol=bound)


def test_only_frozen_stages_fold():
    model = create_model("resnet50", "faster_rcnn", 3, backbone_options={"freeze_at": 2}).train()
    called = set()
    for name, module in model.backbone.named_modules():
        if isinstance(module, FrozenNorm | FrozenAffine):
            module.register_forward_hook(lambda *_, name=name: called.add(name.split(".")[0]))
    model.features(torch.randn(1, 3, 64, 64))
    assert called == {"c3", "c4", "c5"}
