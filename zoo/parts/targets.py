"""Training of the box branch: its samplers.

A sampler maps the proposals and the targets of a batch to one `SampledBoxes` per image. There are three: of
maskrcnn-benchmark, of Detectron and of faster-rcnn.pytorch; selected by `RoiConventions.sampling`. The
samplers of the proposal network are in zoo/parts/anchor_targets.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detection_zoo.zoo.conventions import RoiConventions
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou
from detection_zoo.zoo.parts.fixed_size import fixed_size, present_first, present_rows, take
from detection_zoo.zoo.parts.matching import BalancedSampler, match
from detection_zoo.zoo.records import Target

Draws = np.random.RandomState | ModuleType  # numpy's legacy generator, or numpy.random for the global one


@dataclass
class SampledBoxes:
    """The sampled proposals of one image; lists of fixed size are padded with absent rows: NaN box, label -1,
    row -1.

    boxes (S, 4); labels (S,) int64, 0 background, 1..K; targets (S, 4) deltas; matches (S,) int64, the ground
    truth (any for background); rows (S,): their positions among the candidates; positive, negative: indices
    among the candidates; candidate_labels: of all candidates. mask_matches (S,): whose mask is the target of
    an object, if not its match; -1 for none. keypoint_boxes (T, 4), keypoint_matches (T,): separate samples
    for the keypoint branch, if the source has them.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    matches: Tensor
    rows: Tensor
    positive: Tensor
    negative: Tensor
    candidate_labels: Tensor
    mask_matches: Tensor | None = None
    keypoint_boxes: Tensor | None = None
    keypoint_matches: Tensor | None = None


class Sampler:
    """What the samplers of anchors and of proposals share.

    Args:
        coder: of the boxes.
        rule: counts, thresholds and, of proposals, order.
        draws: random source of the samplers that use numpy; default: numpy's global state, which training
            checkpoints save.
    """

    def __init__(self, coder: BoxCoder, rule: Any, draws: Draws | None = None) -> None:
        self.coder, self.rule, self.draws = coder, rule, draws
        self.pick = BalancedSampler(rule.samples, rule.positive_fraction)

    @property
    def random(self) -> Draws:
        """Random source of the samplers that use numpy."""
        return np.random if self.draws is None else self.draws


