"""Operators of detectors, each with a CPU and a CUDA backend; see kernels/README.md.

Examples:
    >>> import torch, detection_zoo as dz
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    >>> dz.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    [0, 2]
"""

from __future__ import annotations

from detection_zoo.kernels.nms import batched_nms, nms, nms_padded
from detection_zoo.kernels.nms_labelled import nms_labelled
from detection_zoo.kernels.nms_sorted import nms_sorted
from detection_zoo.kernels.roi_align import multilevel_roi_align, roi_align
from detection_zoo.kernels.roi_crop import affine_grid, roi_crop
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms

__all__ = [
    "affine_grid",
    "batched_nms",
    "multilevel_roi_align",
    "nms",
    "nms_labelled",
    "nms_padded",
    "nms_sorted",
    "roi_align",
    "roi_crop",
    "roi_pool",
    "soft_nms",
]
