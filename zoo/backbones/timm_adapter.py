"""Any timm model that gives feature maps, as a backbone of the detectors here; timm is an extra (pip install
-e .[timm])."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES, did_you_mean

FINEST = 4  # pixels: maps of smaller strides are not built


class TimmBackbone(Backbone):
    """A feature extractor of timm; maps of stride 4, 8, 16, 32 are c2 to c5, the last of each stride.

    Args:
        body: a model of timm with `feature_info`, which returns a list of maps.
        channels_last: its maps are (N, H, W, C).
    """

    def __init__(self, body: torch.nn.Module, *, channels_last: bool) -> None:
        super().__init__()
        self.body, self.channels_last = body, channels_last
        strides, channels = body.feature_info.reduction(), body.feature_info.channels()
        self.specs = {
            f"c{stride.bit_length() - 1}": FeatureSpec(width, stride)
            for stride, width in zip(strides, channels, strict=True)
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return {
            name: one.permute(0, 3, 1, 2).contiguous() if self.channels_last else one
            for name, one in zip(self.specs, maps, strict=True)
        }


@BACKBONES.family("timm")
def timm_backbone(model: str, *, norm: str = "batch", **arguments: Any) -> TimmBackbone:
    """A timm model without its head, freshly initialised.

    Args:
        model: timm's name, "resnet50" say.
        norm: "batch": as timm builds it; "frozen": its batch norms keep their statistics and affine numbers.
        arguments: of timm.create_model, `img_size` for models of one input size say.

    Raises:
        ValueError: timm is not installed, has no such model, or the model gives no maps.
    """
    try:
        import timm
        from timm.layers import freeze_batch_norm_2d
    except ModuleNotFoundError:
        raise ValueError(
            'timm is not installed; it brings these backbones: pip install -e ".[timm]"'
        ) from None
    if norm not in ("batch", "frozen"):
        raise ValueError(f"norm must be 'batch' or 'frozen', not {norm!r}")
    if not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}: {did_you_mean(model, timm.list_models())}")
    try:
        with torch.device("meta"):
            strides = timm.create_model(
                model, pretrained=False, features_only=True, **arguments
            ).feature_info.reduction()
        last = {stride: place for place, stride in enumerate(strides) if stride >= FINEST}
        body = timm.create_model(
            model, pretrained=False, features_only=True, out_indices=tuple(sorted(last.values())), **arguments
        )
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"timm's {model} gives no feature maps: {error}") from error
    if norm == "frozen":
        body = freeze_batch_norm_2d(body)
    return TimmBackbone(body, channels_last=str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"))
