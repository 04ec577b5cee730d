"""What `bench.py kernels` runs: each piece of work by us, by a peer, and by the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from detection_zoo.kernels.nms import batched_nms, nms_padded
from detection_zoo.kernels.nms_labelled import nms_labelled
from detection_zoo.kernels.nms_sorted import nms_sorted
from detection_zoo.kernels.roi_align import multilevel_roi_align
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms

IMAGE = (800, 1216)  # height, width in pixels
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
CHANNELS = 256
RATIO = 2  # sampling ratio of RoIAlign
SAMPLES = RATIO * RATIO  # of a bin
# of one IoU: four corners, two sides and two bounds of theirs, a product, a sum and a difference of areas, a
# quotient, and its comparison
IOU_FLOPS = 13


@dataclass(frozen=True)
class Case:
    """One piece of work: its name, ours, the peer's, the reference's answer, the bytes that it must move at
    least, and the floating-point operations of its definition (0: not counted)."""

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    answer: Callable[[], object] | None
    tolerance: float = 0.0  # 0: equal bit for bit
    least_bytes: int = 0
    flops: int = 0
    peer_judges: bool = True  # on a CPU; else the reference does
    by_wall: bool = False  # on a GPU: from the call to the answer on the host, not the device's time
    agrees: Callable[[], bool] | None = None  # whether ours is right; None: its answer is compared


def nms_cases(device: str, on_gpu: bool) -> list[Case]:
    """NMS of one group, and of levels and classes; on a GPU the padded form by the device's time, and the
    form that waits for the host by wall time."""
    counts = (1000, 2000, 6000, 12000) if on_gpu else (100, 1000, 12000)
    cases = [_suppression(f"NMS, {count:,} boxes", device, count, None, 0.7) for count in counts]
    cases += [_padded(device, count) for count in counts if on_gpu]
    cases += [
        each(device, images) for images in ((1, 8) if on_gpu else (1,)) for each in (_presorted, _labelled)
    ]
    levels = torch.repeat_interleave(torch.arange(5), torch.tensor([1000, 1000, 1000, 1000, 507]))
    cases.append(_suppression("batched NMS, RPN of 1 image (5 levels)", device, 4507, levels, 0.7))
    if on_gpu:
        cases.append(
            _suppression(
                "batched NMS, RPN of 8 images (40 groups of 1,000)",
                device,
                40_000,
                torch.arange(40_000) // 1000,
                0.7,
            )
        )
    return [
        *cases,
        _suppression(
            "batched NMS, 8,000 boxes of 80 classes", device, 8000, torch.arange(8000) * 7919 % 80, 0.5
        ),
    ]


def soft_nms_cases(device: str) -> list[Case]:
    """Soft-NMS beside OpenCV's on a CPU, which takes lists of whole numbers and picks about as many boxes."""

    def case(count: int) -> Case:
        boxes, scores = (each.to(device) for each in clustered_proposals(count))
        corners, sides = boxes.cpu().int()[:, :2], (boxes[:, 2:] - boxes[:, :2]).cpu().int()
        listed = torch.cat([corners, sides], 1).tolist(), scores.tolist()

        def peer() -> object:
            import cv2

            return cv2.dnn.softNMSBoxes(*listed, 0.001, 0.3, method=1)

        picked = soft_nms(boxes, scores)[0]
        return Case(
            f"soft-NMS, {count:,} boxes (peer: OpenCV)",
            lambda: soft_nms(boxes, scores)[0],
            peer,
            lambda: soft_nms(boxes.cpu(), scores.cpu(), backend="reference")[0],
            0.0,
            boxes.nbytes + scores.nbytes + picked.nbytes,
            _least_flops([len(picked)], count),
            peer_judges=False,
            by_wall=True,
        )

    return [case(count) for count in (100, 1000)]


