"""Operators of detectors, each with a CPU and a CUDA backend; see docs/kernels.md.

>>> import torch, detection_zoo as dz
>>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
>>> dz.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
[0, 2]
"""

from __future__ import annotations

__all__ = [
    *("nms", "batched_nms", "nms_padded", "soft_nms"),
    *("roi_align", "multilevel_roi_align", "roi_pool", "roi_crop"),
]
