"""Compare a training step of a row with torchvision's Faster R-CNN of the same architecture: CPU time
and peak memory, on one CPU thread, in alternating fresh processes, in one or two precisions."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.benchmarks.measure.memory import peak_memory
from detection_zoo.benchmarks.tabular import Table
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.recipe import build_optimizer, training_mode

ROW = "faster_rcnn_resnet50_fpn_1x.maskrcnn_benchmark"
THEIRS = "torchvision FasterRCNN, ResNet-50-FPN"
OBJECTS = 8  # per image
RATE = 1e-6  # random weights: the time of an update does not depend on the learning rate


@dataclass(frozen=True)
class Steps:
    """Measurements of one process: CPU seconds of each step after the warm-up, RoIs of the box head in the
    last step, and the peak resident set."""

    model: str
    precision: str
    seconds: list[float]
    rois: int
    peak_mib: float


@dataclass(frozen=True)
class Batch:
    """Images of a step: their number, and (height, width) of the network's input in pixels."""

    images: int = 1
    height: int = 320
    width: int = 480

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) in 0..1 and boxes (N, OBJECTS, 4), the same for both models."""
        draw = torch.Generator().manual_seed(0)
        images = torch.rand(self.images, 3, self.height, self.width, generator=draw)
        corners = torch.rand(self.images, OBJECTS, 2, generator=draw) * torch.tensor(
            [self.width - 96.0, self.height - 96.0]
        )
        return images, torch.cat(
            [corners, corners + 32 + 60 * torch.rand(corners.shape, generator=draw)], dim=2
        )


Made = tuple[nn.Module, nn.Module, Callable[[], dict[str, Tensor]]]  # model, its box head, losses of a batch


def _own(row: str, batch: Batch) -> Made:
    entry = load_manifests().entry(row)
    if entry.schedule is None:
        raise ManifestError(f"row {row} has no training schedule")
    schedule = load_manifests().schedules[entry.schedule]
    model = training_mode(build_model(entry, weights="random"), schedule)
    nn.init.zeros_(model.rpn.head.deltas.weight)
    images, boxes = batch.pixels()
    sizes = torch.tensor([[batch.height, batch.width]] * batch.images)
    targets = [
        Target(boxes=each, labels=torch.arange(OBJECTS) % entry.classes, crowd=torch.zeros(OBJECTS).bool())
        for each in boxes
    ]
    return model, model.box.trunk, lambda: model(images * 255 - 115, sizes, targets)


def _theirs(_: str, batch: Batch) -> Made:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    size = {"min_size": min(batch.height, batch.width), "max_size": max(batch.height, batch.width)}
    model = FasterRCNN(body, num_classes=81, **size).train()
    nn.init.zeros_(model.rpn.head.bbox_pred.weight)
    images, boxes = batch.pixels()
    labels = torch.arange(OBJECTS) + 1
    targets = [{"boxes": each, "labels": labels} for each in boxes]
    return model, model.roi_heads.box_head, lambda: model(list(images), targets)


SIDES = {"ours": _own, "theirs": _theirs}


def measure(side: str, precision: str, row: str, batch: Batch, warm_up: int, steps: int) -> Steps:
    """Run the training steps of one model in this process: forward, backward, SGD update.

    With random weights, NMS may leave only a few hundred proposals in one model. So in both models the
    RPN's box deltas start at zero: proposals equal anchors, and both train on the same number of RoIs.
    """
    torch.set_num_threads(1)
    model, head, losses = SIDES[side](row, batch)
    if side == "ours":
        entry = load_manifests().entry(row)
        optimizer = build_optimizer(model, load_manifests().schedules[entry.schedule])
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=RATE, momentum=0.9, weight_decay=1e-4)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    seconds, rois = [], [0]
    head.register_forward_pre_hook(lambda _, given: rois.append(len(given[0])))
    half = precision != "float32"
    with peak_memory(torch.device("cpu"), polled=False) as peak:
        for _ in range(warm_up + steps):
            begun = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", getattr(torch, precision), enabled=half):
                total = sum(losses().values())
            total.backward()
            optimizer.step()
            seconds.append(time.process_time() - begun)
    model_name = row if side == "ours" else THEIRS
    return Steps(model_name, precision, seconds[warm_up:], rois[-1], peak.mib["resident"])


def beside(
    row: str,
    batch: Batch,
    *,
    warm_up: int,
    steps: int,
    blocks: int,
    say: Callable[[str], None],
    precision: str = "float32",
) -> dict[str, list[Steps]]:
    """Measure both models alternately, each time in a fresh process.

    Args:
        row: a Faster R-CNN with ResNet-50 and FPN. batch: images of a step. warm_up, steps: number
            per process. blocks: processes per model. say: called with a line per process.
            precision: measure both models in it too, by autocast.

    Returns:
        "ours" and "theirs", in float32; "ours PRECISION" and "theirs PRECISION" if it is not float32.
    """
    context = multiprocessing.get_context("spawn")
    sides = {"ours": ("ours", "float32"), "theirs": ("theirs", "float32")}
    if precision != "float32":
        sides |= {f"{side} {precision}": (side, precision) for side in SIDES}
    found: dict[str, list[Steps]] = {name: [] for name in sides}
    for block in range(blocks):
        for name in list(sides)[:: 1 if block % 2 == 0 else -1]:
            with context.Pool(1) as pool:
                one = pool.apply(measure, (*sides[name], row, batch, warm_up, steps))
            found[name].append(one)
            say(
                f"{one.model}, {one.precision}: {median(one.seconds):.3f} s of CPU time per step,"
                f" peak {one.peak_mib:.0f} MiB"
            )
    return found


def summary(found: dict[str, list[Steps]], batch: Batch) -> tuple[dict[str, Any], Table]:
    """Medians of all steps, the ratios, and a table of them."""
    time_s = {name: median(s for one in runs for s in one.seconds) for name, runs in found.items()}
    peak = {name: fmean(one.peak_mib for one in runs) for name, runs in found.items()}
    values = {
        "speed": time_s["theirs"] / time_s["ours"],
        "memory": peak["ours"] / peak["theirs"],
        "batch": asdict(batch),
        "runs": {name: [asdict(one) for one in runs] for name, runs in found.items()},
    }
    rows = []
    for name, runs in found.items():
        peer = name.replace("ours", "theirs")  # in the same precision
        rows.append(
            [runs[0].model, runs[0].precision, str(runs[-1].rois), f"{time_s[name]:.3f}"]
            + [f"{time_s[one] / time_s[name]:.2f}x" for one in ("theirs", peer)]
            + [f"{peak[name]:.0f}"]
            + [f"{peak[name] / peak[one]:.2f}x" for one in ("theirs", peer)]
        )
    other = "torchvision in the same precision"
    return values, Table(
        ["model", "precision", "RoIs", "CPU time per step (s)", "speed relative to torchvision float32"]
        + [f"speed relative to {other}", "peak memory (MiB)", "memory relative to torchvision float32"]
        + [f"memory relative to {other}"],
        rows,
        name="training_step",
        title=f"training step of {batch.images} x {batch.height} x {batch.width}, one thread",
    )
