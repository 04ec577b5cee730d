"""Losses that several detectors share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_l1_sum(predicted: Tensor, target: Tensor, beta: float, used: Tensor | None = None) -> Tensor:
    """Summed smooth L1: quadratic below beta, linear above (Fast R-CNN, Girshick 2015, equation 3, with the
    transition at beta).

    Args:
        predicted, target: (R, 4) float.
        used: (R,) bool; other rows are ignored whatever their values. None: all rows.
    """
    if used is not None:
        predicted, target = (part.where(used[:, None], 0.0) for part in (predicted, target))
    return F.smooth_l1_loss(predicted, target, reduction="sum", beta=beta)


def sigmoid_focal(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss per class and candidate, not reduced (Lin et al. 2017b, equation 5).

    Args:
        logits: (A, K) float, one sigmoid per class.
        targets: (A,) int64, 1..K a class, 0 background, below 0 ignored.
        alpha: weight of the positives; 1 - alpha of the rest.
        gamma: exponent that reduces the loss of well-classified candidates.

    Returns:
        (A, K) float, 0 if ignored.
    """
    classes = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    positive = targets[:, None] == classes
    probability = torch.sigmoid(logits)
    loss_positive = -alpha * (1 - probability) ** gamma * F.logsigmoid(logits)
    loss_negative = -(1 - alpha) * probability**gamma * F.logsigmoid(-logits)
    return torch.where(positive, loss_positive, loss_negative) * (targets >= 0)[:, None]
