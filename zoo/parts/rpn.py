"""Region proposal network: head, labels, losses and proposals (Faster R-CNN, Ren et al. 2015, section
3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou, widened
from detection_zoo.zoo.parts.losses import smooth_l1_sum
from detection_zoo.zoo.parts.matcher import BACKGROUND, match
from detection_zoo.zoo.parts.proposals import ProposalRule, Proposals, Size, select_proposals
from detection_zoo.zoo.parts.sampler import Sampler


def by_anchor(maps: Tensor, values: int) -> Tensor:
    """A head's map (N, A * values, H, W) as (N, H * W * A, values): row, column, anchor."""
    images, _, height, width = maps.shape
    return maps.view(images, -1, values, height, width).permute(0, 3, 4, 1, 2).reshape(images, -1, values)


class RpnHead(nn.Module):
    """3x3 convolution and ReLU, then 1x1 for one sigmoid objectness and four deltas an anchor; shared by all
    levels.

    Args:
        in_channels: of every level.
        anchors: A, anchors a cell.
        channels: of the 3x3; default: in_channels.
    """

    def __init__(self, in_channels: int, anchors: int, *, channels: int | None = None) -> None:
        super().__init__()
        channels = in_channels if channels is None else channels
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, anchors * 4, 1)
        for layer in self.children():
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits (N, A, H, W) and deltas (N, 4 * A, H, W, anchor-major) of each level."""
        hidden = [F.relu(self.conv(feature), inplace=True) for feature in features]
        return [self.objectness(x) for x in hidden], [self.deltas(x) for x in hidden]

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (N, H * W * A) that rank the proposals, from one level's logits."""
        return by_anchor(logits, 1).squeeze(2).sigmoid()

    def flat(self, logits: Tensor) -> Tensor:
        """Logits (N, H * W * A, ...) of one level in the order of the anchors, as `loss` takes them."""
        return by_anchor(logits, 1).squeeze(2)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of sampled anchors: logits as `flat` gives them, labels (S,) 0 or 1."""
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


@dataclass
class RpnLabels:
    """Labels of one image's anchors: labels (A,) float, 1 object, 0 background, -1 not used; targets (A, 4)
    deltas; the sampled indices."""

    labels: Tensor
    targets: Tensor
    positive: Tensor
    negative: Tensor


class RegionProposalNetwork(nn.Module):
    """Proposals from features, and the losses that train them.

    Args:
        head: see RpnHead; others with its methods may stand in.
        anchors: see AnchorGenerator.
        coder: deltas to boxes and back.
        sampler: which labelled anchors enter the losses.
        test, train: rules of selection.
        foreground_iou, background_iou, low_quality, zero_overlap: of zoo.parts.matcher.match.
        straddle: anchors that leave the true image by more pixels than this are not used in training; None:
            all are used.
        inside_only: anchors outside take no part in the matching either (a ground truth's best anchor is an
            inside one).
        smooth_l1_beta: of the box loss.
    """

    def __init__(
        self,
        head: nn.Module,
        anchors: AnchorGenerator,
        coder: BoxCoder,
        sampler: Sampler,
        *,
        test: ProposalRule,
        train: ProposalRule,
        foreground_iou: float = 0.7,
        background_iou: float = 0.3,
        low_quality: bool = True,
        zero_overlap: bool = True,
        straddle: float | None = 0.0,
        inside_only: bool = False,
        smooth_l1_beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        self.head, self.anchors, self.coder, self.sampler = head, anchors, coder, sampler
        self.rules = {False: test, True: train}
        self.foreground_iou, self.background_iou, self.low_quality, self.zero_overlap = (
            foreground_iou,
            background_iou,
            low_quality,
            zero_overlap,
        )
        self.straddle, self.inside_only, self.smooth_l1_beta = straddle, inside_only, smooth_l1_beta

    def propose(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Size],
        padded: Size,
    ) -> list[Proposals]:
        """Proposals of each image by the mode's rule; `padded` is (height, width) of the whole batch."""
        rule = self.rules[self.training]
        limits = [padded] * len(sizes) if rule.clip_to == "batch" else sizes
        with torch.no_grad():
            scores = [widened(self.head.scores(level)) for level in logits]
            return select_proposals(
                scores,
                [by_anchor(level, 4) for level in deltas],
                anchors,
                limits,
                coder=self.coder,
                rule=rule,
            )

    def label(self, anchors: Tensor, boxes: Tensor, size: Size) -> RpnLabels:
        """Label and sample the anchors (A, 4) of one image with ground truth boxes (G, 4)."""
        inside = self._inside(anchors, size)
        matches = self._match(boxes, anchors, inside)
        labels = (matches >= 0).to(anchors.dtype)
        labels[~inside | (matches < BACKGROUND)] = -1
        targets = (
            self.coder.encode(boxes[matches.clamp(min=0)], anchors)
            if len(boxes)
            else torch.zeros_like(anchors)
        )
        return RpnLabels(labels, targets, *self.sampler(labels))

    def _inside(self, anchors: Tensor, size: Size) -> Tensor:
        if self.straddle is None:
            return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        (height, width), edge = size, self.straddle
        x1, y1, x2, y2 = anchors.unbind(1)
        return (x1 >= -edge) & (y1 >= -edge) & (x2 < width + edge) & (y2 < height + edge)

    def _match(self, boxes: Tensor, anchors: Tensor, inside: Tensor) -> Tensor:
        rows = torch.nonzero(inside).squeeze(1) if self.inside_only else slice(None)
        found = match(
            box_iou(boxes, anchors[rows], self.coder.offset),
            self.foreground_iou,
            self.background_iou,
            low_quality=self.low_quality,
            zero_overlap=self.zero_overlap,
        )
        if not self.inside_only:
            return found
        matches = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
        matches[rows] = found
        return matches

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[RpnLabels]
    ) -> dict[str, Tensor]:
        """Mean objectness loss over the sampled anchors; smooth L1 over the positives, divided by the number
        of all sampled.

        Args:
            logits, deltas: of each level, as the head gives them.
            labels: one an image.
        """
        flat = torch.cat([self.head.flat(level) for level in logits], dim=1)
        boxes = torch.cat([by_anchor(level, 4) for level in deltas], dim=1)
        chosen = [(i, torch.cat([each.positive, each.negative])) for i, each in enumerate(labels)]
        picked = torch.cat([flat[i, rows] for i, rows in chosen])
        wanted = torch.cat([labels[i].labels[rows] for i, rows in chosen])
        predicted = torch.cat([boxes[i, each.positive] for i, each in enumerate(labels)])
        targets = torch.cat([each.targets[each.positive] for each in labels])
        box = smooth_l1_sum(predicted, targets, self.smooth_l1_beta) / max(len(picked), 1)
        return {"loss_rpn_objectness": self.head.loss(picked, wanted), "loss_rpn_box": box}
