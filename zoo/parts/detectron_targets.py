"""Training targets as Detectron samples them: labels of anchors, RoIs with their classes, masks and
keypoints.

What differs from maskrcnn-benchmark: negatives of the proposal network are drawn WITH replacement, and not at
    all where candidates
are fewer than wanted; RoIs are matched in the pixels of the original image; crowd boxes count as ground truth
of RoIs; the mask of a RoI is the one whose bounding box overlaps it most. Pixels are inclusive: widths are x2
- x1 + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou

OFFSET = 1.0
IGNORED = -1
Draws = np.random.RandomState | ModuleType  # numpy's legacy generator, or the module numpy.random for its own


@dataclass
class AnchorTargets:
    """Of one image: labels (A,) int64, 1 object, 0 background, -1 left out; deltas (A, 4), zero unless the
    label is 1."""

    labels: Tensor
    deltas: Tensor

    @property
    def labelled(self) -> int:
        """How many anchors enter the loss."""
        return int((self.labels >= 0).sum())


@dataclass
class RoISamples:
    """Of one image: boxes (R, 4) in original pixels, objects first; labels (R,) int64 in 0..K-1, -1
    background; objects (R,) int64 rows of ground truth.

    keypoint_boxes (S, 4) and keypoint_objects (S,): a second draw, for the keypoint head; none without
    keypoints.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    keypoint_boxes: Tensor | None = None
    keypoint_objects: Tensor | None = None


@dataclass(frozen=True)
class AnchorRules:
    """How anchors of an image are labelled.

    positive, negative: IoU from which an anchor is an object, below which it is background. count: anchors an
        image, at most `fraction`
    of them objects. straddle: pixels by which an anchor may leave the image; below 0 any anchor may.
    """

    positive: float = 0.7
    negative: float = 0.3
    count: int = 256
    fraction: float = 0.5
    straddle: float = 0.0


@dataclass(frozen=True)
class RoIRules:
    """How RoIs of an image are drawn: `count`, at most `fraction` of them objects (IoU >= foreground);
    background has IoU in [low, high)."""

    count: int = 512
    fraction: float = 0.25
    foreground: float = 0.5
    high: float = 0.5
    low: float = 0.0


def _rows(mask: Tensor) -> np.ndarray:
    return np.flatnonzero(mask.cpu().numpy())


def anchor_targets(
    anchors: Tensor, boxes: Tensor, size: Sequence[float], draws: Draws, rules: AnchorRules
) -> AnchorTargets:
    """Label the anchors of one image and draw those that enter the loss (Ren et al. 2015, section 3.1.2, with
    Detectron's sampling).

    Args:
        anchors: (A, 4) of every level, in input pixels.
        boxes: (G, 4) ground truth without crowds, in input pixels.
        size: (height, width) of the image in input pixels, without padding.
        draws: source of random numbers; positives are thinned out first, then negatives are drawn.
        rules: thresholds and counts.
    """
    labels = torch.full((len(anchors),), IGNORED, dtype=torch.int64, device=anchors.device)
    inside = torch.ones_like(labels, dtype=torch.bool)
    if rules.straddle >= 0:
        edge = anchors.new_tensor([size[1], size[0]]) + rules.straddle
        inside = (anchors[:, :2] >= -rules.straddle).all(dim=1) & (anchors[:, 2:] < edge).all(dim=1)
    rows = torch.nonzero(inside).squeeze(1)
    kept = anchors[rows]
    deltas = torch.zeros_like(anchors)
    best, nearest = torch.zeros(len(rows), device=anchors.device, dtype=anchors.dtype), torch.zeros_like(rows)
    chosen = torch.full_like(rows, IGNORED)
    if len(boxes) and len(rows):
        overlaps = box_iou(kept, boxes, OFFSET)
        best, nearest = overlaps.max(dim=1)
        chosen[(overlaps == overlaps.max(dim=0).values).any(dim=1)] = 1
        chosen[best >= rules.positive] = 1
    _thin(chosen, int(rules.fraction * rules.count), draws)
    negatives = _rows(best < rules.negative)
    wanted = rules.count - int((chosen == 1).sum())
    if len(negatives) > wanted:  # and none at all otherwise, as in the source
        chosen[torch.from_numpy(negatives[draws.randint(len(negatives), size=wanted)]).to(chosen.device)] = 0
    labels[rows] = chosen
    positives = torch.nonzero(chosen == 1).squeeze(1)
    if len(positives):
        deltas[rows[positives]] = BoxCoder().encode(boxes[nearest[positives]], kept[positives])
    return AnchorTargets(labels, deltas)


