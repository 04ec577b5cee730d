"""Matching, coding and loss of SSD (Liu et al., ECCV 2016, section 2.2). Boxes are fractions of the image,
priors (cx, cy, w, h)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from detection_zoo.zoo.parts.boxes import box_iou
from detection_zoo.zoo.parts.fixed_size import rows_of
from detection_zoo.zoo.parts.losses import smooth_l1_sum

BACKGROUND = 0  # class 0 of the network's C = K + 1 channels
UNUSED = -1  # target of a prior that the loss ignores


def prior_corners(priors: Tensor) -> Tensor:
    """Corners (P, 4) of priors (P, 4) given as (cx, cy, w, h)."""
    return torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], dim=1)


@dataclass(frozen=True)
class PriorCoder:
    """Boxes as offsets from priors, divided by one variance for the centre and one for the size."""

    variances: tuple[float, float] = (0.1, 0.2)

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Offsets (P, 4) that turn priors (P, 4) into boxes (P, 4), one box for each prior."""
        centre, size = self.variances
        offsets = ((boxes[:, :2] + boxes[:, 2:]) / 2 - priors[:, :2]) / (centre * priors[:, 2:])
        return torch.cat([offsets, torch.log((boxes[:, 2:] - boxes[:, :2]) / priors[:, 2:]) / size], dim=1)

    def decode(self, offsets: Tensor, priors: Tensor) -> Tensor:
        """Boxes (P, 4) from offsets (P, 4); never clipped, so fractions may leave 0..1."""
        centre, size = self.variances
        centres = priors[:, :2] + offsets[:, :2] * centre * priors[:, 2:]
        sides = priors[:, 2:] * torch.exp(offsets[:, 2:] * size)
        near = centres - sides / 2
        return torch.cat([near, sides + near], dim=1)


@dataclass(frozen=True)
class PriorTargets:
    """Training targets of the priors of one image: classes (P,) int64 with 0 for background; offsets (P, 4)
    float, valid if classes > 0."""

    classes: Tensor
    offsets: Tensor


def match_priors(
    boxes: Tensor, classes: Tensor, priors: Tensor, *, threshold: float, coder: PriorCoder
) -> PriorTargets:
    """Match every prior with the ground truth of highest IoU >= threshold, and every ground truth with its
    best prior.

    If several ground truths share a best prior, the last one is matched, and the others may have no prior.

    Args:
        boxes: (G, 4) float, corners as fractions.
        classes: (G,) int64, 1..K.
        priors: (P, 4) float.
        threshold: IoU from which a prior is an object.
        coder: codes the offsets.
    """
    if len(boxes) == 0:
        return PriorTargets(classes.new_zeros(len(priors)), torch.zeros_like(priors))
    overlaps = box_iou(boxes, prior_corners(priors))  # (G, P)
    best_overlap, truth = overlaps.max(dim=0)
    order = torch.arange(len(boxes), device=boxes.device)
    # (P,) the last ground truth with this best prior
    owner = torch.full_like(truth, -1).scatter_reduce(0, overlaps.argmax(dim=1), order, "amax")
    truth = torch.where(owner >= 0, owner, truth)
    target = torch.where((owner < 0) & (best_overlap < threshold), BACKGROUND, classes[truth])
    return PriorTargets(target, coder.encode(boxes[truth], priors))


def mine_negatives(hardness: Tensor, positive: Tensor, *, negatives: int) -> Tensor:
    """The hardest background priors of each image: `negatives` times its positives, at most P - 1.

    Args:
        hardness: (N, P) float; higher is harder. Positives are excluded.
        positive: (N, P) bool.
        negatives: negatives for each positive.

    Returns:
        (N, P) bool.
    """
    wanted = (positive.sum(dim=1, keepdim=True) * negatives).clamp(max=positive.shape[1] - 1)
    order = hardness.masked_fill(positive, 0).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) < wanted


@dataclass(frozen=True)
class MultiBoxLoss:
    """SSD's two loss terms, both divided by the number of positives of the whole batch (at least 1; the
    original divides by zero).

    threshold: IoU of a positive; negatives: per positive, by hard negative mining; scores: "softmax" for
        cross entropy over C classes, "sigmoid" for
    a binary one in each of the K object classes (TensorFlow's SSD).
    """

    coder: PriorCoder
    threshold: float = 0.5
    negatives: int = 3
    scores: Literal["softmax", "sigmoid"] = "softmax"

    def __call__(
        self,
        offsets: Tensor,
        logits: Tensor,
        priors: Tensor,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Losses `loss_box` and `loss_class`.

        Args:
            offsets: (N, P, 4) float; logits: (N, P, C) float; priors: (P, 4) float.
            boxes, classes: of each image, as in `match_priors`.
        """
        with torch.no_grad():
            matched = [
                match_priors(b, c, priors, threshold=self.threshold, coder=self.coder)
                for b, c in zip(boxes, classes, strict=True)
            ]
            target = torch.stack([m.classes for m in matched])  # (N, P)
            target_offsets = torch.stack([m.offsets for m in matched])  # (N, P, 4)
            positive = target > BACKGROUND
            chosen = positive | mine_negatives(
                self._hardness(logits, target), positive, negatives=self.negatives
            )
            target = target.where(chosen, UNUSED).flatten()
            positive = positive.flatten()
            matched_rows, rows = rows_of(positive), rows_of(chosen.flatten())
        count = positives_of_a_process(positive.sum())
        box = smooth_l1_sum(
            offsets.flatten(0, 1)[matched_rows],
            target_offsets.flatten(0, 1)[matched_rows],
            1.0,
            positive[matched_rows],
        )
        return {
            "loss_box": box / count,
            "loss_class": self._class_loss(logits.flatten(0, 1)[rows], target[rows]) / count,
        }

    def _hardness(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, P): the class loss of each prior."""
        if self.scores == "sigmoid":
            return functional.binary_cross_entropy_with_logits(
                logits[..., 1:], _one_hot(logits, target), reduction="none"
            ).sum(dim=2)
        return torch.logsumexp(logits, dim=2) - logits.gather(2, target[..., None]).squeeze(2)

    def _class_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum over the rows (R, C) whose target (R,) is not UNUSED."""
        if self.scores == "sigmoid":
            return functional.binary_cross_entropy_with_logits(
                logits[:, 1:],
                _one_hot(logits, target.clamp(min=BACKGROUND)),
                weight=(target != UNUSED)[:, None].to(logits.dtype),
                reduction="sum",
            )
        return functional.cross_entropy(logits, target, reduction="sum", ignore_index=UNUSED)


def positives_of_a_process(count: Tensor) -> Tensor:
    """The divisor of the losses: the positives of the whole batch over all processes, divided by the number
    of processes (so that averaged gradients equal those of the whole batch, as with the source's
    DataParallel).

    Args:
        count: scalar, number of positives of this process.

    Returns:
        scalar, at least one over all processes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count.clamp(min=1)
    total = count.float()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / torch.distributed.get_world_size()


def _one_hot(logits: Tensor, target: Tensor) -> Tensor:
    """Targets of the K object classes (..., K), all zero for background."""
    return functional.one_hot(target, logits.shape[-1])[..., 1:].to(logits.dtype)
