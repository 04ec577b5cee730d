"""Detectors whose work is recorded and replayed, on a simulated GPU: the same detections from other images of
other sizes, no wait of the host inside, no memory that others may free; and what happens where it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from simulated_capture import TapeCapture, address
from simulated_gpu import Log, memory_of, move_module, simulated_gpu
from slim_families import ROWS, SIDE, pictures
from slim_families import family as family_of
from test_simulated_gpu import TABLE
from torch import Tensor, nn

from detection_zoo.zoo.build import create_model
from detection_zoo.zoo.graphs import GraphClassifier, GraphDetector, Recordings
from detection_zoo.zoo.parts import detections, fixed_size
from detection_zoo.zoo.records import Detections, tensors_in

SIZES = torch.tensor([[SIDE, SIDE - 12], [SIDE - 7, SIDE]])
ORIGINAL = torch.tensor([[400, 370], [306, 320]])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A simulated GPU; inference mode is `no_grad`, since wrapped parameters have no version in it."""
    mode = lambda wanted=True: torch.no_grad() if wanted else nullcontext()  # noqa: E731
    monkeypatch.setattr(torch, "inference_mode", mode)
    with simulated_gpu() as log:
        yield log


def on_gpu(family: str) -> nn.Module:
    return move_module(family_of(family))


def values(found: list[Detections]) -> list[Tensor]:
    return [memory_of(one).clone() for one in tensors_in(found)]