def _max_pooling(device: str, backward: bool) -> Case:
    """RoIPool of 300 RoIs from a map of 1,024 channels at stride 16, as the C4 heads call it."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(1, 1024, 50, 76, generator=random).to(device)
    boxes = clustered_proposals(300)[0].to(device)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    upstream = torch.randn(300, 1024, 7, 7, generator=random).to(device)

    def ours(given: Tensor, backend: str | None = None) -> Tensor:
        return roi_pool(given, rois, 7, 1 / 16, backend=backend)

    def peer(given: Tensor) -> Tensor:
        return torchvision.ops.roi_pool(given, rois, 7, 1 / 16)

    def run(function: Callable[..., Tensor], *more: str) -> object:
        if not backward:
            return function(features, *more)
        leaf = features.detach().requires_grad_()
        return torch.autograd.grad(function(leaf, *more), leaf, upstream)

    name = "RoIPool 7x7, 300 RoIs, 1,024 channels, NCHW" + ", forward + backward" * backward
    tolerance = 1e-6 if backward else 0.0
    least = upstream.nbytes + features.nbytes * backward  # the output, and the map's gradient
    return Case(name, lambda: run(ours), lambda: run(peer), lambda: run(ours, "reference"), tolerance, least)


def _padded(device: str, count: int) -> Case:
    """One group in the form that never waits."""
    boxes, scores = (each.to(device) for each in clustered_proposals(count))

    def ours(backend: str | None = None) -> tuple[Tensor, Tensor]:
        return nms_padded(boxes, scores, None, 0.7, max_keep=1000, backend=backend)

    kept = int(ours()[1])
    last = ours()[0][0, kept - 1]
    return Case(
        f"padded NMS, {count:,} boxes",
        ours,
        lambda: torchvision.ops.nms(boxes, scores, 0.7),
        lambda: nms_padded(boxes.cpu(), scores.cpu(), None, 0.7, max_keep=1000, backend="reference"),
        0.0,
        boxes.nbytes + scores.nbytes + 8 * kept,
        _least_flops([kept], count if kept < 1000 else int((scores >= scores[last]).sum())),
        peer_judges=False,
    )


def _presorted(device: str, images: int) -> Case:
    """The levels of an RPN as its top-k leaves them."""
    groups = 5 * images
    boxes = clustered_proposals(1000 * groups)[0].to(device).view(groups, 1000, 4)
    flat, scores = boxes.view(-1, 4), torch.linspace(1, 0, 1000, device=device).repeat(groups)
    of = torch.arange(1000 * groups, device=device) // 1000
    kept = nms_sorted(boxes, 0.7)
    return Case(
        f"presorted NMS, RPN of {images} image{'s' * (images > 1)} ({groups} groups of 1,000)",
        lambda: nms_sorted(boxes, 0.7),
        lambda: torchvision.ops.batched_nms(flat, scores, of, 0.7),
        lambda: nms_sorted(boxes.cpu(), 0.7, backend="reference"),
        0.0,
        boxes.nbytes + kept.nbytes,
        _least_flops(kept.sum(1).tolist(), kept.numel()),
        peer_judges=False,
    )


def _labelled(device: str, images: int) -> Case:
    """The best 2,000 candidates of 80 classes of an image, as a top-k leaves them; at most 100 are kept."""
    boxes = clustered_proposals(2000 * images)[0].to(device).view(images, 2000, 4)
    labels = (torch.arange(2000 * images, device=device) * 7919 % 80).view(images, 2000)
    flat, scores = boxes.view(-1, 4), torch.linspace(1, 0, 2000, device=device).repeat(images)
    of = (labels + 80 * torch.arange(images, device=device)[:, None]).view(-1)

    def ours(backend: str | None = None) -> tuple[Tensor, Tensor]:
        where = "cpu" if backend == "reference" else device
        return nms_labelled(boxes.to(where), labels.to(where), 0.5, max_keep=100, backend=backend)

    indices, counts = ours()
    rows = torch.arange(100, device=device) < counts[:, None]
    kept = (labels.gather(1, indices.clamp(min=0)) + 80 * torch.arange(images, device=device)[:, None])[rows]
    return Case(
        f"NMS by label, 2,000 candidates of 80 classes, {images} image{'s' * (images > 1)}",
        ours,
        lambda: torchvision.ops.batched_nms(flat, scores, of, 0.5),
        lambda: ours("reference"),
        0.0,
        boxes.nbytes + labels.nbytes + indices.nbytes,
        _least_flops(kept.bincount().tolist(), int(indices.amax(1).sum()) + images),
        peer_judges=False,
    )


def _least_flops(kept: list[int], visited: int) -> int:
    """What no NMS of some groups can leave out: a kept row meets every better kept row of its group, any
    other row that is visited the one that removes it.

    Args:
        kept: rows kept of each group. visited: rows looked at, kept or not, of all.
    """
    return IOU_FLOPS * (sum(count * (count - 1) // 2 for count in kept) + visited - sum(kept))


def _suppression(name: str, device: str, count: int, groups: Tensor | None, threshold: float) -> Case:
    boxes, scores = (each.to(device) for each in clustered_proposals(count))
    if groups is None:
        kept = len(batched_nms(boxes, scores, None, threshold))
        return Case(
            name,
            lambda: batched_nms(boxes, scores, None, threshold),
            lambda: torchvision.ops.nms(boxes, scores, threshold),
            lambda: batched_nms(boxes.cpu(), scores.cpu(), None, threshold, backend="reference"),
            0.0,
            boxes.nbytes + scores.nbytes + 8 * kept,
            _least_flops([kept], count),
            by_wall=True,
        )
    groups = groups.to(device)
    most = int(groups.bincount().max())  # what a detector knows from its top-k

    def ours(
        boxes: Tensor = boxes, scores: Tensor = scores, groups: Tensor = groups, backend: str | None = None
    ) -> Tensor:
        return batched_nms(
            boxes, scores, groups, threshold, num_groups=80, max_candidates=most, backend=backend
        )

    kept = groups[ours()].bincount().tolist()
    return Case(
        name,
        ours,
        lambda: torchvision.ops.batched_nms(boxes, scores, groups, threshold),
        lambda: ours(boxes.cpu(), scores.cpu(), groups.cpu(), "reference"),
        0.0,
        boxes.nbytes + scores.nbytes + groups.nbytes + 8 * sum(kept),
        _least_flops(kept, count),
        by_wall=True,
    )


def pooling_cases(device: str, on_gpu: bool) -> list[Case]:
    """RoIPool and RoIAlign, forward and with backward, in both layouts."""
    pools = [_max_pooling(device, backward) for backward in (False, True)]
    if not on_gpu:
        return pools + [
            _pooling(device, 1, 200, 7, torch.float32, backward=backward, last=last)
            for last in (True, False)
            for backward in (False, True)
        ]
    cases = [
        _pooling(device, images, count, size, dtype)
        for images, count, size in ((1, 1000, 7), (1, 100, 14), (8, 8000, 7))
        for dtype in (torch.float32, torch.float16)
    ]
    cases += [_pooling(device, images, 512, 7, torch.float32, backward=True) for images in (1, 8)]
    return pools + cases + [_pooling(device, 1, 1000, 7, torch.float32, last=False)]


def _pooling(
    device: str,
    images: int,
    count: int,
    size: int,
    dtype: torch.dtype,
    backward: bool = False,
    last: bool = True,
) -> Case:
    """Ours takes channels-last maps where `last` says so; torchvision always the NCHW ones it is made for."""
    random = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(images, CHANNELS, int(IMAGE[0] * scale), int(IMAGE[1] * scale), generator=random).to(
            device, dtype
        )
        for scale in SCALES
    ]
    own = [each.contiguous(memory_format=torch.channels_last) for each in maps] if last else maps
    boxes = clustered_proposals(count)[0].to(device)
    # rising, as MultiScaleRoIAlign lines them up
    image = torch.arange(count, device=device) * images // count
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes], 1)
    split = [boxes[image == each] for each in range(images)]
    peer = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], size, RATIO)

    def pool(given: list[Tensor], backend: str | None = None) -> Tensor:
        return multilevel_roi_align(given, rois, size, SCALES, RATIO, channels_last=False, backend=backend)

    def judge(given: list[Tensor]) -> Tensor:
        return peer(
            {str(level): each for level, each in enumerate(given)},
            [each.to(dtype) for each in split],
            [IMAGE] * images,
        )

    item, kind = maps[0].element_size(), str(dtype).removeprefix("torch.")
    name = (
        f"multi-level RoIAlign {size}x{size}, {count:,} RoIs, {images} image{'s' * (images > 1)}, {kind}"
        + ("" if last else ", NCHW")
        + ", forward + backward" * backward
    )
    values = count * CHANNELS * size * size
    flops = values * SAMPLES * 8  # a sample is four products and sums
    if not backward:
        return Case(
            name,
            lambda: pool(own),
            lambda: judge(maps),
            lambda: pool(own, "reference"),
            1e-4 if item == 4 else 4e-3,
            values * item,
            flops,
        )
    upstream = torch.randn(count, CHANNELS, size, size, generator=random).to(device, dtype)

    def both(function: Callable[[list[Tensor]], Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [each.detach().requires_grad_() for each in given]
        return torch.autograd.grad(function(leaves), leaves, upstream)

    return Case(
        name,
        lambda: both(pool, own),
        lambda: both(judge, maps),
        lambda: both(lambda given: pool(given, "reference"), own),
        1e-3,
        values * item + sum(each.nbytes for each in maps),  # the output, and the maps' gradients
        2 * flops,
    )


def on_cuda(device: str) -> bool:
    """Whether a device's name is a GPU's."""
    return torch.device(device).type == "cuda"


def clustered_proposals(count: int) -> tuple[Tensor, Tensor]:
    """Boxes (R, 4) around common centres, as an RPN proposes them in an 800 x 1216 image, and scores (R,),
    all different."""
    random = torch.Generator().manual_seed(count)
    centre = torch.rand(max(count // 20, 1), 2, generator=random) * torch.tensor([IMAGE[1], IMAGE[0]])
    side = torch.exp(torch.rand(len(centre), 2, generator=random) * 3.2 + 2.8)
    chosen = torch.randint(len(centre), (count,), generator=random)
    middle = centre[chosen] + 0.1 * side[chosen] * torch.randn(count, 2, generator=random)
    half = 0.5 * side[chosen] * torch.exp(0.15 * torch.randn(count, 2, generator=random))
    bound = torch.tensor([IMAGE[1], IMAGE[0]] * 2, dtype=torch.float32)
    return (
        torch.minimum(torch.cat([middle - half, middle + half], 1).clamp(min=0), bound),
        torch.randperm(count, generator=random) / count,
    )
