"""Training of the proposal network: the samplers of the proposal network.

A sampler maps the anchors of a batch and the ground truth of each image to one `SampledAnchors` per image.
There are three: of maskrcnn-benchmark, of Detectron and of faster-rcnn.pytorch; selected by
    `RpnConventions.sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.conventions import RpnConventions
from detection_zoo.zoo.parts.boxes import box_iou
from detection_zoo.zoo.parts.fixed_size import rows_of
from detection_zoo.zoo.parts.matching import BACKGROUND, match
from detection_zoo.zoo.parts.proposals import Size
from detection_zoo.zoo.parts.targets import Sampler, one_at_least, padded_iou

NO_CLAIM = 1e-5  # replaces a best IoU of 0: a ground truth without overlap gets no anchor


@dataclass
class SampledAnchors:
    """Labels of one image's anchors: labels (A,) float, 1 object, 0 background, -1 not used; targets (A, 4)
    deltas; positive, negative: the sampled indices, as returned by BalancedSampler."""

    labels: Tensor
    targets: Tensor
    positive: Tensor
    negative: Tensor

    @classmethod
    def of(cls, labels: Tensor, targets: Tensor) -> SampledAnchors:
        """All anchors with a label, without absent rows."""
        return cls(labels, targets, *(torch.nonzero(labels == value).squeeze(1) for value in (1, 0)))


class AnchorSampler(Sampler):
    """Labels and samples anchors as maskrcnn-benchmark (Ren et al. 2015, section 3.1.2)."""

    rule: RpnConventions

    def __call__(
        self, anchors: Tensor, truth: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[SampledAnchors]:
        """Sample a batch: anchors (A, 4) of all levels, ground truth (G_i, 4) and (height, width) of each
        image, without padding, in pixels of the network's input."""
        labelled = [
            self.label(anchors, boxes.to(anchors.dtype), size)
            for boxes, size in zip(truth, sizes, strict=True)
        ]
        picked = self.pick.batch([labels for labels, _ in labelled])
        return [SampledAnchors(*own, *rows) for own, rows in zip(labelled, picked, strict=True)]

    def sample(self, anchors: Tensor, truth: Tensor, size: Size) -> SampledAnchors:
        """Sample one image's anchors (A, 4) by ground truth (G, 4)."""
        return self(anchors, [truth], [size])[0]

    def label(self, anchors: Tensor, truth: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Labels (A,) and targets (A, 4) of one image's anchors (A, 4), by ground truth (G, 4)."""
        inside = self.inside(anchors, size)
        matches = self.match(truth, anchors, inside)
        labels = (matches >= 0).to(anchors.dtype)
        labels[~inside | (matches < BACKGROUND)] = -1
        targets = torch.zeros_like(anchors)
        if len(truth):
            targets = self.coder.encode(truth[matches.clamp(min=0)], anchors)
        return labels, targets

    def inside(self, anchors: Tensor, size: Size) -> Tensor:
        """Mark (A,) bool the anchors (A, 4) that exceed the image by at most the allowed margin."""
        if self.rule.straddle is None:
            return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        (height, width), edge = size, self.rule.straddle
        x1, y1, x2, y2 = anchors.unbind(1)
        return (x1 >= -edge) & (y1 >= -edge) & (x2 < width + edge) & (y2 < height + edge)

    def match(self, truth: Tensor, anchors: Tensor, inside: Tensor) -> Tensor:
        """The ground truth (G, 4) of each anchor (A, 4), as returned by `match`."""
        rule = self.rule
        rows = rows_of(inside) if rule.inside_only else slice(None)
        quality = box_iou(truth, anchors[rows], self.coder.offset)
        if rule.inside_only:
            quality = quality.where(inside[rows], -1.0)
        found = match(
            quality,
            rule.foreground_iou,
            rule.background_iou,
            low_quality=rule.low_quality,
            zero_overlap=rule.zero_overlap,
        )
        if not rule.inside_only:
            return found
        matches = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
        matches[rows] = found.where(inside[rows], BACKGROUND)
        return matches


class NumpyAnchorSampler(AnchorSampler):
    """A sampler that draws per image from numpy's generator, on the host, as the source does."""

    def __call__(
        self, anchors: Tensor, truth: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[SampledAnchors]:
        """Sample a batch, as AnchorSampler."""
        return [
            self.sample(anchors, boxes.to(anchors.dtype), size)
            for boxes, size in zip(truth, sizes, strict=True)
        ]


class DetectronAnchorSampler(NumpyAnchorSampler):
    """Detectron's sampling: negatives are drawn WITH replacement, and none if there are too few candidates;
    anchors outside the image are not used.

    Args:
        coder, rule: as in AnchorSampler.
        draws: source of random numbers; positives are subsampled first, then negatives are drawn; default:
            numpy's global state, which training checkpoints save.
    """

    def sample(self, anchors: Tensor, truth: Tensor, size: Size) -> SampledAnchors:
        """Sample one image's anchors (A, 4) by ground truth (G, 4) without crowds."""
        rule, labels = self.rule, torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        rows = torch.nonzero(self.inside(anchors, size)).squeeze(1)
        kept, targets = anchors[rows], torch.zeros_like(anchors)
        best, nearest = kept.new_zeros(len(rows)), torch.zeros_like(rows)
        chosen = torch.full_like(rows, -1)
        if len(truth) and len(rows):
            overlaps = box_iou(kept, truth, self.coder.offset)
            best, nearest = overlaps.max(dim=1)
            chosen[(overlaps == overlaps.max(dim=0).values).any(dim=1)] = 1
            chosen[best >= rule.foreground_iou] = 1
        self.thin(chosen, int(rule.positive_fraction * rule.samples))
        negatives = np.flatnonzero((best < rule.background_iou).cpu().numpy())
        wanted = rule.samples - int((chosen == 1).sum())
        if len(negatives) > wanted:  # and none at all otherwise, as in the source
            drawn = negatives[self.random.randint(len(negatives), size=wanted)]
            chosen[torch.from_numpy(drawn).to(chosen.device)] = 0
        labels[rows] = chosen
        own = torch.nonzero(chosen == 1).squeeze(1)
        if len(own):
            targets[rows[own]] = self.coder.encode(truth[nearest[own]], kept[own])
        return SampledAnchors.of(labels.to(anchors.dtype), targets)

    def thin(self, labels: Tensor, most: int) -> None:
        """Ignore positives of labels (A,), in place, until `most` are left."""
        positives = np.flatnonzero((labels == 1).cpu().numpy())
        if len(positives) > most:
            left_out = self.random.choice(positives, size=len(positives) - most, replace=False)
            labels[torch.from_numpy(left_out).to(labels.device)] = -1


class FirstImageAnchorSampler(NumpyAnchorSampler):
    """faster-rcnn.pytorch's sampling: anchors that cross the border of the FIRST image of the batch are not
    used; the number of background anchors is computed before objects are subsampled.

    Args:
        coder, rule: as in AnchorSampler.
        draws: source of the permutations; objects of an image are drawn before its background.
    """

    def __call__(
        self, anchors: Tensor, truth: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[SampledAnchors]:
        """Sample a batch, as AnchorSampler; raises ValueError if no anchor is inside the first image."""
        return super().__call__(anchors, truth, [sizes[0]] * len(truth))

    def sample(self, anchors: Tensor, truth: Tensor, size: Size) -> SampledAnchors:
        """Sample one image's anchors (A, 4) by ground truth (G, 4)."""
        rule, truth = self.rule, one_at_least(truth)
        rows = torch.nonzero(self.inside(anchors, (int(size[0]), int(size[1])))).squeeze(1)
        if len(rows) == 0:
            raise ValueError(
                f"no anchor is inside an image of {size[0]} x {size[1]}; the image is smaller than every"
                " anchor"
            )
        kept, labels, targets = (
            anchors[rows],
            anchors.new_full((len(anchors),), -1),
            torch.zeros_like(anchors),
        )
        overlaps = padded_iou(kept, truth, self.coder.offset)
        best, assigned = overlaps.max(dim=1)
        chosen = torch.full_like(best, -1)
        chosen[best < rule.background_iou] = 0
        highest = overlaps.max(dim=0).values
        highest[highest == 0] = NO_CLAIM
        chosen[(overlaps == highest).any(dim=1)] = 1
        chosen[best >= rule.foreground_iou] = 1
        quota = rule.samples - int((chosen == 1).sum())
        self.drop(chosen, 1, int(rule.positive_fraction * rule.samples))
        self.drop(chosen, 0, quota)
        labels[rows] = chosen
        targets[rows] = self.coder.encode(truth[assigned], kept)
        return SampledAnchors.of(labels, targets)

    def drop(self, labels: Tensor, value: int, most: int) -> None:
        """Ignore all but a random `most` of the labels (A,) with that value, in place."""
        having = torch.nonzero(labels == value).squeeze(1)
        if len(having) > most:
            order = torch.from_numpy(self.random.permutation(len(having))).to(labels.device)
            labels[having[order[: len(having) - most]]] = -1


ANCHOR_SAMPLERS = {
    "balanced": AnchorSampler,
    "detectron": DetectronAnchorSampler,
    "faster_rcnn_pytorch": FirstImageAnchorSampler,
}