class BoxSampler(Sampler):
    """Samples proposals of a batch to train the box branch, as maskrcnn-benchmark.

    crowd: "drop": crowd objects are not targets; "keep": they are objects; "proposals": they are targets of
        the box branch only. original_pixels: boxes are sampled, and masks and keypoints rasterised, in
        original pixels.
    """

    rule: RoiConventions
    crowd = "drop"
    original_pixels = False

    def __call__(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> list[SampledBoxes]:
        """Sample proposals (R_i, 4) of each image, in pixels of the network's input as the targets' boxes."""
        labelled = [self.label(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]
        picked = self.pick.batch([labels for _, labels, _ in labelled])
        sampled = []
        for target, (boxes, labels, matches), drawn in zip(targets, labelled, picked, strict=True):
            rows, truth = torch.cat(drawn), target.boxes.to(boxes.dtype)
            if fixed_size(rows):
                rows = present_first(rows, self.rule.samples)
            if self.rule.order == "position":
                rows = present_first(rows, len(rows), ascending=True)
            own, nearest = take(boxes, rows, torch.nan), take(matches, rows, 0)
            deltas = torch.zeros_like(own)
            if len(truth):
                deltas = self.coder.encode(truth[nearest], own).where(present_rows(own)[:, None], 0.0)
            sampled.append(SampledBoxes(own, take(labels, rows, -1), deltas, nearest, rows, *drawn, labels))
        return sampled

    def sample(self, proposals: Tensor, target: Target) -> SampledBoxes:
        """Sample the proposals (R, 4) of one image."""
        return self([proposals], [target])[0]

    def label(self, proposals: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates (C, 4), the proposals (R, 4) of one image and its ground truth boxes; their labels (C,),
        -1 if never sampled; their ground truth (C,)."""
        rule, truth = self.rule, target.boxes.to(proposals.dtype)
        parts = [proposals, truth]
        boxes = torch.cat(parts if rule.ground_truth == "last" else parts[::-1])
        quality = box_iou(truth, boxes, self.coder.offset)
        matches = match(quality, rule.foreground_iou, rule.background_iou)
        labels = class_labels(matches, target.labels)
        if rule.background_low > 0 and len(quality):
            labels[(labels == 0) & (quality.max(dim=0).values < rule.background_low)] = -1
        return boxes, labels.where(present_rows(boxes), -1), matches.clamp(min=0)


def class_labels(matches: Tensor, classes: Tensor) -> Tensor:
    """Labels (R,) int64 from matches (R,) of `match` and classes (G,) 0..K-1: 1..K, 0 for background, -1
    between the thresholds."""
    if not len(classes):
        return torch.zeros_like(matches)
    return torch.where(matches >= 0, classes[matches.clamp(min=0)] + 1, matches + 1)


class NumpyBoxSampler(BoxSampler):
    """A sampler that draws per image from numpy's generator, on the host, as the source does.

    Args:
        coder, rule: as in BoxSampler.
    """

    def __call__(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> list[SampledBoxes]:
        """Sample proposals (R_i, 4) of each image, as BoxSampler."""
        return [self.sample(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]


class DetectronBoxSampler(NumpyBoxSampler):
    """Detectron's sampling: by numpy in original pixels (inclusive, widths x2 - x1 + 1), objects first,
    ground truth before the proposals; a proposal on a crowd is an object of its class.

    The mask of a RoI is the one whose bounding box has the highest IoU with it. Keypoints are sampled
    separately.

    Args:
        coder, rule: as in BoxSampler.
        draws: source of random numbers: objects, then background, then keypoints' objects; default: numpy's
            global state, which training checkpoints save.
    """

    crowd = "proposals"
    original_pixels = True

    def sample(self, proposals: Tensor, target: Target) -> SampledBoxes:
        """Sample one image's proposals (R, 4)."""
        scale = proposals.new_tensor([*target.scale, *target.scale])
        truth = target.boxes.to(proposals.dtype) / scale
        candidates = torch.cat([truth, proposals / scale])
        crowd = target.crowd
        if crowd is None:
            crowd = torch.zeros(len(truth), dtype=torch.bool)
        crowd = crowd.to(truth.device, non_blocking=True)
        best, nearest = self.nearest(candidates, truth, crowd)
        most = int(np.round(self.rule.positive_fraction * self.rule.samples))
        found = self.draw(candidates, truth, target.labels, best, nearest, most)
        if target.keypoints is not None:
            keypoints = target.keypoints / torch.cat([scale[:2], scale.new_ones(1)])
            rows = self.keypoint_rows(candidates, best, nearest, keypoints, most)
            found.keypoint_boxes, found.keypoint_matches = candidates[rows] * scale, nearest[rows]
        if target.polygons is not None:
            found.mask_matches = torch.full_like(found.labels, -1)
            own = found.boxes[found.positive]
            found.mask_matches[found.positive] = masks_of(own, target.polygons, scale, self.coder.offset)
        found.boxes = found.boxes * scale
        return found

    def nearest(self, candidates: Tensor, truth: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor]:
        """IoU (R,) with the nearest ground truth and its row (R,): of candidates (R, 4), the G ground truth
        boxes (G, 4) first; those are objects but for crowds (G,) bool."""
        best = torch.zeros(len(candidates), dtype=truth.dtype, device=truth.device)
        nearest = torch.zeros(len(candidates), dtype=torch.int64, device=truth.device)
        count = len(truth)
        if count:
            overlaps = box_iou(candidates[count:], truth, self.coder.offset)
            best[count:], nearest[count:] = overlaps.max(dim=1)
            best[:count] = torch.where(crowd, -1.0, 1.0).to(best)
            nearest[:count] = torch.arange(count, device=truth.device)
        return best, nearest

    def draw(
        self, candidates: Tensor, truth: Tensor, classes: Tensor, best: Tensor, nearest: Tensor, most: int
    ) -> SampledBoxes:
        """Draw at most `most` objects among candidates (R, 4), and background to fill up (Girshick 2015,
        section 2.3); classes (G,) 0..K-1, the rest as `nearest` gives it."""
        rule = self.rule
        objects = self.choice(_rows(best >= rule.foreground_iou), most)
        others = _rows((best < rule.background_iou) & (best >= rule.background_low))
        others = self.choice(others, rule.samples - len(objects))
        rows = torch.from_numpy(np.append(objects, others).astype(np.int64)).to(truth.device)
        boxes, matches, count = candidates[rows], nearest[rows], len(objects)
        labels = classes[matches] + 1 if len(truth) else torch.zeros_like(rows)
        labels[count:] = 0
        targets = torch.zeros_like(boxes)
        if count:
            targets[:count] = self.coder.encode(truth[matches[:count]], boxes[:count])
        place = torch.arange(len(rows), device=rows.device)
        return SampledBoxes(boxes, labels, targets, matches, place, place[:count], place[count:], labels)

    def choice(self, rows: np.ndarray, most: int) -> np.ndarray:
        """At most `most` of the rows, in the order drawn."""
        return self.random.choice(rows, size=min(most, len(rows)), replace=False) if len(rows) else rows

    def keypoint_rows(
        self, candidates: Tensor, best: Tensor, nearest: Tensor, keypoints: Tensor, most: int
    ) -> Tensor:
        """Candidates (R, 4) on an object that has a visible keypoint (G, P, 3) inside the candidate."""
        if not len(keypoints):
            return torch.zeros(0, dtype=torch.int64, device=candidates.device)
        points = keypoints[nearest]  # (R, P, 3)
        near, far = candidates[:, None, :2], candidates[:, None, 2:]
        within = ((points[..., :2] >= near) & (points[..., :2] <= far)).all(dim=2)
        rows = _rows((best >= self.rule.foreground_iou) & (within & (points[..., 2] > 0)).any(dim=1))
        if len(rows) > most:
            rows = self.random.choice(rows, size=most, replace=False)
        return torch.from_numpy(rows.astype(np.int64)).to(candidates.device)


def _rows(mask: Tensor) -> np.ndarray:
    return np.flatnonzero(mask.cpu().numpy())


def masks_of(
    boxes: Tensor, polygons: Sequence[Sequence[Sequence[float]]], scale: Tensor, offset: float
) -> Tensor:
    """The object whose polygons' bounding box overlaps a box most.

    Args:
        boxes: (R, 4) in original pixels.
        polygons: of each object, flat [x, y, ...] lists in input pixels; an object without any (a crowd) is
            never assigned.
        scale: (4,) x and y factors from original to input pixels, twice.
        offset: added to the sides.

    Returns:
        (R,) int64 rows of `polygons`, -1 if no object has any.
    """
    drawn = [row for row, parts in enumerate(polygons) if parts]
    if not drawn or not len(boxes):
        return torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    corners = [torch.cat([boxes.new_tensor(part).view(-1, 2) for part in polygons[row]]) for row in drawn]
    extents = torch.stack([torch.cat([each.amin(dim=0), each.amax(dim=0)]) for each in corners]) / scale
    return torch.tensor(drawn, device=boxes.device)[box_iou(boxes, extents, offset).argmax(dim=1)]


class FixedCountBoxSampler(NumpyBoxSampler):
    """faster-rcnn.pytorch's sampling: always `samples` RoIs per image, objects first and without replacement,
    background with replacement, ground truth after the proposals; zero boxes are never sampled.

    Args:
        coder, rule: as in BoxSampler; background has an IoU in [background_low, background_iou).
    """

    crowd = "keep"

    def sample(self, proposals: Tensor, target: Target) -> SampledBoxes:
        """Sample one image's proposals (R, 4), zero boxes included."""
        truth = one_at_least(target.boxes.to(proposals.dtype))
        candidates = torch.cat([proposals, truth])
        best, assigned = padded_iou(candidates, truth, self.coder.offset).max(dim=1)
        rows, objects = self.draw(best)
        labels = functional.pad(target.labels + 1, (0, len(truth) - len(target.labels)))[assigned[rows]]
        labels[objects:] = 0
        boxes, matches = candidates[rows], assigned[rows]
        targets = self.coder.encode(truth[matches], boxes) * (labels > 0)[:, None]
        place = torch.arange(len(rows), device=rows.device)
        return SampledBoxes(boxes, labels, targets, matches, rows, place[:objects], place[objects:], labels)

    def draw(self, best: Tensor) -> tuple[Tensor, int]:
        """Indices (S,) drawn from the best IoU (R,) of every candidate, objects first, and how many are."""
        rule, draws = self.rule, self.random
        objects = torch.nonzero(best >= rule.foreground_iou).squeeze(1)
        others = torch.nonzero((best < rule.background_iou) & (best >= rule.background_low)).squeeze(1)

        def repeated(rows: Tensor, number: int) -> Tensor:
            return rows[torch.from_numpy(np.floor(draws.rand(number) * len(rows))).long().to(rows.device)]

        if len(objects) and len(others):
            kept = min(round(rule.positive_fraction * rule.samples), len(objects))
            order = torch.from_numpy(draws.permutation(len(objects))).to(objects.device)
            return torch.cat([objects[order[:kept]], repeated(others, rule.samples - kept)]), kept
        if len(objects):
            return repeated(objects, rule.samples), rule.samples
        if len(others):
            return repeated(others, rule.samples), 0
        raise ValueError("neither an object nor background among the proposals: every box is empty")


def one_at_least(truth: Tensor) -> Tensor:
    """Ground truth (G, 4), or one zero box (1, 4) if there is none."""
    return truth if len(truth) else truth.new_zeros(1, 4)


def padded_iou(boxes: Tensor, truth: Tensor, offset: float) -> Tensor:
    """IoU (R, G), -1 for zero boxes (R, 4) and 0 for zero ground truth (G, 4)."""

    def empty(rows: Tensor) -> Tensor:
        return ((rows[:, 2:] - rows[:, :2] + offset) == offset).all(dim=1)

    overlaps = box_iou(boxes, truth, offset).masked_fill(empty(truth)[None], 0.0)
    return overlaps.masked_fill(empty(boxes)[:, None], -1.0)


BOX_SAMPLERS: dict[str, Callable[[BoxCoder, RoiConventions], BoxSampler]] = {
    "balanced": BoxSampler,
    "detectron": DetectronBoxSampler,
    "faster_rcnn_pytorch": FixedCountBoxSampler,
}
