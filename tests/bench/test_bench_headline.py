"""README's second table: a source's numbers beside ours."""

from __future__ import annotations

from records import RANDOM, TRAINED, measured, run_of

from detection_zoo.benchmarks.report.headline import beside_table
from detection_zoo.benchmarks.report.wide import overview
from detection_zoo.zoo.manifest_files import load_manifests

R50, V39 = "faster_rcnn_resnet50_fpn_2x.vovnet", "faster_rcnn_vovnet39_fpn_2x.vovnet"


def _values(time: float, memory: float, ap: float) -> dict:
    return {
        "model_ms": measured(time, "ms"),
        "train_memory_resident_mib": measured(memory, "MiB"),
        "box_ap": measured(ap, "%"),
    }


def test_published_and_measured_stand_apart_with_their_own_ratios() -> None:
    """Each side's ratio is to its own R-50; AP of random weights is left out."""
    runs = [
        run_of(R50, _values(2000.0, 4096.0, 0.1), weights=RANDOM),
        run_of(V39, _values(2500.0, 5120.0, 0.1), weights=RANDOM),
    ]
    table = beside_table(overview(load_manifests(), runs))
    rows = {tuple(row[:2]): row[2:] for row in table.rows}
    assert len(rows) == 8
    assert rows["R-50", "Faster"] == ["37.5 / -", "78 / 2000", "3.6 / 4.0"]
    assert rows["V-39", "Faster"] == ["39.8 / -", "78 (1.00x) / 2500 (1.25x)", "3.9 (1.08x) / 5.0 (1.25x)"]
    assert rows["V-57", "Mask"] == ["42.0 / -", "90 (1.08x) / -", "4.5 (1.25x) / -"]
    assert any("Abacus 9" in note for note in table.notes)


def test_random_weights_give_masks_no_time() -> None:
    """The mask head's time is that of a chance number of detections; the training step's memory is not."""
    runs = [run_of(R50.replace("faster", "mask"), _values(2800.0, 4096.0, 0.1), weights=RANDOM)]
    rows = {tuple(row[:2]): row[2:] for row in beside_table(overview(load_manifests(), runs)).rows}
    assert rows["R-50", "Mask"][1:] == ["83 / -", "3.6 / 4.0"]


def test_trained_weights_have_their_ap() -> None:
    """With trained weights the AP stands there."""
    runs = [run_of(R50, _values(2000.0, 4096.0, 37.4), weights=TRAINED)]
    assert beside_table(overview(load_manifests(), runs)).rows[0][2] == "37.5 / 37.4"
