"""What `bench.py paths` runs: detectors on the fast path, on the eager path, and torchvision's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from detection_zoo.benchmarks.measure.kernel_cases import Case
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.cuda_capture import with_graphs
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.fast import TOLERANCES, fast_model, map_error
from detection_zoo.zoo.manifest_files import load_manifests

LARGE = (800, 1344)  # height, width in pixels: 800 x 1333, padded to a multiple of 32
DETECTORS = {
    "faster_rcnn_resnet50_fpn_1x.maskrcnn_benchmark": LARGE,
    "mask_rcnn_resnet50_fpn_1x.maskrcnn_benchmark": LARGE,
    "retinanet_resnet50_fpn_1x.detectron": LARGE,
    "ssd300_vgg16_voc.hardnet": (300, 300),
    "ssd512_hardnet68_coco.hardnet": (512, 512),
}
PEERS = {  # rows that run torchvision's own code
    "faster_rcnn_resnet50_fpn_1x.maskrcnn_benchmark": "faster_rcnn_resnet50_fpn_coco_v1.torchvision"
}
HALF = {"cpu": torch.bfloat16, "cuda": torch.float16}  # the 16-bit type of the device's matrix units


def detector_cases(device: str, rows: Iterable[str], size: tuple[int, int] | None = None) -> Iterator[Case]:
    """Compare a row's fast path in float32 and in half precision with eager in float32, and with
    torchvision's detector of the same architecture if the zoo has it; batch of one image.

    Weights are random. The RPN's box deltas are zero in both models; with random deltas, one
    model would keep a few hundred proposals and the other a thousand.

    Args:
        device: "cpu" or "cuda".
        rows: names of detectors. size: image height and width in pixels; None: the size in
            DETECTORS, or LARGE.
    """
    for row in rows:
        yield from _cases(device, row, size or DETECTORS.get(row, LARGE))


def _cases(device: str, row: str, size: tuple[int, int]) -> list[Case]:
    eager = _detector(row, device)
    draw = torch.Generator().manual_seed(0)
    pixels = 20 * torch.randn(1, 3, *size, generator=draw).to(device)
    sizes = torch.tensor([size])
    name = f"{row}, {size[0]} x {size[1]}"
    works = [("eager", dtype, _prediction(eager, pixels, sizes)) for dtype in (torch.float32, HALF[device])]
    if row in PEERS:  # torchvision expects values in 0..1
        colours = (pixels / 255 + 0.5).clamp(0, 1)
        peer = _prediction(_detector(PEERS[row], device), colours, sizes)
        works.append(("torchvision", torch.float32, peer))
    copies = {dtype: fast_model(eager, dtype) for dtype in (torch.float32, HALF[device])}
    fast = {dtype: with_graphs(copy, pixels.device)[0] for dtype, copy in copies.items()}
    return [
        Case(
            f"{name}, fast {str(dtype).removeprefix('torch.')} (peer: {peer} float32)",
            _prediction(fast[dtype], pixels, sizes),
            work,
            answer=None,
            agrees=_comparison(eager, copies[dtype], pixels, dtype),
        )
        for peer, dtype, work in works
    ]


def _detector(row: str, device: str) -> Detector:
    torch.manual_seed(0)
    model = build_model(load_manifests().entry(row), weights="random", device=device).eval()
    for name, module in model.named_modules():
        if name.endswith(("rpn.head.deltas", "rpn.head.bbox_pred")):
            nn.init.zeros_(module.weight)
    return model


def _prediction(model: nn.Module, pixels: Tensor, sizes: Tensor) -> Callable[[], object]:
    def predict() -> object:
        with torch.inference_mode():
            return model.predict(pixels, sizes)

    return predict


def _comparison(eager: Detector, fast: Detector, pixels: Tensor, dtype: torch.dtype) -> Callable[[], bool]:
    """Return a check that the fast model's feature maps are within the tolerance. Detections are not
    compared: with random weights, their scores are so close that rounding decides which are kept."""
    return lambda: map_error(eager, fast, [pixels]) <= TOLERANCES[dtype].maps