def _thin(labels: Tensor, most: int, draws: Draws) -> None:
    """Leave out positives, in place, until `most` are left."""
    positives = _rows(labels == 1)
    if len(positives) > most:
        labels[
            torch.from_numpy(draws.choice(positives, size=len(positives) - most, replace=False)).to(
                labels.device
            )
        ] = IGNORED


def sample_rois(
    proposals: Tensor,
    boxes: Tensor,
    classes: Tensor,
    crowd: Tensor,
    draws: Draws,
    rules: RoIRules,
    keypoints: Tensor | None = None,
) -> RoISamples:
    """Draw the RoIs of one image that the heads are trained on (Girshick 2015, section 2.3).

    Args:
        proposals: (R, 4) in original pixels.
        boxes: (G, 4) ground truth, crowds included, in original pixels; all but crowds are candidates, before
            the proposals.
        classes: (G,) int64 in 0..K-1.
        crowd: (G,) bool; a proposal on a crowd counts as an object of its class.
        draws: source of random numbers: objects, then background, then keypoints' objects.
        keypoints: (G, P, 3) x, y, visibility in original pixels, for a second draw.
        rules: thresholds and counts.
    """
    candidates = torch.cat([boxes, proposals])
    best, nearest = (
        torch.zeros(len(candidates), dtype=boxes.dtype, device=boxes.device),
        torch.zeros(len(candidates), dtype=torch.int64, device=boxes.device),
    )
    if len(boxes):
        best[len(boxes) :], nearest[len(boxes) :] = box_iou(proposals, boxes, OFFSET).max(dim=1)
        best[: len(boxes)], nearest[: len(boxes)] = (
            torch.where(crowd, -1.0, 1.0).to(best),
            torch.arange(len(boxes), device=boxes.device),
        )
    most = int(np.round(rules.fraction * rules.count))
    objects = _draw(_rows(best >= rules.foreground), most, draws)
    others = _draw(_rows((best < rules.high) & (best >= rules.low)), rules.count - len(objects), draws)
    rows = torch.from_numpy(np.append(objects, others).astype(np.int64)).to(boxes.device)
    labels = classes[nearest[rows]] if len(boxes) else torch.full_like(rows, IGNORED)
    labels[len(objects) :] = IGNORED
    samples = RoISamples(candidates[rows], labels, nearest[rows])
    if keypoints is not None:
        chosen = _keypoint_rows(candidates, best, nearest, keypoints, most, draws, rules)
        samples.keypoint_boxes, samples.keypoint_objects = candidates[chosen], nearest[chosen]
    return samples


def _draw(rows: np.ndarray, most: int, draws: Draws) -> np.ndarray:
    """At most so many, in the order drawn."""
    return draws.choice(rows, size=min(most, len(rows)), replace=False) if len(rows) else rows


def _keypoint_rows(
    candidates: Tensor,
    best: Tensor,
    nearest: Tensor,
    keypoints: Tensor,
    most: int,
    draws: Draws,
    rules: RoIRules,
) -> Tensor:
    """Candidates on an object that has a visible keypoint inside the candidate."""
    if not len(keypoints):
        return torch.zeros(0, dtype=torch.int64, device=candidates.device)
    points = keypoints[nearest]  # (R, P, 3)
    within = (
        (points[..., :2] >= candidates[:, None, :2]) & (points[..., :2] <= candidates[:, None, 2:])
    ).all(dim=2)
    rows = _rows((best >= rules.foreground) & (within & (points[..., 2] > 0)).any(dim=1))
    if len(rows) > most:
        rows = draws.choice(rows, size=most, replace=False)
    return torch.from_numpy(rows.astype(np.int64)).to(candidates.device)


def masks_of(boxes: Tensor, polygons: Sequence[Sequence[Sequence[float]]], scale: Tensor) -> Tensor:
    """The object whose polygons' bounding box overlaps a box most.

    Args:
        boxes: (R, 4) in original pixels.
        polygons: of each object, flat [x, y, ...] lists in input pixels; an object without any (a crowd) is
            nobody's.
        scale: (4,) x and y factors from original to input pixels, twice.

    Returns:
        (R,) int64 rows of `polygons`, -1 where no object has any.
    """
    drawn = [row for row, parts in enumerate(polygons) if parts]
    if not drawn or not len(boxes):
        return torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    corners = [torch.cat([boxes.new_tensor(part).view(-1, 2) for part in polygons[row]]) for row in drawn]
    extents = torch.stack([torch.cat([each.amin(dim=0), each.amax(dim=0)]) for each in corners]) / scale
    return torch.tensor(drawn, device=boxes.device)[box_iou(boxes, extents, OFFSET).argmax(dim=1)]
