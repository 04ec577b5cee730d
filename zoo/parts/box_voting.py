"""Box voting: a detection's box becomes the weighted mean of overlapping boxes (Gidaris and Komodakis 2015,
section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from detection_zoo.zoo.parts.boxes import box_iou

METHODS = ("id", "temp_avg", "avg", "iou_avg", "generalized_avg", "quasi_sum")


def vote_boxes(
    kept: Tensor,
    kept_scores: Tensor,
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    *,
    method: str = "id",
    beta: float = 1.0,
    offset: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Refine the boxes kept by NMS with all boxes of their class, as in Detectron.

    Args:
        kept: (M, 4) boxes after suppression, float32 pixels; kept_scores: (M,).
        boxes: (R, 4) all boxes of the class before suppression; scores: (R,).
        threshold: boxes with at least this IoU vote, weighted by their scores.
        method: Detectron's scoring method: "id" keeps the score, the others combine the voters' scores.
        beta: parameter of the scoring method.
        offset: added to every side.

    Returns:
        boxes (M, 4) and scores (M,). A kept box without voters is unchanged.
    """
    if method not in METHODS:
        raise ValueError(
            f"unknown scoring method {method!r} of box voting; choose one of {', '.join(METHODS)}"
        )
    overlaps = box_iou(kept, boxes, offset)
    votes = overlaps >= threshold  # (M, R)
    weights = votes * scores.double()
    total = weights.sum(dim=1, keepdim=True)
    voted = (weights @ boxes.double() / total).to(kept)
    return torch.where(total > 0, voted, kept), _combine(
        kept_scores, scores.double(), overlaps.double(), votes, method, beta
    )


def _combine(
    kept_scores: Tensor, scores: Tensor, overlaps: Tensor, votes: Tensor, method: str, beta: float
) -> Tensor:
    if method == "id":
        return kept_scores
    count = votes.sum(dim=1)
    voters, weights = votes * scores, votes * overlaps
    combined = {
        "temp_avg": lambda: (votes * torch.sigmoid(torch.logit(scores) / beta)).sum(dim=1) / count,
        "avg": lambda: voters.sum(dim=1) / count,
        "iou_avg": lambda: (weights * scores).sum(dim=1) / weights.sum(dim=1),
        "generalized_avg": lambda: ((votes * scores**beta).sum(dim=1) / count) ** (1 / beta),
        "quasi_sum": lambda: voters.sum(dim=1) / count.double() ** beta,
    }[method]()
    return torch.where(count > 0, combined, kept_scores.double()).to(kept_scores)
