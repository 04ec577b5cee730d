"""What reference folders say in words is read as recorded; another wording is an error that names it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection_zoo.zoo.conventions import ProposalConventions, Views
from detection_zoo.zoo.parity import benchmark_texts, detectron_texts, detnet_texts, hardnet_texts
from detection_zoo.zoo.parity.base import ParityError, Reference, parity
from detection_zoo.zoo.parity.prose import Text
from detection_zoo.zoo.parity.standin import normal_input

FOLDERS = Path(__file__).resolve().parents[1] / "reference"


@pytest.mark.parametrize(
    ("template", "words", "value"),
    [
        ("seed {whole}", "of seed 3, then", 3),
        ("beta {number}", "same, beta 1/9", 1 / 9),
        ("NMS {number}, {whole} an image", "score 0.05, NMS 0.5, 100 an image", (0.5, 100)),
        ("minus {number}", "minus -2.5e-3", -2.5e-3),
        ("numbers {wholes} of", "numbers 0,1, 3 of", [0, 1, 3]),
        ("info ({numbers})", "info (128, 160,1.6)", [128.0, 160.0, 1.6]),
        ("boxes {list}", "boxes [[8, 10.5], (1, -2)] wide", [[8, 10.5], (1, -2)]),
        ("sizes {pairs}", "sizes (1, 2), (3,4) and (5,6), column x1", [(1, 2), (3, 4), (5, 6)]),
        ("a{slices}", "a[:3] and [3:5] appended", [slice(0, 3), slice(3, 5)]),
        ("first {word} classes", "the first three classes", "three"),
        ("first...last {whole}", "first 1, last 2", 2),
        ("side <of|to> {whole}", "side 4", 4),
        ("side <of|to> {whole}", "side to 4", 4),
    ],
)
def test_a_template_is_the_wording_with_holes(template: str, words: str, value: Any) -> None:
    assert Text(words).scan(template) == value


def test_a_wording_that_does_not_fit_names_place_words_and_template() -> None:
    text = Text("sampling 2.5", "outputs.json: outputs.pool.meaning")
    for template in ("sampling {whole}", "scale {number}"):
        with pytest.raises(ParityError) as error:
            text.scan(template)
        assert str(error.value) == f"{text.where}: 'sampling 2.5' does not say {template!r}"
    assert text.scan("scale {number}", default=None) is None
    assert text.scan("scale {number}", "sampling {number}") == 2.5
    with pytest.raises(ParityError, match="numbers where"):
        Text("beta 1/0").scan("beta {number}")


def test_arrays_are_those_of_the_calls() -> None:
    first, second = Text("2*normal_input(100+i,(2,3,h,w))-3.5 and synth.normal_input( 4, (5,))").calls()
    expected = np.float32(2) * normal_input(101, (2, 3, 4, 6)) + np.float32(-3.5)
    assert (first.array(1, h=4, w=6) == expected).all() and first.array(1, h=4, w=6).dtype == np.float32
    assert (second.array(1) == normal_input(4, (5,))).all()
    with pytest.raises(ParityError, match=r"does not say a shape of numbers in place of \(2,3,h,w\)"):
        first.array()
    with pytest.raises(ParityError, match=r"does not say 'normal_input\(seed, \(shape\)\)' of 2 inputs"):
        Text("normal_input(1,(2,))").call(1)


def rule(text: Text) -> tuple[float, ...]:
    """Numbers of the rule for proposals that a text states, of the rule for training with 1 at the end."""
    test, training = ProposalConventions(), ProposalConventions(collect_over="batch")
    found = benchmark_texts.proposal_rule(text, test, training)
    limits = found.pre_nms, found.post_nms, found.collect, found.nms_iou, found.min_size
    return *limits, found.collect_over == "batch"


def plain(value: Any) -> Any:
    """Arrays as lists, so that values can be compared."""
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    return value.tolist() if hasattr(value, "tolist") else value


READERS: list[tuple[Callable[[Text], Any], str, Any]] = [
    (benchmark_texts.grids, "all anchors, grids [(32, 40), (2, 3)], column x1", [(32, 40), (2, 3)]),
    (benchmark_texts.image_size, "true image size 120x150 (height x width)", (120, 150)),
    (benchmark_texts.first_boxes, "IoU: in.boxes.a[:5] x in.boxes.g", 5),
    (benchmark_texts.flip, "flip of in.boxes.a[:8] in an image 160 wide: x1'", (8, 160)),
    (benchmark_texts.resized, "scaled from 160x128 to 333x250 (w x h)", ((160, 128), (333, 250))),
    (benchmark_texts.least_side, "with both inclusive sides >= 40", 40),
    (benchmark_texts.weights, "weights (10.0, 10.0, 5.0, 5.0); dw, dh", (10.0, 10.0, 5.0, 5.0)),
    (benchmark_texts.thresholds, "matcher 0.7/0.3 with low-quality matches", (0.7, 0.3)),
    (
        benchmark_texts.shifted_pair,
        "two boxes 10x8 shifted by 5 rows: IoU is 50/150=0.333 (suppressed at 0.3)",
        ([[0, 0, 9, 7], [0, 5, 9, 12]], 0.3),
    ),
    (
        benchmark_texts.levels,
        "levels i=0..4 of sizes [(32, 40), (16, 20)], true sizes (h,w) (128,160) and (100,140), column x1",
        ([(32, 40), (16, 20)], [(128, 160), (100, 140)]),
    ),
    (rule, "test-mode proposals (1000/900/800, NMS 0.6, min size 2): ", (1000, 900, 800, 0.6, 2, 0)),
    (rule, "test mode with pre 200 and post 60 a level, 90 an image, min size 8", (200, 60, 90, 0.7, 8, 0)),
    (
        rule,
        "training mode with pre 200, post 60, the best 150 over BOTH images (by batch), min size 8",
        (200, 60, 150, 0.7, 8, 1),
    ),
    (benchmark_texts.appended, "ground truth in.boxes.a[:3] and [3:5] appended", [slice(0, 3), slice(3, 5)]),
    (benchmark_texts.width_and_height, "proposals, image 160 wide 128 high", (160, 128)),
    (benchmark_texts.dense_levels, "levels [(16, 20)], true size 120x150; sorted", ([(16, 20)], (120, 150))),
    (benchmark_texts.map_sizes, "of sizes (40,52)..(20,26), boxes", [(40, 52), (20, 26)]),
    (
        benchmark_texts.pasted,
        "mask sigmoid(2*normal_input(210,(6,1,28,28)))[4] pasted in a 50x40 (w x h) image at [-5, 6.5, 1, 2]",
        (4, (40, 50), [-5, 6.5, 1, 2]),
    ),
    (
        benchmark_texts.polygon_target,
        "28x28 target of polygon 1 of 'mask_target_polygons' in box [5.0, 8.0, 50.0, 62.0]",
        (28, 1, [5.0, 8.0, 50.0, 62.0]),
    ),
    (benchmark_texts.heatmap_side, "y*56+x of each key point", 56),
    (benchmark_texts.image_width, "horizontal flip in a 96x80 image", 96),
    (benchmark_texts.beta, "sum, beta 1/9", 1 / 9),
    (benchmark_texts.focal, "gamma 2, alpha 0.25", {"gamma": 2, "alpha": 0.25}),
    (benchmark_texts.resizing, "resized with min 96 max 100 -> (100, 75)", (96, 100)),
    (benchmark_texts.resizing, "(w,h) after the 800/1333 rule", (800, 1333)),
    (benchmark_texts.divisor, "after padding to multiples of 32 (zeros)", 32),
    (detectron_texts.vote_threshold, "TEST.BBOX_VOTE.ENABLED (VOTE_TH 0.8, method ID)", 0.8),
    (
        detectron_texts.TestPath.of,
        "input a with im_scale 1 and a 128x160 image for the final clip",
        detectron_texts.TestPath(1.0, (128, 160)),
    ),
    (
        detectron_texts.NoisyImage.of,
        "clip(round(means + 1.5*RandomState(7).standard_normal((90,120,3))),0,255); TEST.SCALE=120,"
        " TEST.MAX_SIZE=150; full",
        detectron_texts.NoisyImage(1.5, 7, (90, 120, 3), 120, 150),
    ),
    (
        lambda text: detectron_texts.FixedRows.of(text, "b"),
        "input b uses boxes number 0,1,3,5 with batch indices 0,1,1,0",
        detectron_texts.FixedRows([0, 1, 3, 5], [0, 1, 1, 0]),
    ),
    (detnet_texts.seed, "np.random.seed(3) just before the forward", 3),
    (detnet_texts.decay_epochs, "README command (lr 1e-3, default step 5, epochs 12)", 5),
    (detnet_texts.decay_epochs, "README table (lr_decay 10)", 10),
    (detnet_texts.image_info, "im_info (128,160,1.6), NMS 0.3", [128, 160, 1.6]),
    (
        detnet_texts.SoftNms.of,
        "sigma 0.5, Nt 0.3, threshold 0.001; method 0 hard",
        detnet_texts.SoftNms(0.5, 0.3, 0.001),
    ),
    (detnet_texts.anchor_samples, "with RPN_BATCHSIZE 256, np.random.seed(3) just before", (256, 3)),
    (detnet_texts.scale, "normal_input(40,(2,6,20,30)), spatial scale 1/16", 1 / 16),
    (detnet_texts.lowered_by, "RoIPool on the map minus 2.0, image 0", 2.0),
    (detnet_texts.pooled_size, "pooled size 14; one scale a level", 14),
    (
        lambda text: detnet_texts.SmoothL1.of(text, torch.float64).parts,
        "pred normal_input(30,(2,50,4)), target normal_input(31,(2,50,4)), inside weight 1 where"
        " RandomState(32).random_sample((2,50,1))<0.3, outside weight inside/256; sum",
        256,
    ),
]


@pytest.mark.parametrize(("read", "words", "value"), READERS)
def test_settings_are_read_and_another_wording_is_an_error(
    read: Callable[[Text], Any], words: str, value: Any
) -> None:
    assert plain(read(Text(words))) == value
    unreadable = re.sub(r"\d", "?", words)
    with pytest.raises(ParityError, match=re.escape(repr(unreadable))):
        read(Text(unreadable))


def test_number_words_of_classes_and_pooling() -> None:
    assert benchmark_texts.classes(Text("columns of the first three classes")) == 3
    with pytest.raises(ParityError, match="does not say how many classes"):
        benchmark_texts.classes(Text("columns of the first seventy classes"))
    pooled = benchmark_texts.pooling(Text("FPN pooling to 7x7, sampling 2, features"))
    assert (pooled.size, pooled.sampling_ratio) == (7, 2)
    single, stride = benchmark_texts.single_pooling(Text("pooling 14x14, scale 1/16, adaptive sampling (0)"))
    assert (single.size, single.sampling_ratio, stride) == (14, 0, 16)
    with pytest.raises(ParityError, match="the sizes of its levels"):
        benchmark_texts.arrays(Text("normal_input(1+i,(1,h,w))"), torch.float32)


def test_augmentations_of_detectron() -> None:
    options = ": H_FLIP, SCALES (96,160) with MAX_SIZE 220 and SCALE_H_FLIP, ASPECT_RATIOS (0.75,)"
    views = Views(flip=True, scales=[96, 160], max_size=220, scale_flip=True, aspect_ratios=[0.75])
    both = detectron_texts.augmentation(Text("augmentation on (boxes and masks)" + options))
    assert (both.boxes, both.masks, both.keypoints) == (views, views, None)
    one = detectron_texts.augmentation(Text("augmentation on (boxes: off; keypoints: on)" + options))
    assert (one.boxes, one.masks, one.keypoints) == (None, None, views)
    few = detectron_texts.augmentation(Text("(boxes): SCALE_H_FLIP")).boxes
    assert few == Views(scale_flip=True, max_size=4000)
    for words in (options, "(boxes): SCALES of 96"):
        with pytest.raises(ParityError, match="does not say"):
            detectron_texts.augmentation(Text(words))


def test_the_test_loop_of_hardnet() -> None:
    rules = dict.fromkeys(("score_threshold", "nms_iou", "per_class_keep", "per_image_keep"), 1) | {
        "nms": "torchvision.ops.nms, no +1"
    }
    words = "drop a prior when its best class is background and the background probability is at least 0.9"
    assert hardnet_texts.selection(rules, Text(words)).background_filter == 0.9
    assert hardnet_texts.selection(rules, None).background_filter is None
    with pytest.raises(ParityError, match="'drop some' does not say 'at least"):
        hardnet_texts.selection(rules, Text("drop some"))


def test_images_and_scores_of_hardnet() -> None:
    noisy = "clip(rint((104,117,123) + 2.0*RandomState(4).standard_normal((5,6,3))),0,255); the low contrast"
    drawn = np.random.RandomState(4).standard_normal((5, 6, 3))
    expected = np.clip(np.rint(np.array([104, 117, 123]) + 2 * drawn), 0, 255).astype(np.uint8)
    assert (hardnet_texts.image(Text(noisy)) == expected[:, :, ::-1]).all()
    small = np.random.RandomState(3).randint(0, 256, (4, 3, 3)).astype(np.uint8)
    words = "RGB image RandomState(3).randint(0,256,(4,3,3)) as uint8, each pixel repeated 8 times"
    assert (hardnet_texts.image(Text(words)) == small.repeat(8, axis=0).repeat(8, axis=1)).all()
    with pytest.raises(ParityError, match="'a photograph' does not say"):
        hardnet_texts.image(Text("a photograph"))
    logits = hardnet_texts.logits(Text("[2.5*normal_input(32,(6,4)) with 6 added to column 0]"))
    own = torch.from_numpy(np.float32(2.5) * normal_input(32, (6, 4)))
    assert torch.equal(logits[:, 1:], own[:, 1:]) and torch.equal(logits[:, 0], own[:, 0] + 6)
    with pytest.raises(ParityError, match="added to column 0"):
        hardnet_texts.logits(Text("normal_input(32,(6,4))"))


@pytest.mark.parametrize(
    ("folder", "name", "was", "becomes"),
    [
        ("maskrcnn_benchmark/common_steps", "match.rpn", "matcher 0.7/0.3", "matching at high and low"),
        ("detnet/ops", "soft_nms_method1", "Nt 0.3", "the usual overlap"),
    ],
)
def test_a_folder_with_another_wording_is_an_error_of_its_field(
    folder: str, name: str, was: str, becomes: str, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(FOLDERS / folder, tmp_path / "own"))
    meta = json.loads((own / "outputs.json").read_text())
    words = meta["outputs"][name]["meaning"]
    meta["outputs"][name]["meaning"] = words.replace(was, becomes)
    (own / "outputs.json").write_text(json.dumps(meta))
    with pytest.raises(ParityError, match=rf"outputs\.json: outputs\.{name}\.meaning: .*{becomes}"):
        parity(own)


def test_a_field_that_holds_no_words_is_an_error() -> None:
    reference = Reference(FOLDERS / "maskrcnn_benchmark" / "common_steps")
    with pytest.raises(
        ParityError, match=r"outputs\.json: outputs\.iou: holds a Described, words are wanted"
    ):
        reference.text("outputs", "iou")
