"""Configuration files of Detectron and Detectron.pytorch become rows; every option is honoured, explained, or
reported."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import LIGHT, run_forked

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.importers.detectron_config import default, read_options
from detection_zoo.zoo.importers.import_config import import_config
from detection_zoo.zoo.manifest_files import load_manifests

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "detectron_pytorch"
CONFIGURATIONS: dict[str, dict[str, Any]] = json.loads((REFERENCE / "configurations.json").read_text())
ALONE = "configs/12_2017_baselines/fast_rcnn_R-50-FPN_1x.yaml"
BASE = CONFIGURATIONS["configs/baselines/e2e_mask_rcnn_R-50-FPN_2x.yaml"]
KEYPOINTS = CONFIGURATIONS["configs/baselines/e2e_keypoint_rcnn_R-50-FPN_s1x.yaml"]


def write(path: Path, options: dict[str, Any]) -> Path:
    """A YAML file of options by dotted name."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *sections, leaf = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def component(value: Any) -> dict[str, Any] | None:
    return None if value is None else {"name": value.name, **value.arguments}


@pytest.mark.parametrize("config", [name for name in CONFIGURATIONS if name != ALONE])
def test_every_configuration_gives_the_row_that_the_manifests_have(config: str, tmp_path: Path) -> None:
    """Rows were written from the tables and FACTS by hand; the import reads the options. Both must say the
    same."""
    imported = import_config(write(tmp_path / Path(config).name, CONFIGURATIONS[config]))
    row = load_manifests().by_config(config)
    assert imported.refused == {}
    for field in ("backbone", "neck", "detector"):
        assert imported.row.get(field) == component(getattr(row, field)), field
    for field in ("classes", "dataset", "train_split", "test_split", "schedule", "initial"):
        assert imported.row.get(field) == getattr(row, field), field
    assert imported.conventions == row.conventions
    assert imported.row["conventions"] == row.conventions_name and "adjust" not in imported.row
    told = imported.without_effect.keys() | {note.partition(":")[0] for note in imported.notes}
    silent = {name for name in CONFIGURATIONS[config] if name not in told} - read_by_import(
        tmp_path / Path(config).name
    )
    assert not silent, "options that nothing read and nobody was told of"


def read_by_import(path: Path) -> set[str]:
    """The options that the import asked for."""
    from detection_zoo.zoo.importers.import_config import _Importer

    importer = _Importer(path, read_options(path), "detectron_pytorch")
    importer.result()
    return importer.options.asked


def test_the_toml_is_a_row_that_can_be_read(tmp_path: Path) -> None:
    options = {
        **BASE,
        "TEST.NMS": 0.4,
        "TEST.SOFT_NMS.ENABLED": True,
        "SOLVER.MAX_ITER": 1000,
        "SOLVER.STEPS": [0, 700],
        "MRCNN.DIM_REDUCED": 128,
        "FAST_RCNN.MLP_HEAD_DIM": 512,
        "MODEL.CLS_AGNOSTIC_BBOX_REG": True,
        "RPN.OUT_DIM_AS_IN_DIM": False,
        "TRAIN.RPN_STRADDLE_THRESH": -1,
    }
    imported = import_config(write(tmp_path / "small.yaml", options))
    document = tomllib.loads(imported.toml())
    row = document["model"][0]
    assert row["adjust"] == {
        "detections": {"nms_iou": 0.4, "soft": "linear"},
        "mask": {"width": 128},
        "rpn": {"channels": 512, "straddle": 100000.0},
    }
    assert row["detector"]["head"] == {"width": 512} and row["detector"]["deltas"] == "object"
    assert document["detectron_pytorch_small"] == {
        "images_per_batch": 16,
        "gpus": 8,
        "lr": 0.02,
        "iterations": 1000,
        "steps": [700],
        "warmup_iterations": 500,
        "warmup_factor": 1 / 3,
        "rescale_momentum": True,
        "weight_decay_norm": 0.0,
        "bias_lr_factor": 2.0,
    }
    assert imported.refused == {}


def test_an_imported_row_builds(tmp_path: Path) -> None:
    import torch

    from detection_zoo.zoo.build import assemble
    from detection_zoo.zoo.manifest import ModelEntry

    options = {
        **BASE,
        "MRCNN.DIM_REDUCED": 128,
        "FAST_RCNN.ROI_XFORM_METHOD": "RoIPoolF",
        "MRCNN.ROI_XFORM_METHOD": "RoICrop",
        "MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v1up",
    }
    imported = import_config(write(tmp_path / "mixed.yaml", options))
    fields = {name: value for name, value in imported.row.items() if name not in ("adjust", "conventions")}
    with torch.device("meta"):
        model = assemble(ModelEntry(source="imported", conventions=imported.conventions, **fields))
    assert (model.box.pooler.rule.method, model.mask.pooler.rule.method) == ("roi_pool", "roi_crop")
    assert len(model.mask.convs) == 2 and model.mask.logits.in_channels == 128


