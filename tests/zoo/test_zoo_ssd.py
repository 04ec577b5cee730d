"""SSD's parts beyond the recorded cases: degenerate batches, selection, scores and channels, maps of other
backbones, padding of TensorFlow."""

from __future__ import annotations

import math

import pytest
import torch
from contracts import changed
from torch import Tensor, nn
from torch.nn import functional

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.backbones.mobilenet import divisible_by_8, mobilenet_v2
from detection_zoo.zoo.conventions import SSDConventions
from detection_zoo.zoo.detectors.ssd import SSDOutput, SSDRules, select_priors, ssd, two_maps
from detection_zoo.zoo.parts.mobile_convs import SameConv2d, same_padding
from detection_zoo.zoo.parts.multibox import MultiBoxLoss, PriorCoder, match_priors, mine_negatives
from detection_zoo.zoo.parts.priors import prior_table
from detection_zoo.zoo.parts.ssd_pyramid import Heads, L2Norm
from detection_zoo.zoo.records import FeatureSpec, Target

CODER = PriorCoder()
PRIORS = torch.tensor(
    [[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]
)


def test_a_truth_at_exactly_the_threshold_is_positive_and_the_last_of_two_owners_wins() -> None:
    half = torch.tensor([[0.0, 0.0, 0.5, 0.25]])  # IoU 0.5 with the first prior
    matched = match_priors(
        torch.cat([half, torch.tensor([[0.5, 0.5, 1.0, 1.0]])]),
        torch.tensor([4, 2]),
        PRIORS,
        threshold=0.5,
        coder=CODER,
    )
    assert matched.classes.tolist() == [4, 0, 0, 2]
    twins = torch.tensor(
        [[0.0, 0.0, 0.1, 0.1], [0.1, 0.1, 0.2, 0.2]]
    )  # both have the first prior as their best, below the threshold
    assert match_priors(twins, torch.tensor([7, 9]), PRIORS, threshold=0.5, coder=CODER).classes.tolist() == [
        9,
        0,
        0,
        0,
    ]


def test_coding_is_its_own_inverse() -> None:
    boxes = torch.tensor(
        [[0.1, 0.2, 0.4, 0.9], [0.5, 0.0, 1.0, 0.3], [0.2, 0.6, 0.3, 0.7], [0.6, 0.6, 0.9, 1.0]]
    )
    torch.testing.assert_close(CODER.decode(CODER.encode(boxes, PRIORS), PRIORS), boxes)
    offsets = CODER.encode(boxes[:1], PRIORS[:1])[0]  # by hand: centres (0.25, 0.55), sides (0.3, 0.7)
    torch.testing.assert_close(
        offsets, torch.tensor([0.0, 0.3 / 0.05, math.log(0.6) / 0.2, math.log(1.4) / 0.2])
    )


def test_a_batch_without_any_object_has_a_loss_of_zero_and_finite_gradients() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    losses = MultiBoxLoss(CODER)(
        torch.randn(2, 4, 4), logits, PRIORS, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    )
    sum(losses.values()).backward()
    assert [value.item() for value in losses.values()] == [0.0, 0.0] and torch.isfinite(logits.grad).all()


def test_negatives_are_the_hardest_of_each_image_and_never_all_priors() -> None:
    hardness = torch.tensor([[9.0, 1.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    positive = torch.tensor([[True, False, False, False], [False, False, False, False]])
    assert mine_negatives(hardness, positive, negatives=2).tolist() == [
        [False, False, True, True],
        [False] * 4,
    ]
    assert int(mine_negatives(hardness, positive, negatives=50)[0].sum()) == 3  # at most P - 1


def test_loss_by_hand() -> None:
    """One object on the first prior, exactly; its class at logit log 3 against 0: probability 3/4 (two
    classes). One negative at probability 1/2."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [5.0, 0.0], [5.0, 0.0]]])
    offsets = torch.zeros(1, 4, 4)
    offsets[0, 0, 0], offsets[0, 0, 1] = 0.5, 3.0  # smooth L1: 0.125 + 2.5
    loss = MultiBoxLoss(CODER, negatives=1)
    found = loss(offsets, logits, PRIORS, [torch.tensor([[0.0, 0.0, 0.5, 0.5]])], [torch.tensor([1])])
    assert found["loss_box"].item() == pytest.approx(2.625)
    assert found["loss_class"].item() == pytest.approx(math.log(4 / 3) + math.log(2))


def test_sigmoid_loss_by_hand() -> None:
    """Binary terms over the object classes alone: channel 0 takes no part."""
    logits = torch.tensor([[[100.0, 0.0, 0.0], [-100.0, 0.0, 0.0], [0.0, -50.0, -50.0], [0.0, -50.0, -50.0]]])
    loss = MultiBoxLoss(CODER, negatives=1, scores="sigmoid")
    found = loss(
        torch.zeros(1, 4, 4), logits, PRIORS, [torch.tensor([[0.0, 0.0, 0.5, 0.5]])], [torch.tensor([2])]
    )
    assert found["loss_class"].item() == pytest.approx(4 * math.log(2))


COLUMNS = torch.tensor([1, 2])
PIXELS = torch.tensor(
    [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [50.0, 50.0, 60.0, 60.0], [0.0, 0.0, 10.0, 4.0]]
)


def test_selection_orders_by_class_then_score_and_keeps_ties() -> None:
    scores = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.3, 0.5, 0.2], [0.4, 0.0, 0.6]])
    rule = SSDConventions(score_threshold=0.15, per_image_keep=50)
    found = select_priors(PIXELS, scores, COLUMNS, rule)
    assert found.labels.tolist() == [
        0,
        0,
        1,
        1,
    ]  # class 1: the second box removes the first (IoU 0.5) and the fourth (0.8)
    assert found.scores.tolist() == pytest.approx([0.6, 0.5, 0.7, 0.2])
    scores = torch.tensor([[0.0, 0.6, 0.0], [0.0] * 3, [0.0, 0.5, 0.5], [0.0] * 3])
    tied = select_priors(PIXELS, scores, COLUMNS, rule.model_copy(update={"per_image_keep": 2}))
    assert tied.scores.tolist() == pytest.approx([0.6, 0.5, 0.5])


def test_a_box_that_overflows_is_no_detection() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [-torch.inf, 0, torch.inf, 10], [5.0, torch.nan, 6, 7]])
    rule = SSDConventions(score_threshold=0.1, nms_iou=0.5)
    found = select_priors(boxes, torch.tensor([[0.1, 0.9]] * 3), torch.tensor([1]), rule)
    assert found.boxes.tolist() == [[0, 0, 10, 10]]


def test_both_test_loops() -> None:
    """IoU of the first two boxes is 0.5 and with +1 66/121; of the first and fourth 0.4 and 55/121 = 0.4545,
    above 0.45."""
    scores = torch.tensor([[0.05, 0.95, 0.0], [0.95, 0.05, 0.0], [0.95, 0.05, 0.0], [0.1, 0.9, 0.0]])
    now, before = (
        select_priors(PIXELS, scores, COLUMNS, rule)
        for rule in (SSDConventions(background_filter=0.9), SSDConventions(nms_offset=1.0))
    )
    assert now.scores.tolist() == pytest.approx([0.95, 0.9])
    assert before.scores.tolist() == pytest.approx([0.95, 0.05])


def test_l2norm_adds_its_epsilon_after_the_root() -> None:
    layer = L2Norm(2)
    assert layer(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).flatten().tolist() == pytest.approx(
        [12.0, 16.0]
    )
    tiny = layer(torch.tensor([3e-10, 4e-10]).reshape(1, 2, 1, 1)).flatten().tolist()
    assert tiny == pytest.approx([20 * 3 / 6, 20 * 4 / 6])  # length 5e-10 and epsilon 1e-10
    assert layer(torch.zeros(1, 2, 1, 1)).flatten().tolist() == [0.0, 0.0]


def test_heads_lay_out_row_column_box_value() -> None:
    heads = Heads([1, 1], [2, 1], 3, kind="plain")
    for head in heads:
        nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(torch.arange(len(head.bias)))
    out = heads([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)])
    assert out.shape == (1, 9, 3)
    assert out[0, :2].tolist() == [[0, 1, 2], [3, 4, 5]] and out[0, -1].tolist() == [0, 1, 2]


class Maps(Backbone):
    """Constant maps of given strides."""

    def __init__(self, **strides: int) -> None:
        super().__init__()
        self.specs = {name: FeatureSpec(8, stride) for name, stride in strides.items()}
        self.layer = nn.Conv2d(3, 8, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {
            name: functional.adaptive_avg_pool2d(self.layer(images), -(-images.shape[2] // spec.stride))
            for name, spec in self.specs.items()
        }


def test_the_maps_are_those_whose_strides_fit_the_priors() -> None:
    resnet_like = Maps(c2=4, c3=8, c4=16, c5=32)
    assert two_maps(resnet_like, 300, prior_table("voc_300")) == ("c3", "c4")
    assert two_maps(resnet_like, 300, prior_table("tensorflow_300")) == ("c4", "c5")
    with pytest.raises(ValueError, match="needs two maps"):
        two_maps(Maps(c5=32), 300, prior_table("voc_300"))


def small_ssd(**changes: object) -> nn.Module:
    rules = changed(SSDRules(), ssd=changes.pop("ssd", {}))
    return ssd(Maps(c3=8, c4=16), 3, rules, **{"size": 300, "priors": "voc_300", **changes})


def test_a_detector_trains_and_detects_through_the_common_contract() -> None:
    torch.manual_seed(0)
    model, images, sizes = small_ssd(), torch.randn(2, 3, 300, 300), torch.tensor([[300, 300]] * 2)
    targets = [
        Target(torch.tensor([[30.0, 30, 200, 240]]), torch.tensor([2])),
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    losses = model.train()(images, sizes, targets)
    assert set(losses) == {"loss_box", "loss_class"} and all(
        torch.isfinite(value) for value in losses.values()
    )
    found = model.eval().predict(images, sizes, torch.tensor([[600, 900], [300, 300]]))
    assert len(found) == 2 and all(set(f.labels.tolist()) <= {0, 1, 2} for f in found)


def test_boxes_are_scaled_to_the_original_image_before_nms() -> None:
    model = small_ssd()
    raw = SSDOutput(torch.tensor([[[0.1, 0.2, 0.5, 0.8]]]), torch.tensor([[[0.1, 0.9, 0.0, 0.0]]]))
    found = model.postprocess(raw, torch.tensor([[300, 300]]), torch.tensor([[100, 200]]))[0]
    torch.testing.assert_close(found.boxes, torch.tensor([[20.0, 20.0, 100.0, 80.0]]))


def test_boxes_are_held_to_the_image_where_the_row_says() -> None:
    torch.manual_seed(0)
    free, held = small_ssd(), small_ssd(ssd={"clip": True})
    held.load_state_dict(free.state_dict())
    images, sizes = torch.randn(1, 3, 300, 300), torch.tensor([[300, 300]])
    outside, inside = free.eval().raw(images, sizes).boxes, held.eval().raw(images, sizes).boxes
    assert outside.min() < 0 and outside.max() > 1
    torch.testing.assert_close(inside, outside.clamp(0, 1))


def test_an_input_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="but there are 11620 priors; resize images"):
        small_ssd().eval().predict(torch.zeros(1, 3, 320, 320), torch.tensor([[320, 320]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 320}, "300 or 512 pixels, not 320"),
        ({"priors": "voc_30"}, "did you mean .*'voc_300'"),
        ({"ssd": {"channels": "coco_ids"}}, "go with 80 classes, not 3"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_ssd(**changes)


def test_coco_ids_skip_the_ten_unused_channels() -> None:
    model = ssd(
        Maps(c4=16, c5=32),
        num_classes=80,
        size=300,
        priors="tensorflow_300",
        heads="ssdlite",
        rules=changed(SSDRules(), ssd={"channels": "coco_ids", "scores": "sigmoid"}),
    )
    columns = model.columns.tolist()
    assert (columns[0], columns[11], columns[79]) == (1, 13, 90) and not set(columns) & {
        12,
        26,
        29,
        30,
        45,
        66,
        68,
        69,
        71,
        83,
    }
    assert model.class_head[0][1].out_channels == 3 * 91


def test_tensorflow_priors_are_those_of_its_checkpoint() -> None:
    """Rows of the anchors that the published model carries, to four decimals."""
    priors = prior_table("tensorflow_300").priors()
    assert len(priors) == 1917
    expected = {
        0: (0.0263, 0.0263, 0.1000, 0.1000),
        1: (0.0263, 0.0263, 0.2828, 0.1414),
        3: (0.0789, 0.0263, 0.1, 0.1),
        1083: (0.05, 0.05, 0.35, 0.35),
        1087: (0.05, 0.05, 0.2021, 0.6062),
        1088: (0.05, 0.05, 0.4183, 0.4183),
        1687: (0.1, 0.1, 0.2887, 0.8661),
        1911: (0.5, 0.5, 0.95, 0.95),
        1914: (0.5, 0.5, 1.6454, 0.5485),
        1916: (0.5, 0.5, 0.9747, 0.9747),
    }
    for row, values in expected.items():
        assert priors[row].tolist() == pytest.approx(values, abs=6e-5), row


def test_same_padding_puts_the_odd_zero_behind() -> None:
    assert [same_padding(length, 3, 2) for length in (300, 75, 10, 5, 1)] == [
        (0, 1),
        (1, 1),
        (0, 1),
        (1, 1),
        (1, 1),
    ]
    assert same_padding(7, 3, 1) == (1, 1) and same_padding(8, 1, 2) == (0, 0)
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.ones_(conv.weight)
    line = torch.arange(1.0, 5).reshape(1, 1, 1, 4)  # windows (1 2 3) and (3 4 0)
    assert conv(line).flatten().tolist() == [6.0, 7.0]


def test_mobilenet_widths() -> None:
    assert [divisible_by_8(c) for c in (22.4, 33.6, 11.2, 4, 134.4)] == [24, 32, 16, 8, 136]
    assert {name: (s.channels, s.stride) for name, s in mobilenet_v2(padding="same").specs.items()} == {
        "c2": (24, 4),
        "c3": (32, 8),
        "c4": (576, 16),
        "c5": (1280, 32),
    }
    maps = mobilenet_v2(padding="same").eval()(torch.zeros(1, 3, 300, 300))
    assert [m.shape[-1] for m in maps.values()] == [75, 38, 19, 10]
