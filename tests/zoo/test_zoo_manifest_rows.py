"""The project's own rows: complete, consistent, and true to a few figures of the sources that are written out
here."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from contracts import need_package, shared_backbones

from detection_zoo.benchmarks.run.subject import inclusive_boxes
from detection_zoo.zoo.build import assemble, own_weights
from detection_zoo.zoo.data.training_loader import target_rules
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests

MANIFESTS = load_manifests()
ROWS = list(MANIFESTS.entries.values())
PEERS = "torchvision"
# sources that publish something of their models of a kind; a row of them has to have it
REPORTING = {(e.source, e.task) for e in ROWS if e.published or e.source_config}


def of(source: str) -> list[ModelEntry]:
    return [e for e in ROWS if e.source == source]


def links(entries: list[ModelEntry], holds: str) -> int:
    """Weight files and pages of these rows."""
    return sum(spec.holds == holds for e in entries for spec in e.weights)


# Facts of the sources: rows of their tables and configurations, numbers they print, files they link
# (a time printed as "a + b" is two numbers; the VoVNet README links its start files, Detectron's zoo also its
# result files; the slim rows of torchvision and Detectron2 are ours).
FACTS = {
    # source: (rows, published numbers, links to detectors, to classifiers, to results)
    "vovnet": (16, 82, 12, 6, 0),
    "maskrcnn_benchmark": (48, 206, 22, 0, 0),
    "detectron": (87, 604, 70, 7, 86),
    "detectron_pytorch": (44, 162, 33, 4, 0),
    "detnet": (12, 53, 3, 8, 0),
    "hardnet": (54, 156, 14, 12, 0),
    "torchvision": (14, 56, 13, 0, 0),
    "detectron2": (28, 122, 27, 0, 0),
    "registry": (6, 5, 2, 4, 0),
}


@pytest.mark.parametrize("source", FACTS)
def test_every_row_number_and_link_of_a_source_is_here(source: str) -> None:
    entries = of(source)
    numbers = sum(len(p.values) for e in entries for p in e.published)
    assert (
        len(entries),
        numbers,
        *(links(entries, kind) for kind in ("detector", "imagenet", "results")),
    ) == FACTS[source]


def test_the_vovnet_readme_row_by_row() -> None:
    # memory GB, time ms, box AP/s/m/l, mask AP/s/m/l: the README of stigma0617/maskrcnn-benchmark-vovnet
    readme = {
        "faster_rcnn_resnet50": (3.6, 78, 37.5, 21.3, 40.3, 49.5),
        "faster_rcnn_resnet101": (4.7, 97, 39.6, 22.8, 43.2, 51.9),
        "faster_rcnn_vovnet39": (3.9, 78, 39.8, 23.7, 42.6, 51.5),
        "faster_rcnn_vovnet57": (4.4, 87, 40.8, 24.8, 43.8, 52.4),
        "mask_rcnn_resnet50": (3.6, 83, 38.6, 22.1, 41.3, 51.4, 34.9, 16.0, 37.3, 52.2),
        "mask_rcnn_resnet101": (4.7, 102, 40.8, 23.2, 44.0, 53.9, 36.7, 16.7, 39.4, 54.3),
        "mask_rcnn_vovnet39": (4, 81, 41.0, 24.6, 43.9, 53.1, 36.7, 17.9, 39.3, 53.0),
        "mask_rcnn_vovnet57": (4.5, 90, 42.0, 25.1, 44.9, 53.8, 37.5, 18.3, 39.8, 54.3),
    }
    columns = (
        "train_memory_gb",
        "inference_time_ms",
        *(f"{kind}_ap{size}" for kind in ("box", "mask") for size in ("", "_s", "_m", "_l")),
    )
    for name, numbers in readme.items():
        entry = MANIFESTS.entry(f"{name}_fpn_2x.vovnet")
        values = {metric: value for p in entry.published for metric, value in p.values.items()}
        assert tuple(values[c] for c in columns if c in values) == numbers


def test_the_wrong_link_of_the_vovnet_readme_is_kept_and_never_taken() -> None:
    v39, v57 = (MANIFESTS.entry(f"mask_rcnn_vovnet{n}_fpn_2x.vovnet") for n in (39, 57))
    assert (
        v57.weights[0].urls
        == v39.weights[0].urls
        == ["https://www.dropbox.com/s/3zpmq4nvijqek3m/MRCN-V-39-FPN-2x.pth"]
    )
    assert v57.weights[0].wrong and v39.weights[0].wrong is None
    assert own_weights(v57).urls == [
        "https://dl.dropbox.com/s/uq1uon4oiwqwuik/MRCN-V-57-FPN-2x-norm.pth?dl=1"
    ]
    with pytest.raises(CheckpointError, match="the README has the link of Mask V-39 here"):
        own_weights(v57.model_copy(update={"weights": v57.weights[:1]}))


def test_names_and_configurations_are_unique() -> None:
    assert all(e.name.endswith(f".{e.source}") for e in ROWS)
    configs = Counter(e.source_config for e in ROWS if e.source_config)
    assert not [c for c, n in configs.items() if n > 1], "parity finds a row by its configuration"


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.name)
def test_a_row_is_consistent(entry: ModelEntry) -> None:
    dataset = MANIFESTS.datasets[entry.dataset]
    assert not dataset.classes or entry.classes == len(dataset.classes)
    assert (entry.detector is None) == (entry.task == "classification")
    assert entry.published_only or entry.conventions is not None, "a row that can be built needs conventions"
    alone = not (entry.weights or entry.published or entry.source_config)
    assert not (alone and (entry.source, entry.task) in REPORTING), (
        f"other rows of {entry.source} have published numbers or a configuration of their source; without"
        " weights, numbers and configuration this one says nothing"
    )
    assert not (entry.published_only and not entry.published and not entry.weights)
    assert all(p.values for p in entry.published)
    conditions = Counter(
        (p.title, p.source, p.dataset, p.split, p.hardware, p.protocol, p.variant) for p in entry.published
    )
    assert not [c for c, n in conditions.items() if n > 1], (
        "numbers under the same conditions belong in one table"
    )
    for spec in entry.weights:
        assert spec.filename or not spec.urls or spec.urls[0].rsplit("/", 1)[1] != "model_final.pkl"
        assert spec.holds != "results" or spec.note in ("boxes", "masks", "keypoints")


@pytest.mark.parametrize("entry", [e for e in ROWS if e.initial], ids=lambda e: e.name)
def test_training_starts_from_a_file_that_fits_the_backbone(entry: ModelEntry) -> None:
    start = MANIFESTS.entry(entry.initial or "")
    specs = MANIFESTS.initial_weights(entry)
    assert specs and all(spec.holds == "imagenet" for spec in specs)
    assert start.backbone.name == entry.backbone.name
    norm, theirs = entry.backbone.arguments.get("norm"), start.backbone.arguments.get("norm")
    assert (norm == "group") == (theirs == "group")


def test_units_of_one_quantity_agree() -> None:
    """A published total training time is its seconds an iteration times the schedule's iterations; so are the
    units right, and the schedule."""
    checked = 0
    for entry in ROWS:
        iterations = MANIFESTS.schedules[entry.schedule].iterations if entry.schedule else None
        for p in entry.published:
            if (
                iterations
                and {"train_time_hours", "train_time_s_per_iteration"} <= set(p.values)
                and not p.variant
            ):
                hours = p.values["train_time_s_per_iteration"] * iterations / 3600
                assert p.values["train_time_hours"] == pytest.approx(hours, rel=0.03), (
                    entry.name
                )  # as coarsely as sources round
                checked += 1
    assert checked >= 80


def test_rates_follow_the_linear_rule() -> None:
    """0.02 for 16 images, in Detectron, in maskrcnn-benchmark and in what follows them (Goyal et al. 2017,
    section 2.1); RetinaNet and FBNet have their own."""
    followers = {
        name: s
        for name, s in MANIFESTS.schedules.items()
        if name.startswith(("detectron", "maskrcnn_benchmark", "vovnet_2x"))
    }
    own = {name for name in followers if any(word in name for word in ("retinanet", "fbnet", "voc_"))}
    assert len(followers) - len(own) >= 25
    for name in followers.keys() - own:
        assert followers[name].lr / followers[name].images_per_batch == pytest.approx(0.02 / 16), name
    assert all(schedule.warmup_iterations == 500 for schedule in followers.values())


def test_classes_are_those_that_datasets_have() -> None:
    from detection_zoo.zoo.data.figures import SHAPE_CATEGORIES

    datasets = MANIFESTS.datasets
    assert tuple(datasets["shapes"].classes) == tuple(name for _, name in SHAPE_CATEGORIES)
    devkit = (
        "aeroplane bicycle bird boat bottle bus car cat chair cow"
        " diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
    )
    assert datasets["voc"].classes == devkit.split()
    coco = datasets["coco"].classes
    assert len(coco) == len(set(coco)) == 80 and (coco[0], coco[16], coco[79]) == (
        "person",
        "dog",
        "toothbrush",
    )


def test_splits_have_the_counts_that_their_sources_state() -> None:
    coco, voc = MANIFESTS.datasets["coco"].splits, MANIFESTS.datasets["voc"].splits
    assert (
        coco["coco_2014_train"] + coco["coco_2014_valminusminival"]
        == coco["coco_2014_train+valminusminival"]
        == coco["coco_2017_train"]
        == 118287
    )
    assert coco["coco_2014_valminusminival"] + coco["coco_2014_minival"] == coco["coco_2014_val"]
    assert voc["voc_2007_trainval"] + voc["voc_2012_trainval"] == voc["voc_2007+2012_trainval"] == 16551
    assert (
        voc["voc_2007_train"] + voc["voc_2007_val"] == 5011
        and voc["voc_2012_train"] + voc["voc_2012_val"] == 11540
    )


@pytest.mark.parametrize("entry", [e for e in of(PEERS) if e.weights], ids=lambda e: e.name)
def test_torchvision_rows_say_what_the_package_says(entry: ModelEntry) -> None:
    from torchvision.models import get_model_weights

    assert entry.detector is not None and entry.source_config is not None
    builder, weights = entry.detector.name.removeprefix("torchvision."), entry.source_config.split(".")[1]
    package = get_model_weights(builder)[weights]
    values = {metric: value for p in entry.published for metric, value in p.values.items()}
    names = {"box_map": "box_ap", "mask_map": "mask_ap", "kp_map": "keypoint_ap"}
    assert entry.weights[0].urls == [package.url] and f"-{entry.weights[0].sha256_prefix}.pth" in package.url
    assert {
        names[k]: v for k, v in package.meta["_metrics"]["COCO-val2017"].items()
    }.items() <= values.items()
    assert (
        values["parameters_m"] == package.meta["num_params"] / 1e6 and values["gmacs"] == package.meta["_ops"]
    )
    assert values["file_size_mib"] == package.meta["_file_size"]


def test_formats_of_rows_that_can_be_built_have_readers() -> None:
    import detection_zoo.zoo.weights.load  # noqa: F401 - registers them
    from detection_zoo.zoo.registry import CHECKPOINT_FORMATS

    named = {
        spec.format: e.name
        for e in ROWS
        if not e.published_only
        for spec in e.weights
        if spec.holds != "results"
    }
    assert len(named) >= 10
    assert not {form: name for form, name in named.items() if form not in CHECKPOINT_FORMATS}


@pytest.mark.parametrize("entry", [e for e in ROWS if not e.published_only], ids=lambda e: e.name)
def test_every_row_builds(entry: ModelEntry) -> None:
    need_package(entry.name)
    with shared_backbones():
        model = assemble(entry)
    assert model.num_classes == entry.classes
    slim = MANIFESTS.datasets[entry.dataset].layout == "shapes"
    assert sum(p.numel() for p in model.parameters()) > (0 if slim else 1_000_000)


def test_training_and_evaluation_agree_where_boxes_end() -> None:
    data = SimpleNamespace(keypoint_names=())
    built = [row for row in ROWS if not row.published_only and row.detector is not None]
    differ = [row.name for row in built if target_rules(row, data).inclusive != inclusive_boxes(row)]
    assert len(built) > 100 and not differ
