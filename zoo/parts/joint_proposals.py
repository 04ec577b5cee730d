"""Proposals and training targets of the faster-rcnn.pytorch lineage (DetNet_pytorch): all pyramid levels are
ranked and suppressed together.

Pixels are inclusive: widths are x2 - x1 + 1, but decoded far corners lie at centre + half the width, without
    the - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detection_zoo.kernels.nms import nms
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou, clip_boxes

OFFSET = 1.0
CODER = BoxCoder(offset=OFFSET, far_offset=0.0, cap=None)


class PairedRPNHead(nn.Module):
    """3x3 convolution, ReLU, then two logits and four deltas an anchor (Ren et al. 2015, section 3.1).

    The score that ranks proposals is not the softmax that the loss sees: it is taken over channels (c, c + A)
    of the 2A logits, and dealt out to anchors in pairs (2a, 2a + 1) afterwards. `ranking_scores` keeps that
    order, for checkpoints trained with it.

    Args:
        in_channels: of every level.
        per_cell: A, anchors a cell.
        channels: between the convolutions.
    """

    def __init__(self, in_channels: int, per_cell: int, *, channels: int = 512) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, 2 * per_cell, 1)
        self.deltas = nn.Conv2d(channels, 4 * per_cell, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, 2A, H, W) and deltas (N, 4A, H, W) of each level (N, C, H, W)."""
        hidden = [functional.relu(self.conv(level)) for level in levels]
        return [self.objectness(x) for x in hidden], [self.deltas(x) for x in hidden]


