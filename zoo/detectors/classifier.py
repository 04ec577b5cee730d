"""A classifier for pretraining backbones: backbone, global average pooling, the backbone's norm if any, and
one linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone


class Classifier(nn.Module):
    """Images to class logits from the backbone's last map.

    Args:
        backbone: any.
        num_classes: K.
        dropout: probability, before the linear layer.
    """

    parts = {"backbone": ("backbone",), "heads": ("norm", "fc")}

    def __init__(self, backbone: Backbone, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self.norm = backbone.classifier_norm()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(list(backbone.specs.values())[-1].channels, num_classes)

    def pooled(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to the mean (N, C) of the last map."""
        return list(self.backbone(images).values())[-1].mean(dim=(2, 3))

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """(N, 3, H, W) to logits (N, K); with labels (N,) int64 the loss, in the form of detectors' losses.
        Sizes are ignored."""
        logits = self.fc(self.dropout(self.norm(self.pooled(images))))
        return logits if labels is None else {"loss_class": F.cross_entropy(logits, labels)}