def assert_equal(found: list[Detections], expected: list[Detections]) -> None:
    assert sum(len(one) for one in expected) > 0
    for one, other in zip(values(found), values(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", ROWS)
def test_replayed_on_other_images_of_other_sizes(family: str, gpu: Log) -> None:
    """Recorded on the first image, replayed on the second, in pixels of the input and of the original: what
    the detector itself finds, to the last bit, with as many waits as without, which all come after the
    replay: recording none is allowed. What was found in an image stays as it is when the next is computed.

    A recording reads no memory that others may free: weights, and what is kept with it; the generator drops
    anchors after some sizes."""
    images, model, capture = pictures(2).to("cuda"), on_gpu(family), TapeCapture()
    replaying, results = GraphDetector(model, capture), []
    with torch.no_grad():
        for place, original in ((0, None), (1, None), (0, ORIGINAL), (1, ORIGINAL)):
            given = images[place : place + 1], SIZES[place : place + 1]
            known = None if original is None else original[place : place + 1]
            expected = model.predict(*given, known)
            gpu.clear()
            found = replaying.predict(*given, known)
            assert_equal(found, expected)
            assert sum(gpu.waits.values()) <= json.loads(TABLE.read_text())[family]["inference"], gpu.report()
            results.append((found, expected))
    assert replaying.recordings.hits == 3
    for found, expected in results:
        assert_equal(found, expected)
    (kept,) = replaying.recordings.kept.values()
    held = [*model.parameters(), *model.buffers(), *tensors_in([kept.images, kept.rows, kept.raw])]
    assert len(capture.tapes) == 2
    for tape in capture.tapes:
        assert tape.external <= {address(one) for one in held}


def test_pooling_scaled_by_the_image_s_height(gpu: Log) -> None:
    """DetNet's own: the scale is a number of the recording, so that each size has one of its own."""
    images, model = pictures(2).to("cuda"), on_gpu("detnet")
    own = {"method": "roi_align_averaged", "scale": "height"}
    model.box.pooler.rule = model.box.pooler.rule.model_copy(update=own)
    replaying = GraphDetector(model, TapeCapture())
    with torch.no_grad():
        for place in (0, 1, 0):
            given = images[place : place + 1], SIZES[place : place + 1]
            expected = model.predict(*given)
            gpu.clear()
            assert_equal(replaying.predict(*given), expected)
            assert sum(gpu.waits.values()) == 1, gpu.report()
    assert (replaying.recordings.misses, replaying.recordings.hits) == (2, 1)


def test_lists_that_are_not_exact_are_chosen_again(gpu: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than fit: noticed after the replay, then chosen from the network's outputs."""
    images, model = pictures(2).to("cuda"), on_gpu("faster_rcnn")
    expected = model.predict(images, SIZES)
    cut = fixed_size.best_candidates
    monkeypatch.setattr(detections, "best_candidates", lambda scores: cut(scores, 2))
    replaying = GraphDetector(model, TapeCapture())
    for _ in range(2):
        assert_equal(replaying.predict(images, SIZES), expected)


def test_the_oldest_is_evicted(gpu: Log) -> None:
    """Two shapes are kept of three; the third of them makes the first be recorded again."""
    model = on_gpu("ssd")
    replaying = GraphDetector(model, TapeCapture(), Recordings(most=2))
    images = pictures(2).to("cuda")
    batches = [images[:1], images, torch.cat([images, images])[:3], images[:1]]
    for batch in batches:
        sizes = torch.full((len(batch), 2), SIDE)
        assert_equal(replaying.predict(batch, sizes), model.predict(batch, sizes))
    kept = replaying.recordings
    assert (kept.misses, kept.hits, kept.evictions) == (4, 0, 2) and len(kept.kept) == 2
    assert replaying.note == (
        "CUDA graphs: 4 captured of network and choice of detections, 0 further batches replayed one, 2"
        f" evicted, 2 of at most 2 kept, {kept.held_bytes / 2**20:.0f} MiB held; batches"
        " 1x160x160, 2x160x160, 3x160x160"
    )
    few = Recordings(most_bytes=1)
    small = GraphDetector(model, TapeCapture(), few)
    for batch in batches[:2]:
        small.predict(batch, torch.full((len(batch), 2), SIDE))
    assert len(few.kept) == 1 and few.evictions == 1 and few.held_bytes > 1


def test_outputs_of_an_earlier_batch_are_refused(gpu: Log) -> None:
    """Their memory holds the next batch's."""
    replaying = GraphDetector(on_gpu("ssd"), TapeCapture())
    images = pictures(2).to("cuda")
    first = replaying.raw(images[:1], SIZES[:1])
    replaying.raw(images[1:], SIZES[1:])
    with pytest.raises(RuntimeError, match="overwritten by a later batch"):
        replaying.postprocess(first, SIZES[:1])


def test_work_that_cannot_be_recorded_runs_without(gpu: Log) -> None:
    """A backbone that waits for the host: the same detections, nothing is recorded any more, and the note
    says where it waits. An error of the model itself is raised."""
    images, model = pictures(2).to("cuda"), on_gpu("faster_rcnn")
    replaying = GraphDetector(model, TapeCapture())
    expected = [model.predict(images[n:], SIZES[n:]) for n in (0, 1)]
    assert_equal(replaying.predict(images, SIZES), expected[0])
    model.backbone.register_forward_hook(
        lambda module, given, maps: [one.sum().item() for one in maps.values()] and None
    )
    assert_equal(replaying.predict(images, SIZES), expected[0])  # recorded before
    assert_equal(replaying.predict(images[1:], SIZES[1:]), expected[1])
    assert_equal(replaying.predict(images, SIZES), expected[0])
    assert not replaying.recordings.kept and replaying.recordings.without == 2
    assert re.fullmatch(
        "no CUDA graphs: capture of 1x160x160 failed: operation not permitted when stream is capturing:"
        r" _local_scalar_dense at zoo/detectors/faster_rcnn.py:\d+ features; 2 batches ran without; before"
        " that, 1 captured of network and choice of detections, 1 further batches replayed one",
        replaying.note,
    )
    broken = GraphDetector(on_gpu("ssd"), TapeCapture())
    with pytest.raises(ValueError, match="resize images to the size"):
        broken.predict(torch.cat([images, images], dim=3), SIZES)


def test_a_classifier_is_replayed() -> None:
    """On a CPU, whose operators go to the tape too."""
    model = create_model("resnet14_slim", None, 3).eval()
    replaying, images = GraphClassifier(model, TapeCapture()), pictures(2)
    with torch.inference_mode():
        first = replaying(images[:1])
        assert torch.equal(replaying(images[1:]), model(images[1:]))
        assert torch.equal(first, model(images[:1])) and replaying.recordings.hits == 1
    assert replaying.note.startswith("CUDA graphs: 1 captured of the network, 1 further batches replayed one")
