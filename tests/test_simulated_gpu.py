"""Every family on a simulated GPU: the same answers as on a CPU, no tensor on the wrong device, and no more
waits of the host than tests/reference/gpu/waits.json records.

A count that has fallen is recorded by DETECTION_ZOO_TEST_RECORD_WAITS=1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_gpu import GpuTensor, Log, memory_of, move_module, simulated_gpu
from slim_families import ROWS, SIZES, draw_first, pictures, targets
from slim_families import family as family_of
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data._utils.pin_memory import pin_memory

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Detections
from detection_zoo.zoo.training.loop import move, train_steps
from detection_zoo.zoo.training.recipe import build_optimizer

TABLE = Path(__file__).parent / "reference" / "gpu" / "waits.json"


pytestmark = pytest.mark.usefixtures("one_thread")


def check_waits(family: str, use: str, log: Log) -> None:
    """No more waits than recorded; or record them."""
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    count = sum(log.waits.values())
    if os.environ.get("DETECTION_ZOO_TEST_RECORD_WAITS"):
        table.setdefault(family, {})[use] = count
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    assert count <= table[family][use], f"{count} waits, {table[family][use]} recorded:\n{log.report()}"


def predict(model: Detector, images: Tensor) -> list[Detections]:
    """Forward and post-processing, as `Detector.predict` without its inference mode."""
    with torch.no_grad():
        return model.postprocess(
            model.raw(images, SIZES[: len(images)]), SIZES[: len(images)], SIZES[: len(images)]
        )


@pytest.mark.parametrize("family", ROWS)
def test_detections_equal_the_cpu_s(family: str) -> None:
    """One image, the second time: anchors are kept from the first."""
    model, images = family_of(family), pictures(1)
    expected = predict(model, images)[0]
    move_module(model)
    with simulated_gpu() as log:
        on_gpu = images.to("cuda")
        predict(model, on_gpu)
        log.clear()
        found = predict(model, on_gpu)[0]
        kernels = dict(log.kernels)
    check_waits(family, "inference", log)
    assert isinstance(found.boxes, GpuTensor) and kernels, "the kernels did not run"
    assert len(found) == len(expected) > 0 and torch.equal(memory_of(found.labels), expected.labels)
    torch.testing.assert_close(memory_of(found.boxes), expected.boxes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(memory_of(found.scores), expected.scores, rtol=1e-5, atol=1e-6)
    if expected.masks is not None:
        assert (memory_of(found.masks) != expected.masks).float().mean() < 1e-4
    if expected.keypoints is not None:
        torch.testing.assert_close(memory_of(found.keypoints), expected.keypoints, rtol=1e-4, atol=1e-3)


def updated(model: nn.Module, row: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses of the second of two updates by SGD (Adam makes much of the sign of a gradient that is nearly
    0), and the weights after them, on the CPU."""
    entry, manifests = load_manifests().entry(row), load_manifests()
    schedule = manifests.schedules[entry.schedule].model_copy(update={"optimizer": "sgd"})
    optimizer = build_optimizer(model, schedule)
    torch.manual_seed(0)
    batches = [(pictures(2), SIZES, targets(row))] * 2
    steps = train_steps(model, batches, optimizer, schedule, iterations=2, iterations_per_epoch=10)
    records = [next(steps), next(steps)]
    weights = {name: memory_of(value.detach()).clone() for name, value in model.state_dict().items()}
    return records[1].losses, weights


@pytest.mark.parametrize("family", ROWS)
def test_updates_equal_the_cpu_s(family: str) -> None:
    """Two updates: the same losses and weights."""
    row = ROWS[family]
    losses, weights = updated(draw_first(family_of(family).train()), row)
    model = move_module(draw_first(family_of(family).train()))
    with simulated_gpu() as log:
        found, after = updated(model, row)
    check_waits(family, "two updates of two images", log)
    assert found == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(after, weights, rtol=1e-4, atol=1e-5)


def test_a_tensor_on_the_cpu_is_noticed() -> None:
    """A buffer that was left behind raises at the operator that mixes the devices, with its place."""
    model = move_module(build_model(ROWS["ssd"], "published").eval())
    model.priors = memory_of(model.priors)
    with simulated_gpu(), pytest.raises(RuntimeError, match=r"same device.*zoo/parts/multibox\.py"):
        predict(model, pictures(1).to("cuda"))


def test_targets_are_moved_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader pins records too, so that `move` waits for no copy of theirs; crowds stay on the host."""
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda one: pinned.append(one) or one)
    own = targets(ROWS["mask_rcnn"])
    batch = pin_memory([pictures(2), SIZES, own])
    tensors = [one for target in own for one in vars(target).values() if isinstance(one, Tensor)]
    assert len(pinned) == len(tensors) + 2 and len(batch[2]) == 2
    with simulated_gpu() as log:
        moved = move(batch[2], torch.device("cuda"))
        assert not log.waits
    assert isinstance(moved[0].boxes, GpuTensor) and not isinstance(moved[0].crowd, GpuTensor)


def test_waits_are_counted_by_place() -> None:
    """Reading a number, a mask as index, and copies in both directions; arithmetic is none."""
    with simulated_gpu() as log:
        one = torch.ones(4, device="cuda")
        two = one * 3 + torch.arange(4, device="cuda")
        assert not log.waits
        two[two > 3].sum().item()
        two.cpu(), two.tolist()
        torch.tensor([1.0], device="cuda")
    kinds: dict[str, Any] = {}
    for (kind, _), count in log.waits.items():
        kinds[kind] = kinds.get(kind, 0) + count
    assert kinds == {"a mask as index": 1, "_local_scalar_dense": 1, "to the host": 2, "to the device": 1}
    assert tree_map(memory_of, [two])[0].tolist() == [3, 4, 5, 6]
