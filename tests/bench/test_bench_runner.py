"""Every group of metrics on small detectors whose numbers are known beforehand."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detection_zoo.benchmarks.measure.detection import detect_all, measure_accuracy
from detection_zoo.benchmarks.measure.inference import COVERS, measure_inference, timed_batches
from detection_zoo.benchmarks.measure.training import measure_training, warm_up_steps
from detection_zoo.benchmarks.run.groups import measure
from detection_zoo.benchmarks.run.runner import Draft, measure_row, run_row
from detection_zoo.benchmarks.run.subject import (
    RANDOM_DIGEST,
    Sources,
    Subject,
    identify_data,
    identify_weights,
    images_in_epoch,
    inclusive_boxes,
    open_data,
    training_data,
)
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.build import RANDOM_SEED
from detection_zoo.zoo.conventions import TargetConventions
from detection_zoo.zoo.data.shapes import make_shapes
from detection_zoo.zoo.data.training_loader import QUEUED_BATCHES, training_batches
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Detections

ROW = "mask_rcnn_resnet14_slim_fpn.demo"
SPEC = BenchmarkSpec(
    images=4, timed_images=3, warm_up_budget_s=0.2, time_budget_s=0.5, train_steps=4, train_warm_up_steps=1
)
SOURCES = Sources("shapes")
pytestmark = pytest.mark.usefixtures("drawn_shapes")


class Oracle(Detector):
    """Finds exactly the ground truth, image after image in dataset order; waits where told to; trains one
    number."""

    def __init__(self, dataset, *, forward_s: float = 0.0, loss: float = 1.0, score: float = 1.0) -> None:
        super().__init__()
        self.dataset, self.forward_s, self.loss, self.score, self.turn, self.seen = (
            dataset,
            forward_s,
            loss,
            score,
            0,
            [],
        )
        self.weight, self.num_classes = nn.Parameter(torch.ones(())), 5

    def losses(self, images, sizes, targets):
        self.seen.append((tuple(images.shape), [len(target.labels) for target in targets]))
        return {"loss": self.weight * self.loss}

    def raw(self, images: Tensor, sizes: Tensor) -> Tensor:
        threading.Event().wait(self.forward_s)
        return images

    def postprocess(
        self, raw: Tensor, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        found = []
        for _ in range(len(raw)):
            truth = self.dataset.target(self.turn % len(self.dataset))
            self.turn += 1
            keep = ~truth.crowd
            boxes = torch.from_numpy(truth.boxes[keep])
            boxes[:, 2:] -= int(inclusive_boxes(load_manifests().entry(ROW)))  # the last pixel
            found.append(
                Detections(boxes, torch.full((len(boxes),), self.score), torch.from_numpy(truth.labels[keep]))
            )
        return found


def subject_of(images: int | None = 4, **oracle) -> Subject:
    entry = load_manifests().entry(ROW)
    dataset = open_data(entry, "shapes", images)
    return Subject(
        entry,
        Oracle(dataset, **oracle),
        Preprocess.from_conventions(entry.conventions.image),
        torch.device("cpu"),
        dataset,
    )


def test_a_detector_that_finds_the_truth_has_ap_100(tmp_path: Path) -> None:
    metrics, absent, files = measure_accuracy(subject_of(), SPEC, tmp_path / "id")
    assert metrics["box_ap"].value == pytest.approx(100.0) and metrics["box_ar100"].value == pytest.approx(
        100.0
    )
    assert metrics["box_ap"].n == 4 and "4 of 6 images, ground truth restricted" in metrics["box_ap"].covers
    assert not [name for name in (*metrics, *absent) if not name.startswith("box_")]  # of its own task
    assert (tmp_path / files["bbox"].name).is_file() and files["bbox"].name == "id/bbox.json"


def test_batches_keep_images_and_detections_together(tmp_path: Path) -> None:
    metrics, _, _ = measure_accuracy(subject_of(), SPEC.model_copy(update={"batch_size": 3}), tmp_path / "id")
    assert metrics["box_ap"].value == pytest.approx(100.0)
    assert [index for index, _ in detect_all(subject_of(), SPEC.model_copy(update={"batch_size": 3}))] == [
        0,
        1,
        2,
        3,
    ]


def test_scores_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        measure_accuracy(subject_of(score=math.nan), SPEC, tmp_path / "id")


def test_phases_are_timed_apart_and_add_up() -> None:
    found = measure_inference(subject_of(forward_s=0.03), SPEC)
    assert set(found) == {f"{name}_ms" for name in COVERS} | {"model_ms", "model_cpu_ms", "end_to_end_ms"}
    assert min(found["forward_ms"].samples) >= 30.0 > found["postprocess_ms"].value
    assert found["model_ms"].samples == [
        a + b for a, b in zip(found["forward_ms"].samples, found["postprocess_ms"].samples, strict=True)
    ]
    sums = [sum(values) for values in zip(*(found[f"{name}_ms"].samples for name in COVERS), strict=True)]
    assert found["end_to_end_ms"].samples == pytest.approx(sums)
    assert found["decode_ms"].value > 0 and found["resize_ms"].value > 0
    assert "forward + post-processing" in found["model_ms"].covers and "warm-up of" in found["model_ms"].note


def test_times_are_an_image_whatever_the_batch() -> None:
    found = measure_inference(subject_of(forward_s=0.06), SPEC.model_copy(update={"batch_size": 3}))
    assert 20.0 <= min(found["forward_ms"].samples) < 60.0


@pytest.mark.parametrize(
    ("images", "timed", "batch", "expected"),
    [
        (10, 5, 1, [[0], [2], [4], [6], [8]]),
        (3, 100, 2, [[0, 1]]),
        (4, 4, 2, [[0, 1], [2, 3]]),
        (2, 5, 8, [[0, 1]]),
    ],
)
def test_timed_images_are_spread_and_whole_batches(
    images: int, timed: int, batch: int, expected: list[list[int]]
) -> None:
    assert (
        timed_batches(images, SPEC.model_copy(update={"timed_images": timed, "batch_size": batch}))
        == expected
    )


def test_epoch_time_is_the_mean_step_times_the_steps() -> None:
    subject = subject_of()
    dataset, note = training_data(subject.entry, SOURCES)
    found, absent = measure_training(subject, dataset, note, SPEC)
    epoch = found["epoch_time_s"]
    assert len(dataset) == 12 and epoch.extrapolated and epoch.n == len(epoch.samples) <= 4
    assert epoch.value == pytest.approx(fmean(epoch.samples) * 6)  # 12 images, 2 a step
    assert "scaled to the 6 steps of 12 images (shapes:train)" in epoch.note
    assert epoch.interval is None and "no interval from fewer than 50 steps" in epoch.note
    assert found["train_step_ms"].samples == pytest.approx([s * 1e3 for s in epoch.samples])
    assert (
        found["train_memory_resident_mib"].value > 50 and "CPU" in found["train_memory_resident_mib"].covers
    )
    assert "measured on a CPU" in absent["train_memory_allocated_mib"]
    # images of one orientation share a batch, so that the last of each orientation may be alone
    batches = training_batches(subject.entry, dataset, batch=2)
    planned = [len(batch) for epoch in range(4) for batch in batches.order(epoch)]
    images = [shape[0] for shape, _ in subject.model.seen]
    assert images == planned[: len(images)] and max(images) == 2
    assert all(shape[1] == 3 for shape, _ in subject.model.seen) and any(
        sum(counts) for _, counts in subject.model.seen
    )


def test_timed_steps_begin_when_the_loaders_queue_is_drained() -> None:
    assert warm_up_steps(SPEC) == 1
    assert warm_up_steps(SPEC.model_copy(update={"workers": 2})) == 4  # no more than are timed
    assert warm_up_steps(BenchmarkSpec(workers=2)) == 2 * QUEUED_BATCHES + 1
    assert warm_up_steps(SPEC.model_copy(update={"workers": 2, "train_warm_up_steps": 30})) == 30


def test_an_epoch_of_another_dataset_has_its_own_images() -> None:
    entry = load_manifests().entry("faster_rcnn_vovnet39_fpn_2x.vovnet")
    photos = subject_of().dataset
    photos.name = "coco:val2017"
    assert images_in_epoch(entry, photos)[0] == 118287  # COCO's train2017


def test_training_without_a_finite_loss_is_an_error() -> None:
    subject = subject_of(loss=math.inf)
    dataset, note = training_data(subject.entry, SOURCES)
    with pytest.raises(FloatingPointError, match="no training step"):
        measure_training(subject, dataset, note, SPEC)


def test_groups_report_what_was_asked_for(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"groups": ("memory", "ap")})
    draft = Draft(ROW, spec)
    subject = subject_of()
    subject.sources, subject.folder = SOURCES, tmp_path / "id"
    for found in measure(subject, spec):
        draft.add(found)
    names = set(draft.fields["measurements"])
    assert {
        "box_ap",
        "inference_memory_resident_mib",
        "train_memory_resident_mib",
        "train_step_ms",
    } <= names and not names & {"model_ms", "epoch_time_s"}
    assert draft.fields["telemetry"]["ap"].absent and draft.fields["stage"] == "training"


def test_a_real_row_from_file_to_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BenchmarkSpec, "least_passes", 2)
    spec = SPEC.model_copy(update={"images": 2, "timed_images": 1, "train_steps": 2}).for_task("detection")
    draft = Draft(ROW, spec)
    measure_row(
        ROW,
        spec,
        SOURCES,
        "random",
        tmp_path / draft.id,
        lambda value: draft.add(value) if isinstance(value, dict) else None,
    )
    from detection_zoo.benchmarks.run.isolation import Outcome

    run = draft.finish(Outcome("finished"))
    memory = {"inference_memory_resident_mib", "train_memory_resident_mib"}
    assert {"parameters_m", "model_ms", "box_ap", "mask_ap", "epoch_time_s"} | memory <= set(run.measurements)
    assert (
        run.data.made_up
        and run.data.is_subset
        and run.environment.packages["torch"] == torch.__version__.split("+")[0]
    )
    assert set(run.files) == {"bbox", "segm", "accuracy"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [(None, "listed but absent"), (b"\xff\xd8\xff\xe0 cut", "cannot be decoded"), (b"", "the file is empty")],
)
def test_a_bad_image_is_a_record_that_names_the_file(tmp_path: Path, damage: bytes | None, said: str) -> None:
    folder = make_shapes(tmp_path / "coco", splits={"val": 2})
    image = sorted((folder / "val").iterdir())[1]
    if damage is None:
        image.unlink()
    else:
        image.write_bytes(damage)
    weights = identify_weights(load_manifests().entry(ROW), "random")
    run = run_row(
        ROW,
        SPEC.model_copy(update={"images": None, "groups": ("ap",)}),
        Sources(f"coco:{folder}:val"),
        weights,
        tmp_path / "files",
        isolate=False,
    )
    assert (
        run.status == "failed"
        and run.stage == "detecting"
        and said in run.reason
        and image.name in run.reason
    )
    assert run.environment is not None and run.data is not None and "DatasetError" in run.traceback


def test_data_has_a_digest_of_its_content() -> None:
    entry = load_manifests().entry(ROW)
    whole, again, part = (identify_data(open_data(entry, "shapes", images)) for images in (None, None, 3))
    assert (
        whole == again
        and part.digest != whole.digest
        and part.is_subset
        and not whole.is_subset
        and whole.images == 6
    )


def test_weights_have_an_identity(tmp_path: Path) -> None:
    entry = load_manifests().entry(ROW)
    assert identify_weights(entry, "random")[0].digest == RANDOM_DIGEST == f"seed:{RANDOM_SEED}"
    file = tmp_path / "a.pth"
    file.write_bytes(b"abc")
    identity, argument = identify_weights(entry, str(file))
    # SHA-256 of "abc", FIPS 180-2 appendix B.1
    assert (
        identity.digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        and identity.file == "a.pth"
        and argument == str(file)
    )
    with pytest.raises(CheckpointError, match="no such file"):
        identify_weights(entry, str(tmp_path / "b.pth"))


@pytest.mark.parametrize("row", ["faster_rcnn_vovnet39_fpn_2x.vovnet", "ssd512_hardnet68_coco.hardnet"])
def test_inclusive_boxes_follow_the_conventions(row: str) -> None:
    entry = load_manifests().entry(row)
    assert inclusive_boxes(entry)  # both sources write COCO results with width = x2 - x1 + 1
    targets = TargetConventions(inclusive=False)
    assert not inclusive_boxes(
        entry.model_copy(update={"conventions": entry.conventions.model_copy(update={"targets": targets})})
    )


def test_class_scores_become_top_1_and_top_5(tmp_path: Path) -> None:
    from PIL import Image

    from detection_zoo.benchmarks.measure.detection import measure_top_k

    folder = tmp_path / "images"
    folder.mkdir()
    for place in range(4):
        Image.fromarray(np.full((64, 64, 3), 60 * place, np.uint8)).save(folder / f"{place}.png")
    lines = [
        "file,wnid,class_index,name",
        *(f"images/{place}.png,n{place},{label},c" for place, label in enumerate((7, 0, 7, 7))),
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    entry = load_manifests().entry("vovnet39_imagenet.vovnet")

    class Seven(nn.Module):
        """Says class 7, then 0, 1, 2, 3 ..."""

        def forward(self, images: Tensor) -> Tensor:
            scores = -torch.arange(1000.0).repeat(len(images), 1)
            scores[:, 7] = 1
            return scores

    subject = Subject(
        entry,
        Seven(),
        Preprocess.from_conventions(entry.conventions.image),
        torch.device("cpu"),
        open_data(entry, f"imagenet:{tmp_path}"),
    )
    found = measure_top_k(subject, SPEC.model_copy(update={"batch_size": 3}))
    assert {name: m.value for name, m in found.items()} == {
        "top1": 75.0,
        "top1_error": 25.0,
        "top5": 100.0,
        "top5_error": 0.0,
    }
    assert {m.covers for m in found.values()} == {"imagenet, 4 images"}
    subject.dataset = subject.dataset.subset(3)
    assert {m.covers for m in measure_top_k(subject, SPEC).values()} == {"imagenet, 3 of 4 images"}