def test_an_option_at_the_margin_is_read_where_it_belongs(tmp_path: Path) -> None:
    """Two files of the original do not parse: one option lost its indentation."""
    path = tmp_path / "broken.yaml"
    text = write(
        path, CONFIGURATIONS["configs/baselines/e2e_faster_rcnn_X-101-64x4d-FPN_1x.yaml"]
    ).read_text()
    lost = text.replace("  IMAGENET_PRETRAINED_WEIGHTS", "IMAGENET_PRETRAINED_WEIGHTS")
    assert lost != text
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(lost)
    path.write_text(lost)
    imported = import_config(path)
    assert imported.row["initial"] == "resnext101_64x4d_imagenet.detectron"
    assert "IMAGENET_PRETRAINED_WEIGHTS is not indented under RESNETS" in "\n".join(imported.report())


def test_a_module_that_does_not_exist_is_replaced_and_said(tmp_path: Path) -> None:
    """Six keypoint files of the original name a module that it does not have."""
    broken = [
        name
        for name, options in CONFIGURATIONS.items()
        if name.startswith("configs/baselines/") and "head_builder." in options["FAST_RCNN.ROI_BOX_HEAD"]
    ]
    assert len(broken) == 6
    imported = import_config(write(tmp_path / "keypoints.yaml", CONFIGURATIONS[broken[0]]))
    assert (
        "note: FAST_RCNN.ROI_BOX_HEAD: there is no module head_builder; read as fast_rcnn_heads.roi_2mlp_head"
        in imported.report()
    )


def test_detectrons_own_files_follow_the_six_rules(tmp_path: Path) -> None:
    name = "configs/12_2017_baselines/e2e_keypoint_rcnn_X-101-64x4d-FPN_s1x.yaml"
    options = CONFIGURATIONS[name]
    assert (
        ".add_" in options["MODEL.CONV_BODY"] and options["MODEL.NUM_CLASSES"] == 2
    )  # rules 1 to 3 have something to do
    imported = import_config(write(tmp_path / Path(name).name, options))
    assert (imported.row["classes"], imported.row["train_split"]) == (
        1,
        "keypoints_coco_2014_train+valminusminival",
    )
    assert imported.row["initial"] == "resnext101_64x4d_imagenet.detectron" and imported.row["name"].endswith(
        ".detectron"
    )
    assert imported.without_effect["OUTPUT_DIR"] == "a folder"
    assert imported.schedule.images_per_batch == 16 and not imported.schedule.rescale_momentum


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"RPN.CLS_ACTIVATION": "softmax"}, {"RPN.CLS_ACTIVATION"}),
        ({"MRCNN.CONV_INIT": "GaussianFill"}, {"MRCNN.CONV_INIT"}),
        ({"TRAIN.ASPECT_CROPPING": True, "TRAIN.ASPECT_HI": 3}, {"TRAIN.ASPECT_HI"}),
        ({"TRAIN.MAX_SIZE": 1000}, {"TRAIN.MAX_SIZE"}),
        (
            {"TEST.BBOX_AUG.ENABLED": True, "TEST.BBOX_AUG.SCALE_SIZE_DEP": True},
            {"TEST.BBOX_AUG.SCALE_SIZE_DEP"},
        ),
        ({"GROUP_NORM.EPSILON": 1e-3}, {"GROUP_NORM.EPSILON"}),
        ({"RETINANET.NUM_CONVS": 2}, {"RETINANET.NUM_CONVS"}),
        ({"RESNETS.IMAGENET_PRETRAINED_WEIGHTS": "data/mine.pth"}, {"RESNETS.IMAGENET_PRETRAINED_WEIGHTS"}),
    ],
)
def test_what_cannot_be_honoured_is_reported(change: dict[str, Any], names: set[str], tmp_path: Path) -> None:
    imported = import_config(write(tmp_path / "changed.yaml", {**BASE, **change}))
    assert imported.refused.keys() == names
    assert all(
        any(line.startswith(f"not supported: {name}: ") for line in imported.report()) for name in names
    )


