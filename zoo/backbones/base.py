"""Interface of backbones: images in, named feature maps out, with the channels and stride of each."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from detection_zoo.zoo.records import FeatureSpec


class Backbone(nn.Module):
    """Images (N, 3, H, W) to feature maps by name, finest first; necks and heads use `specs` and hard-code
    nothing.

    The children (of the backbone, or of its only child) are its stages in order of execution, which layer
    decay uses (`zoo.training.recipe.stage_factors`).
    """

    specs: dict[
        str, FeatureSpec
    ]  # name of a map -> its shape; forward returns the same keys in the same order
    classifier_dropout: float = (
        0.0  # probability before the linear layer, if the network is trained as a classifier
    )

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps (N, C, H / stride, W / stride) by name, finest first."""

    def classifier_norm(self) -> nn.Module:
        """A new layer between the pooled features (N, C) of the last map and a classifier's linear layer:
        the identity here, a LayerNorm in ConvNeXt."""
        return nn.Identity()

    def head_stage(self, stride: int = 2) -> tuple[nn.Module, int]:
        """A new stage for pooled features, with its output channels (C4 detectors); raises ValueError if a
        family has none."""
        raise ValueError(
            f"{type(self).__name__} has no stage for a head on pooled features; use a box head with its own"
            " layers, on a pyramid"
        )
