"""Settings of reference folders: from notes as recorded, where another wording is an error that names it, and
from settings.json."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import call
from parity_reports import report_of

from detection_zoo.benchmarks.run.parity import folder_settings
from detection_zoo.zoo.conventions import Views
from detection_zoo.zoo.parity import base
from detection_zoo.zoo.parity.base import ParityError, Reference, parity
from detection_zoo.zoo.parity.detectron_pytorch import augmentation
from detection_zoo.zoo.parity.prose import draws, read_note, rule_of
from detection_zoo.zoo.parity.settings import Note, Settings, normal_input
from detection_zoo.zoo.parity.wordings import Wording

FOLDERS = Path(__file__).resolve().parents[1] / "reference"
NOTES = [
    path.parent
    for name in ("outputs.json", "steps.json", "train_steps.json")
    for path in sorted(FOLDERS.rglob(name))
]


def read(adapter: str, path: str, words: str) -> dict[str, Any]:
    """The settings besides arrays that a note states."""
    rule = rule_of(path, adapter)
    assert rule is not None, path
    return read_note(words, rule, path).model_dump(exclude_defaults=True, exclude={"arrays"})


@pytest.mark.parametrize(
    ("template", "words", "values"),
    [
        ("seed {seed}", "of seed 3, then", {"seed": 3}),
        ("beta {beta}", "same, beta 1/9", {"beta": 1 / 9}),
        (
            "NMS {nms_iou}, {max_detections} an image",
            "score 0.05, NMS 0.5, 100 an image",
            {"nms_iou": 0.5, "max_detections": 100},
        ),
        ("minus {minus}", "minus -2.5e-3", {"minus": -2.5e-3}),
        ("numbers {box_numbers} of", "numbers 0,1, 3 of", {"box_numbers": [0, 1, 3]}),
        ("info ({aspect_ratios})", "info (128, 160,1.6)", {"aspect_ratios": [128.0, 160.0, 1.6]}),
        ("boxes {im_info}", "boxes [[8, 10.5], (1, -2)] wide", {"im_info": ([8, 10.5], (1, -2))}),
        ("sizes {grids}", "sizes (1, 2), (3,4) and (5,6), column x1", {"grids": [(1, 2), (3, 4), (5, 6)]}),
        ("a{rows}", "a[:3] and [3:5] appended", {"rows": [(0, 3), (3, 5)]}),
        ("first {classes} classes", "the first three classes", {"classes": "three"}),
        ("first...last {place}", "first 1, last 2", {"place": 2}),
        ("{}x{side}", "28x14", {"side": 14}),
        ("side <of|to> {side}", "side 4", {"side": 4}),
        ("side <of|to> {side}", "side to 4", {"side": 4}),
    ],
)
def test_a_template_is_the_wording_with_holes(template: str, words: str, values: dict[str, Any]) -> None:
    assert read_note(words, Wording("*", template), "a note").model_dump(exclude_defaults=True) == values


def test_a_wording_that_does_not_fit_names_place_words_and_template() -> None:
    where, words = "outputs.json: outputs.pool.meaning", "sampling 2.5"
    for template in ("sampling {sampling}", "scale {scale}"):
        with pytest.raises(ParityError) as error:
            read_note(words, Wording("*", template), where)
        assert str(error.value) == f"{where}: {words!r} does not state {template!r}"
        assert read_note(words, Wording("*", optional=(template,)), where) == Note().placed(where)
    either = read_note(words, Wording("*", ("scale {scale}", "sampling {scale}")), where)
    assert either.scale == 2.5
    with pytest.raises(ParityError, match="no numbers where"):
        read_note("beta 1/0", Wording("*", "beta {beta}"), where)
    with pytest.raises(ParityError, match="states no setting|does not state 'seed'"):
        either.need("scale", "seed")


def test_arrays_are_those_of_the_calls() -> None:
    first, second = draws("2*normal_input(100+i,(2,3,h,w))-3.5 and synth.normal_input( 4, (5,))")
    expected = np.float32(2) * normal_input(101, (2, 3, 4, 6)) + np.float32(-3.5)
    assert (first.array(1, h=4, w=6) == expected).all() and first.array(1, h=4, w=6).dtype == np.float32
    assert (second.array(1) == normal_input(4, (5,))).all()
    with pytest.raises(ParityError, match=r"100, \(2,3,h,w\)\): a shape of numbers is needed"):
        first.array()
    note = read_note("normal_input(1,(2,))", Wording("*"), "a note")
    with pytest.raises(ParityError, match=r"does not state 'normal_input\(seed, \(shape\)\)' of 2 inputs"):
        note.draw(1)
    with pytest.raises(ParityError, match=r"'none' does not state 'normal_input.* of 1 inputs"):
        read_note("none", Wording("*", arrays=1), "a note")
    with pytest.raises(ParityError, match="the sizes of its levels"):
        read_note("normal_input(1+i,(1,h,w))", Wording("*"), "a note").tensors(torch.float32)


RULES = {"pre_nms": 200, "post_nms": 60, "min_size": 8.0}
READERS: list[tuple[str, str, str, dict[str, Any]]] = [
    *(
        ("maskrcnn_benchmark", f"outputs.{name}.meaning", words, values)
        for name, words, values in (
            ("anchors.all.fpn.x1", "all, grids [(32, 40), (2, 3)], column x1", {"grids": [(32, 40), (2, 3)]}),
            (
                "anchors.visible.fpn",
                "true image size 120x150 (height x width)",
                {"height": 120, "width": 150},
            ),
            ("iou", "IoU: in.boxes.a[:5] x in.boxes.g", {"first": 5}),
            ("boxes.flip", "flip of in.boxes.a[:8] in an image 160 wide: x1'", {"first": 8, "width": 160}),
            (
                "boxes.resized_xywh",
                "scaled from 160x128 to 333x250 (w x h)",
                {"width": 160, "height": 128, "new_width": 333, "new_height": 250},
            ),
            ("boxes.small", "with both inclusive sides >= 40", {"min_size": 40.0}),
            (
                "coder.rpn.encode",
                "weights (10.0, 10.0, 5.0, 5.0); dw, dh",
                {"weights": (10.0, 10.0, 5.0, 5.0)},
            ),
            (
                "match.rpn",
                "matcher 0.7/0.3 with low-quality matches",
                {"foreground_iou": 0.7, "background_iou": 0.3, "low_quality": True},
            ),
            ("match.roi", "matcher 0.5/0.5", {"foreground_iou": 0.5, "background_iou": 0.5}),
            ("nms.0.3", "kept positions at 0.3, in the order returned", {"nms_iou": 0.3}),
            (
                "nms.inclusive_pair",
                "two boxes 10x8 shifted by 5 rows: IoU is 50/150=0.333 (suppressed at 0.3)",
                {"width": 10, "height": 8, "down_by": 5, "nms_iou": 0.3},
            ),
            (
                "rpn.test.image0.x1",
                "proposals (1000/900/800, NMS 0.6, min size 2): levels i=0..4 of sizes [(32, 40), (16, 20)],"
                " true sizes (h,w) (128,160) and (100,140), column x1",
                {
                    **{"pre_nms": 1000, "post_nms": 900, "collect": 800, "nms_iou": 0.6, "min_size": 2.0},
                    "grids": [(32, 40), (16, 20)],
                    "true_sizes": [(128, 160), (100, 140)],
                },
            ),
            (
                "rpn.test_small.image0.x1",
                "test mode with pre 200 and post 60 a level, 90 an image, min size 8",
                RULES | {"collect": 90},
            ),
            (
                "rpn.train_small.image0.x1",
                "training mode with pre 200, post 60, the best 150 over BOTH images (by batch), min size 8,"
                " ground truth in.boxes.a[:3] and [3:5] appended",
                RULES | {"collect": 150, "training": True, "rows": [(0, 3), (3, 5)]},
            ),
            ("in.box2.boxes", "proposals, image 160 wide 128 high", {"width": 160, "height": 128}),
            (
                "pool.fpn_7",
                "FPN pooling to 7x7, sampling 2, maps of sizes (40,52)..(20,26), boxes",
                {"pooled": 7, "sampling": 2}
                | {"first_height": 40, "first_width": 52, "last_height": 20, "last_width": 26},
            ),
            (
                "pool.c4_14",
                "pooling 14x14, scale 1/16, adaptive sampling (0)",
                {"pooled": 14, "sampling": 0, "stride": 16},
            ),
            (
                "mask_target.0",
                "28x28 target of polygon 1 of 'mask_target_polygons' in box [5.0, 8.0, 50.0, 62.0]",
                {"side": 28, "place": 1, "box": (5.0, 8.0, 50.0, 62.0)},
            ),
            (
                "keypoint_target.index",
                "y*56+x of each key point, boxes [[8,10,55,60],[45,33,85,80]]",
                {"side": 56, "boxes": [[8, 10, 55, 60], [45, 33, 85, 80]]},
            ),
            ("keypoint_flip", "horizontal flip in a 96x80 image", {"width": 96}),
            ("loss.smooth_l1.0", "sum, beta 1/9", {"beta": 1 / 9}),
            ("image.test_sizes", "resized with min 96 max 100 -> (100, 75)", {"short": 96, "longest": 100}),
            ("image.test_sizes", "(w,h) after the 800/1333 rule", {"short": 800, "longest": 1333}),
            ("image.padded_sizes", "after padding to multiples of 32 (zeros)", {"divisor": 32}),
        )
    ),
    ("detectron_pytorch", "inputs.det_vote", "TEST.BBOX_VOTE.ENABLED (VOTE_TH 0.8, ID)", {"vote_iou": 0.8}),
    (
        "detectron_pytorch",
        "inputs.det",
        "input a with im_scale 1 and a 128x160 image for the final clip",
        {"scale": 1.0, "height": 128, "width": 160},
    ),
    (
        "detectron_pytorch",
        "inputs.img",
        "clip(round(means + 1.5*RandomState(7).standard_normal((90,120,3))),0,255); TEST.SCALE=120,"
        " TEST.MAX_SIZE=150; full",
        {"noise": 1.5, "seed": 7, "shape": (90, 120, 3), "short": 120, "longest": 150},
    ),
    (
        "detectron_pytorch",
        "inputs.fixed_boxes",
        "input b uses boxes number 0,1,3,5 with batch indices 0,1,1,0",
        {"input": "b", "box_numbers": [0, 1, 3, 5], "box_images": [0, 1, 1, 0]},
    ),
    ("detnet", "train.numpy_seed", "np.random.seed(3) just before the forward", {"seed": 3}),
    (
        "detnet",
        "train.learning_rate_by_epoch.a",
        "README command (default step 5, epochs 12)",
        {"decay_epochs": 5},
    ),
    ("detnet", "train.learning_rate_by_epoch.a", "README table (lr_decay 10)", {"decay_epochs": 10}),
    ("detnet", "outputs.detections.meaning", "im_info (128,160,1.6), NMS 0.3", {"im_info": (128, 160, 1.6)}),
    (
        "detnet",
        "outputs.soft_nms_method0.meaning",
        "sigma 0.5, Nt 0.3, threshold 0.001; method 0 hard",
        {"sigma": 0.5, "nms_iou": 0.3, "score_threshold": 0.001},
    ),
    (
        "detnet",
        "outputs.anchor_labels_sampled.meaning",
        "with RPN_BATCHSIZE 256, np.random.seed(3) just before",
        {"samples": 256, "seed": 3},
    ),
    ("detnet", "outputs.roi_pool_7_cpu.meaning", "RoIPool on the map minus 2.0, image 0", {"minus": 2.0}),
]


@pytest.mark.parametrize(("adapter", "path", "words", "values"), READERS)
def test_settings_are_read_and_another_wording_is_an_error(
    adapter: str, path: str, words: str, values: dict[str, Any]
) -> None:
    assert read(adapter, path, words) == values
    unreadable = re.sub(r"\d", "?", words)
    with pytest.raises(ParityError, match=re.escape(repr(unreadable))):
        read(adapter, path, unreadable)


@pytest.mark.parametrize(
    ("path", "words", "values", "wrong"),
    [
        (
            "outputs.smooth_l1_sigma3.meaning",
            "pred normal_input(30,(2,50,4)), target normal_input(31,(2,50,4)), inside weight 1 where"
            " RandomState(32).random_sample((2,50,1))<0.3, outside weight inside/256; sum",
            {"seed": 32, "shape": (2, 50, 1), "share": 0.3, "parts": 256},
            "outside weight",
        ),
        ("inputs.feature_map", "normal_input(40,(2,6,20,30)), spatial scale 1/16", {"stride": 16}, "scale"),
        (
            "outputs.pyramid_roi_detnet.meaning",
            "maps normal_input(50+i,(1,4,h,w)), pooled size 14; one scale a level",
            {"pooled": 14},
            "pooled size",
        ),
    ],
)
def test_settings_of_notes_with_arrays(path: str, words: str, values: dict[str, Any], wrong: str) -> None:
    assert read("detnet", path, words) == values
    with pytest.raises(ParityError, match="does not state"):
        read("detnet", path, words[: words.rindex(wrong)])


def test_masks_detections_and_classes_of_maskrcnn_benchmark() -> None:
    pasted = (
        "mask sigmoid(2*normal_input(210,(6,1,28,28)))[4] pasted in a 50x40 (w x h) image at [-5, 6.5, 1, 2]"
    )
    values = {"place": 4, "width": 50, "height": 40, "box": (-5, 6.5, 1, 2)}
    assert read("maskrcnn_benchmark", "outputs.paste.mask0.meaning", pasted) == values
    dense = (
        "logits normal_input(1,(1,h,w)), deltas normal_input(2,(1,h,w)), levels [(16, 20)], true size 120x150"
    )
    values = {"grids": [(16, 20)], "height": 120, "width": 150}
    assert read("maskrcnn_benchmark", "outputs.retinanet.boxes.meaning", dense) == values
    focal = "normal_input(1,(4,2)), gamma 2, alpha 0.25"
    values = {"gamma": 2, "alpha": 0.25}
    assert read("maskrcnn_benchmark", "outputs.loss.focal.meaning", focal) == values
    few = "deltas normal_input(4,(8,324)), columns of the first three classes"
    assert read("maskrcnn_benchmark", "outputs.coder.roi.decode_classes.meaning", few) == {"classes": "three"}


def test_augmentations_of_detectron() -> None:
    options = ": H_FLIP, SCALES (96,160) with MAX_SIZE 220 and SCALE_H_FLIP, ASPECT_RATIOS (0.75,)"
    views = Views(flip=True, scales=[96, 160], max_size=220, scale_flip=True, aspect_ratios=[0.75])

    def stated(words: str) -> Any:
        return augmentation(read_note(words, rule_of("inputs.img_tta", "detectron_pytorch"), "a note"))

    both = stated("augmentation on (boxes and masks)" + options)
    assert (both.boxes, both.masks, both.keypoints) == (views, views, None)
    one = stated("augmentation on (boxes: off; keypoints: on)" + options)
    assert (one.boxes, one.masks, one.keypoints) == (None, None, views)
    assert stated("(boxes): SCALE_H_FLIP").boxes == Views(scale_flip=True, max_size=4000)
    for words in (options, "(boxes): SCALES of 96"):
        with pytest.raises(ParityError, match="does not state"):
            stated(words)


def test_the_test_loop_of_hardnet() -> None:
    words = "drop a prior when its best class is background and the background probability is at least 0.9"
    assert read("hardnet", "postprocess.background_filter", words) == {"background_filter": 0.9}
    assert read("hardnet", "postprocess.nms", "torchvision.ops.nms, no +1") == {"without_plus_one": True}
    assert read("hardnet", "postprocess.nms", "the project's own nms") == {}
    with pytest.raises(ParityError, match="'drop some' does not state 'at least"):
        read("hardnet", "postprocess.background_filter", "drop some")


def test_images_and_logits_of_hardnet() -> None:
    def stated(path: str, words: str) -> Note:
        return read_note(words, rule_of(path, "hardnet"), "a note")

    noisy = "clip(rint((104,117,123) + 2.0*RandomState(4).standard_normal((5,6,3))),0,255); the low contrast"
    drawn = np.random.RandomState(4).standard_normal((5, 6, 3))
    expected = np.clip(np.rint(np.array([104, 117, 123]) + 2 * drawn), 0, 255).astype(np.uint8)
    assert (stated("inputs.d", noisy).image() == expected[:, :, ::-1]).all()
    small = np.random.RandomState(3).randint(0, 256, (4, 3, 3)).astype(np.uint8)
    words = "RGB image RandomState(3).randint(0,256,(4,3,3)) as uint8, each pixel repeated 8 times"
    assert (stated("inputs.d", words).image() == small.repeat(8, axis=0).repeat(8, axis=1)).all()
    with pytest.raises(ParityError, match="a note: does not state 'seed'"):
        stated("inputs.d", "a photograph").image()
    logits = stated("detect_a.prob", "[2.5*normal_input(32,(6,4)) with 6 added to column 0]")
    assert logits.added == 6 and torch.equal(
        logits.tensor(torch.float32), torch.from_numpy(np.float32(2.5) * normal_input(32, (6, 4)))
    )
    with pytest.raises(ParityError, match="added to column 0"):
        stated("detect_a.prob", "normal_input(32,(6,4))")


@pytest.mark.parametrize("folder", NOTES, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_settings_json_gives_the_settings_of_the_notes(folder: Path, tmp_path: Path) -> None:
    settings = folder_settings(folder)
    (tmp_path / "settings.json").write_text(settings.to_json())
    again = Settings.read(tmp_path / "settings.json")
    assert again.model_dump() == settings.model_dump()


def without_notes(folder: Path, into: Path) -> Path:
    """A copy of a folder with settings.json, and without the notes that it was made from."""
    own = Path(shutil.copytree(folder, into / folder.name))
    file = str(own / "settings.json")
    code, _, messages = call("parity", "--reference", str(own), "--write-settings", file)
    assert code == 0 and re.search(
        rf"{re.escape(file)}: settings of \d+ notes of {re.escape(str(own))}", messages
    )
    [meta_path] = [own / name for name in ("outputs.json", "steps.json") if (own / name).is_file()]
    meta = json.loads(meta_path.read_text())
    for path in Settings.read(own / "settings.json").notes:
        remove(meta, path)
    meta_path.write_text(json.dumps(meta))
    return own


def remove(value: dict[str, Any], path: str) -> None:
    """Remove the sentence at a path, whose keys may have dots; what is no sentence stays."""
    for key, inner in list(value.items()):
        if key == path and isinstance(inner, str):
            del value[key]
        elif isinstance(inner, dict) and path.startswith(f"{key}."):
            remove(inner, path.removeprefix(f"{key}."))


@pytest.mark.parametrize(
    "folder", ["maskrcnn_benchmark/imagenet_vovnet39", "maskrcnn_benchmark/common_steps", "detnet/ops"]
)
def test_a_folder_with_settings_json_needs_no_notes(folder: str, tmp_path: Path) -> None:
    report = parity(without_notes(FOLDERS / folder, tmp_path))
    assert report.ok
    assert {line.name for line in report.lines} == {line.name for line in report_of(folder).lines}


def test_single_steps_need_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "__file__", str(tmp_path / "detection_zoo" / "zoo" / "parity" / "base.py"))
    with pytest.raises(ParityError, match="common_steps: holds single steps .* only a checkout of this"):
        parity(FOLDERS / "maskrcnn_benchmark" / "common_steps")


def test_a_wrong_settings_json_is_an_error_of_its_field(tmp_path: Path) -> None:
    own = without_notes(FOLDERS / "maskrcnn_benchmark" / "imagenet_vovnet39", tmp_path)
    for text, problem in (
        ('{"notes": {"inputs.A": {"arrays": 3}}}', r"settings\.json: notes\.inputs\.A\.arrays: "),
        (
            '{"notes": {"tolerance.advice": {"seed": 3}}}',
            r"tolerance\.advice: lacks maps, lists, gradients or",
        ),
        ("{", r"settings\.json: : Invalid JSON"),
    ):
        (own / "settings.json").write_text(text)
        with pytest.raises(ParityError, match=problem):
            parity(own)


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
        ParityError, match=r"outputs\.json: outputs\.iou: holds a Described; a note is needed"
    ):
        reference.note("outputs", "iou")