def test_a_default_that_cannot_be_honoured_is_reported_too(tmp_path: Path) -> None:
    options = {name: value for name, value in KEYPOINTS.items() if name != "KRCNN.USE_DECONV_OUTPUT"}
    imported = import_config(write(tmp_path / "defaults.yaml", options))
    assert default("KRCNN.USE_DECONV_OUTPUT") is False and imported.refused.keys() == {
        "KRCNN.USE_DECONV_OUTPUT"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MODEL.FASTR_RCNN": True}, "no option is named MODEL.FASTR_RCNN: did you mean 'FASTER_RCNN'"),
        ({"TEST.NMS": "half"}, "TEST.NMS needs a value of type float"),
        ({"TRAIN": 3}, "TRAIN is a section"),
        ({"MODEL.CONV_BODY": "VGG16.body"}, "MODEL.CONV_BODY is 'VGG16.body'"),
        ({"MODEL.FASTER_RCNN": False}, "a second stage alone"),
        ({"MODEL.KEYPOINTS_ON": True}, "MODEL.MASK_ON and MODEL.KEYPOINTS_ON together"),
        ({"MRCNN.RESOLUTION": 14}, "this head makes masks of 28 from a pooled side of 14"),
        (
            {"MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.other"},
            "MRCNN.ROI_MASK_HEAD is 'mask_rcnn_heads.other'; known",
        ),
        ({"RESNETS.STEM_FUNC": "basic_gn_stem"}, "all three must have the same norm"),
        ({"FPN.RPN_MIN_LEVEL": 3}, "RPN_MIN_LEVEL must be ROI_MIN_LEVEL"),
        ({"SOLVER.STEPS": [100]}, "the first step must be 0"),
        ({"SOLVER.TYPE": "LBFGS"}, "SOLVER.TYPE is 'LBFGS'"),
    ],
)
def test_what_cannot_be_built_is_one_clear_error(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = {
        name: value for name, value in BASE.items() if not any(name.startswith(f"{key}.") for key in change)
    }
    with pytest.raises(ManifestError, match="wrong.yaml") as caught:
        import_config(write(tmp_path / "wrong.yaml", {**options, **change}))
    assert message in str(caught.value)


def test_stage_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="needs stored proposals"):
        import_config(write(tmp_path / "fast.yaml", CONFIGURATIONS[ALONE]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  TYPE: [", "not valid YAML"),
        ("MODEL:\n  TYPE: a\n  TYPE: b\n", "line 3, column 3: not valid YAML: TYPE is given twice"),
        ("- 1\n", "contains no options"),
        ("MODEL: " + "[" * 3000 + "]" * 3000 + "\n", "more than 20 levels, not read"),
        ("MODEL: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n", "more than 20 levels, not read"),
        ("MODEL:\n" + "".join("  " * n + "- \n" for n in range(1, 300)), "not valid YAML"),
        ("MODEL: &a [x]\nSOLVER: *a\n", "line 2, column 9: not valid YAML: an alias, not read"),
        ("? [a, b]\n: 1\n", "an option without a name"),
        ("MODEL:\n  NUM_CLASSES: " + "9" * 5000 + "\n", "a value cannot be read"),
        ("MODEL:\n  NUM_CLASSES: '" + "(" * 3000 + ")" * 3000 + "'\n", "needs a value of type int"),
        ("MODEL:\n  TYPE: " + "x" * (1 << 19) + "\n", "larger than 262,144 bytes"),
        ("MODEL:\n  TYPE: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_files_that_do_not_parse(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        import_config(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(ManifestError, match="no such file"):
        import_config(tmp_path / "absent.yaml")
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ManifestError, match="not UTF-8"):
        import_config(path)


def test_aspect_cropping_is_a_rule_of_the_row(tmp_path: Path) -> None:
    imported = import_config(write(tmp_path / "cropped.yaml", {**BASE, "TRAIN.ASPECT_CROPPING": True}))
    assert not imported.refused and imported.conventions.targets.aspect_cropping
    plain = import_config(write(tmp_path / "plain.yaml", BASE))
    assert not plain.conventions.targets.aspect_cropping


def test_the_command_prints_the_row_and_says_what_a_person_should_know(tmp_path: Path) -> None:
    good = write(tmp_path / "tuned.yaml", {**BASE, "TEST.NMS": 0.4})
    done = run_forked("bench.py", "import-config", good, imports=LIGHT)
    assert done.returncode == 0 and tomllib.loads(done.stdout)["model"][0]["adjust"] == {
        "detections": {"nms_iou": 0.4}
    }
    assert "without effect: SOLVER.LR_POLICY: " in done.stderr
    bad = write(tmp_path / "cropped.yaml", {**BASE, "TRAIN.MAX_SIZE": 1000})
    done = run_forked("bench.py", "import-config", bad, "--json", imports=LIGHT)
    assert done.returncode == 1 and list(json.loads(done.stdout)["refused"]) == ["TRAIN.MAX_SIZE"]
    assert "not supported: TRAIN.MAX_SIZE: 1000: " in done.stderr