def ranking_scores(logits: Tensor) -> Tensor:
    """Foreground scores (N, H * W * A) that rank proposals, from one level's logits (N, 2A, H, W); see
    PairedRPNHead."""
    n, channels, height, width = logits.shape
    paired = logits.view(n, 2, channels // 2, height, width).softmax(dim=1).view(n, channels, height, width)
    return paired.permute(0, 2, 3, 1).reshape(n, -1, 2)[..., 1]


def cells_first(maps: Tensor, numbers: int) -> Tensor:
    """One level's map (N, A * numbers, H, W) as (N, H * W * A, numbers)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, numbers)


def joint_proposals(
    scores: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    sizes: Tensor,
    *,
    pre_nms: int,
    post_nms: int,
    nms_threshold: float,
) -> Tensor:
    """The best boxes of all levels together after one NMS, filled with zero boxes to a fixed number.

    Args:
        scores: (N, A) float, all levels one after another.
        deltas: (N, A, 4) float.
        anchors: (A, 4) float pixels.
        sizes: (N, 2) heights and widths in pixels that boxes are clipped to.
        pre_nms, post_nms: boxes an image before and after suppression.
        nms_threshold: IoU above which the lower-scored box goes.

    Returns:
        (N, post_nms, 5) image index and box; zero boxes stand at the end where fewer remain.
    """
    rois = deltas.new_zeros(len(scores), post_nms, 5)
    rois[:, :, 0] = torch.arange(len(scores), device=scores.device)[:, None]
    for index, (score, delta) in enumerate(zip(scores, deltas, strict=True)):
        _, boxes = best_proposals(
            score,
            delta,
            anchors,
            sizes[index].tolist(),
            pre_nms=pre_nms,
            post_nms=post_nms,
            nms_threshold=nms_threshold,
        )
        rois[index, : len(boxes), 1:] = boxes
    return rois


def best_proposals(
    score: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    size: Sequence[float],
    *,
    pre_nms: int,
    post_nms: int,
    nms_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Anchors (M,) int64 that one image keeps, by falling score, and their boxes (M, 4); arguments as in
    `joint_proposals`, of one image."""
    boxes = clip_boxes(CODER.decode(deltas, anchors), size, OFFSET)
    order = score.sort(descending=True, stable=True).indices[:pre_nms]
    kept = order[nms(boxes[order], score[order], nms_threshold, offset=OFFSET, max_keep=post_nms)]
    return kept, boxes[kept]


def padded_iou(boxes: Tensor, truth: Tensor) -> Tensor:
    """IoU (R, G) where zero boxes (R, 4) overlap nothing at all (-1) and zero ground truth (G, 4) overlaps
    with 0."""
    overlaps = box_iou(boxes, truth, OFFSET)
    empty_truth = (truth[:, 2] - truth[:, 0] + OFFSET == 1) & (truth[:, 3] - truth[:, 1] + OFFSET == 1)
    empty_boxes = (boxes[:, 2] - boxes[:, 0] + OFFSET == 1) & (boxes[:, 3] - boxes[:, 1] + OFFSET == 1)
    overlaps = overlaps.masked_fill(empty_truth[None], 0.0)
    return overlaps.masked_fill(empty_boxes[:, None], -1.0)


@dataclass
class AnchorTargets:
    """Of every anchor of every image: labels (N, A) 1, 0 or -1 (not sampled); targets (N, A, 4); inside and
    outside weights (N, A)."""

    labels: Tensor
    targets: Tensor
    inside: Tensor
    outside: Tensor


def _drop(labels: Tensor, value: int, most: int, draws: np.random.RandomState) -> None:
    """Take all but `most` labels (A,) of that value out of the sample, by a permutation."""
    having = torch.nonzero(labels == value).squeeze(1)
    if len(having) > most:
        order = torch.from_numpy(draws.permutation(len(having))).to(labels.device)
        labels[having[order[: len(having) - most]]] = -1


def anchor_targets(
    anchors: Tensor,
    truth: Tensor,
    size: Sequence[float],
    draws: np.random.RandomState,
    *,
    foreground: float = 0.7,
    background: float = 0.3,
    count: int = 256,
    foreground_fraction: float = 0.5,
) -> AnchorTargets:
    """Label, sample and code the anchors of a batch (Ren et al. 2015, section 3.1.2, as faster-rcnn.pytorch
    does it).

    The quota of background is taken before foreground is thinned out, and the loss weight is 1 / samples of
    the LAST image.

    Args:
        anchors: (A, 4) float pixels of all levels.
        truth: (N, G, 4) float boxes, filled up with zero boxes.
        size: (height, width) of the first image; anchors that cross it take no part.
        draws: source of the permutations; foreground of an image is drawn before its background.
        foreground, background: IoU at least this is an object; below this, background.
        count, foreground_fraction: anchors an image, and how many of them may be objects.

    Raises:
        ValueError: no anchor lies inside the image.
    """
    height, width = size
    inside = torch.nonzero(
        (anchors[:, 0] >= 0)
        & (anchors[:, 1] >= 0)
        & (anchors[:, 2] < int(width))
        & (anchors[:, 3] < int(height))
    ).squeeze(1)
    if len(inside) == 0:
        raise ValueError(
            f"no anchor lies inside an image of {height} x {width}; the image is smaller than every anchor"
        )
    n, picked = len(truth), anchors[inside]
    result = AnchorTargets(
        truth.new_full((n, len(anchors)), -1.0),
        truth.new_zeros(n, len(anchors), 4),
        *(truth.new_zeros(n, len(anchors)) for _ in range(2)),
    )
    for index in range(n):
        overlaps = padded_iou(picked, truth[index])
        best, assigned = overlaps.max(dim=1)
        labels = torch.full_like(best, -1)
        labels[best < background] = 0
        highest = overlaps.max(dim=0).values
        highest[highest == 0] = 1e-5  # a truth that nothing overlaps claims no anchor
        labels[(overlaps == highest).any(dim=1)] = 1
        labels[best >= foreground] = 1
        wanted = count - int((labels == 1).sum())
        _drop(labels, 1, int(foreground_fraction * count), draws)
        _drop(labels, 0, wanted, draws)
        result.labels[index, inside] = labels
        result.targets[index, inside] = CODER.encode(truth[index, assigned], picked)
    result.inside = (result.labels == 1).to(truth.dtype)
    sampled = result.labels >= 0
    result.outside = sampled.to(truth.dtype) / int(sampled[-1].sum())
    return result


@dataclass
class RoISamples:
    """Sampled RoIs: rois (N, S, 5), labels (N, S) int64 with 0 for background, assigned truth (N, S), targets
    (N, S, 4), inside (N, S, 4)."""

    rois: Tensor
    labels: Tensor
    assigned: Tensor
    targets: Tensor
    inside: Tensor


def _draw_rois(
    best: Tensor,
    draws: np.random.RandomState,
    count: int,
    most: int,
    foreground: float,
    background: tuple[float, float],
) -> tuple[Tensor, int]:
    """Indices of `count` RoIs, objects first, and the number of objects: objects without, background with
    replacement."""
    objects = torch.nonzero(best >= foreground).squeeze(1)
    others = torch.nonzero((best < background[1]) & (best >= background[0])).squeeze(1)

    def repeated(rows: Tensor, number: int) -> Tensor:
        return rows[torch.from_numpy(np.floor(draws.rand(number) * len(rows))).long().to(rows.device)]

    if len(objects) and len(others):
        kept = min(most, len(objects))
        objects = objects[torch.from_numpy(draws.permutation(len(objects))).to(objects.device)[:kept]]
        return torch.cat([objects, repeated(others, count - kept)]), kept
    if len(objects):
        return repeated(objects, count), count
    if len(others):
        return repeated(others, count), 0
    raise ValueError("neither an object nor background among the proposals: every box is empty")


def sample_rois(
    rois: Tensor,
    truth: Tensor,
    truth_labels: Tensor,
    draws: np.random.RandomState,
    *,
    count: int = 128,
    foreground_fraction: float = 0.25,
    foreground: float = 0.5,
    background: tuple[float, float] = (0.0, 0.5),
    coder: BoxCoder = CODER,
) -> RoISamples:
    """Append the ground truth to the proposals and draw RoIs for the box head (Girshick 2015, section 2.3, as
    faster-rcnn.pytorch does it).

    Args:
        rois: (N, R, 5) proposals, zero boxes included.
        truth: (N, G, 4) float boxes, filled up with zero boxes.
        truth_labels: (N, G) int64, at least 1; 0 for fill.
        draws: source of the random numbers.
        count, foreground_fraction: RoIs an image, and how many of them may be objects.
        foreground, background: IoU from which a RoI is an object, and the half-open range of background.
        coder: codes the targets, with the deviations of the targets as weights.
    """
    n, groups = len(rois), []
    appended = torch.cat([torch.zeros_like(truth[..., :1]), truth], dim=2)
    for index, candidates in enumerate(torch.cat([rois, appended], dim=1)):
        best, assigned = padded_iou(candidates[:, 1:], truth[index]).max(dim=1)
        rows, objects = _draw_rois(
            best, draws, count, round(foreground_fraction * count), foreground, background
        )
        labels = truth_labels[index, assigned[rows]].clone()
        labels[objects:] = 0
        chosen = candidates[rows].clone()
        chosen[:, 0] = index
        targets = coder.encode(truth[index, assigned[rows]], chosen[:, 1:]) * (labels > 0)[:, None]
        groups.append(
            (chosen, labels, assigned[rows], targets, (labels > 0)[:, None].expand(-1, 4).to(rois.dtype))
        )
    return (
        RoISamples(*(torch.stack([group[field] for group in groups]) for field in range(5)))
        if n
        else RoISamples(*([rois] * 5))
    )
