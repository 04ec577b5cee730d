"""Region proposal network: head, labels, losses and proposals (Faster R-CNN, Ren et al. 2015, section
3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.zoo.conventions import ProposalConventions, RpnConventions
from detection_zoo.zoo.parts.anchor_targets import ANCHOR_SAMPLERS, SampledAnchors
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder, widened
from detection_zoo.zoo.parts.fixed_size import take
from detection_zoo.zoo.parts.losses import smooth_l1_sum
from detection_zoo.zoo.parts.proposals import Proposals, Size, select_proposals
from detection_zoo.zoo.parts.sparse_gradient import SparseGradientConv2d


def by_anchor(maps: Tensor, values: int) -> Tensor:
    """A head's map (N, A * values, H, W) as (N, H * W * A, values): row, column, anchor."""
    images, _, height, width = maps.shape
    return maps.view(images, -1, values, height, width).permute(0, 3, 4, 1, 2).reshape(images, -1, values)


class RpnHead(nn.Module):
    """3x3 convolution and ReLU, then 1x1 for one sigmoid objectness and four deltas per anchor; shared by all
    levels.

    Args:
        in_channels: of every level.
        anchors: A, anchors per cell.
        channels: of the 3x3; default: in_channels.
    """

    logits_per_anchor = 1

    def __init__(self, in_channels: int, anchors: int, *, channels: int | None = None) -> None:
        super().__init__()
        channels = in_channels if channels is None else channels
        self.conv = SparseGradientConv2d(in_channels, channels, 3)
        self.objectness = nn.Conv2d(channels, anchors * self.logits_per_anchor, 1)
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
        """Logits (N, H * W * A, ...) of one level in the order of the anchors, as input of `loss`."""
        return by_anchor(logits, 1).squeeze(2)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of sampled anchors: logits as returned by `flat`, labels (S,) 0 or 1, -1 not used."""
        used = labels >= 0
        whole = F.binary_cross_entropy_with_logits(
            logits, labels.clamp(min=0).to(logits.dtype), weight=used.to(logits.dtype), reduction="sum"
        )
        return whole / used.sum().clamp(min=1)


class PairedRpnHead(RpnHead):
    """The head with two logits per anchor (Ren et al. 2015, section 3.1), as in faster-rcnn.pytorch.

    The score that ranks proposals is not the softmax of the loss: it is computed over channels (c, c + A) of
        the 2A logits and then assigned to anchors in pairs (2a, 2a + 1). `scores` reproduces this for
        checkpoints trained with it.

    Args:
        in_channels, anchors, channels: as in RpnHead.
    """

    logits_per_anchor = 2

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (N, H * W * A) that rank the proposals, from one level's logits (N, 2A, H, W)."""
        images, channels, height, width = logits.shape
        paired = logits.view(images, 2, channels // 2, height, width).softmax(dim=1)
        return by_anchor(paired.view(logits.shape), 2)[..., 1]

    def flat(self, logits: Tensor) -> Tensor:
        """Logits (N, H * W * A, 2) of one level in the order of the anchors, as input of `loss`."""
        return by_anchor(logits, 2)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of sampled anchors: logits (S, 2), labels (S,) 0 or 1, -1 not used."""
        whole = F.cross_entropy(logits, labels.long(), ignore_index=-1, reduction="sum")
        return whole / (labels >= 0).sum().clamp(min=1)


RPN_HEADS = {"sigmoid": RpnHead, "paired": PairedRpnHead}


class RegionProposalNetwork(nn.Module):
    """Head, anchors, and the rules for proposals and training labels.

    Args:
        head: RpnHead, or another with `scores`, `flat` and `loss`.
        anchors, coder: of the proposals.
        rule: labels, sampling and losses.
        test, train: selection of proposals in each mode.
    """

    def __init__(
        self,
        head: nn.Module,
        anchors: AnchorGenerator,
        coder: BoxCoder,
        rule: RpnConventions,
        *,
        test: ProposalConventions,
        train: ProposalConventions,
    ) -> None:
        super().__init__()
        self.head, self.anchors, self.coder, self.rule = head, anchors, coder, rule
        self.sampler = ANCHOR_SAMPLERS[rule.sampling](coder, rule)
        self.rules = {False: test, True: train}
        self.select = select_proposals

    def propose(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Size],
        padded: Size,
        fixed: bool = False,
    ) -> list[Proposals]:
        """Proposals of each image by the mode's rule; `padded` is (height, width) of the whole batch, `fixed`
        selects lists of fixed size."""
        rule = self.rules[self.training]
        limits = [padded] * len(sizes) if rule.clip_to == "batch" else sizes
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():  # exporters split graphs at it
            scores = [self.head.scores(widened(level)) for level in logits]
            select = partial(select_proposals, fixed=True) if fixed else self.select
            return select(
                scores,
                [by_anchor(level, 4) for level in deltas],
                anchors,
                limits,
                coder=self.coder,
                rule=rule,
            )

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[SampledAnchors]
    ) -> dict[str, Tensor]:
        """Mean objectness loss over the sampled anchors; smooth L1 over the positives, divided by the number
        of all sampled.

        Args:
            logits, deltas: outputs of the head for each level.
            labels: one per image.
        """
        picked, wanted, box = self.sampled_losses(logits, deltas, labels)
        if not len(picked):  # an image smaller than every anchor
            return {"loss_rpn_objectness": picked.sum(), "loss_rpn_box": box}
        count = (wanted >= 0).sum().clamp(min=1)
        return {"loss_rpn_objectness": self.head.loss(picked, wanted), "loss_rpn_box": box / count}

    def sampled_losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[SampledAnchors]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (S, ...) and labels (S,) of all sampled anchors, -1 in absent rows, and the summed smooth L1
        of the positives; arguments as in `losses`."""
        flat = torch.cat([self.head.flat(level) for level in logits], dim=1)
        boxes = torch.cat([by_anchor(level, 4) for level in deltas], dim=1)
        chosen = [(i, torch.cat([each.positive, each.negative])) for i, each in enumerate(labels)]
        picked = torch.cat([flat[i, rows.clamp(min=0)] for i, rows in chosen])
        wanted = torch.cat([take(labels[i].labels, rows, -1.0) for i, rows in chosen])
        used = torch.cat([each.positive for each in labels]) >= 0
        predicted = torch.cat([boxes[i, each.positive.clamp(min=0)] for i, each in enumerate(labels)])
        targets = torch.cat([take(each.targets, each.positive, 0.0) for each in labels])
        return picked, wanted, smooth_l1_sum(predicted, targets, self.rule.smooth_l1_beta, used)


class DetectronProposalNetwork(RegionProposalNetwork):
    """The proposal network with Detectron's losses; arguments as in RegionProposalNetwork."""

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[SampledAnchors]
    ) -> dict[str, Tensor]:
        """Summed objectness loss over a count of anchors; smooth L1 of the positives over the image's own
        count, mean over images."""
        by_level = self.level_losses(logits, deltas, labels)
        return {name: sum(level[name] for level in by_level) for name in by_level[0]}

    def level_losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[SampledAnchors]
    ) -> list[dict[str, Tensor]]:
        """The losses of each level, finest first; their sum is the loss."""
        rule, drawn = self.rule, [max(len(each.positive) + len(each.negative), 1) for each in labels]
        whole = rule.samples * len(labels) if rule.objectness_over == "configured" else sum(drawn)
        found, start = [], 0
        for level, boxes in zip(
            [self.head.flat(level) for level in logits],
            [by_anchor(level, 4) for level in deltas],
            strict=True,
        ):
            end = start + level.shape[1]
            objectness, box = level.sum() * 0, boxes.sum() * 0
            for image, each in enumerate(labels):
                wanted, targets = each.labels[start:end], each.targets[start:end]
                used, positive = wanted >= 0, wanted == 1
                objectness = objectness + F.binary_cross_entropy_with_logits(
                    level[image, used], wanted[used].to(level), reduction="sum"
                )
                own = smooth_l1_sum(boxes[image, positive], targets[positive], rule.smooth_l1_beta)
                box = box + own / drawn[image]
            found.append({"loss_rpn_objectness": objectness / whole, "loss_rpn_box": box / len(labels)})
            start = end
        return found


class LastImageProposalNetwork(RegionProposalNetwork):
    """The proposal network with faster-rcnn.pytorch's losses; arguments as in RegionProposalNetwork."""

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[SampledAnchors]
    ) -> dict[str, Tensor]:
        """Mean objectness loss over the sampled anchors; smooth L1 divided by the LAST image's samples, mean
        over images."""
        picked, wanted, box = self.sampled_losses(logits, deltas, labels)
        last = len(labels[-1].positive) + len(labels[-1].negative)
        return {
            "loss_rpn_objectness": self.head.loss(picked, wanted),
            "loss_rpn_box": box / last / len(labels),
        }


PROPOSAL_NETWORKS = {
    "balanced": RegionProposalNetwork,
    "detectron": DetectronProposalNetwork,
    "faster_rcnn_pytorch": LastImageProposalNetwork,
}
