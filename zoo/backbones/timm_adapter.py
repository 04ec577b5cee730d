"""Any timm model with feature maps as a backbone; timm is an optional dependency (pip install
-e .[timm])."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES, did_you_mean

FINEST = 4  # pixels: maps of smaller strides are not used


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


class TimmClassifierBody(Backbone):
    """A timm classifier without pooling and linear layer; its one map is the input of the pooling.

    Args:
        body: a convolutional model of timm, made with `num_classes=0, global_pool=""`.
        stride: of that map.
    """

    def __init__(self, body: torch.nn.Module, *, stride: int) -> None:
        super().__init__()
        self.body = body
        self.specs = {"c5": FeatureSpec(body.head_hidden_size, stride)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c5": self.body(images)}


@BACKBONES.family("timm")
def timm_backbone(
    model: str,
    *,
    norm: str = "batch",
    pretrained: bool | Mapping[str, Any] = False,
    maps: Literal["stages", "last"] = "stages",
    **arguments: Any,
) -> Backbone:
    """A timm model without its head, freshly initialised unless `pretrained` is set.

    Args:
        model: timm's name, for example "resnet50".
        norm: "batch": as built by timm; "frozen": its batch norms keep their statistics and affine numbers.
        pretrained: True: timm's own weights, from its hub; or these tensors, by timm's names.
        maps: "stages": the maps of the stages; "last": the input of the classifier's pooling, after the
            convolution of its head (EfficientNet's 1x1 to 1,280 channels).
        arguments: of timm.create_model, for example `img_size` for models with a fixed input size.

    Raises:
        ValueError: timm is not installed, has no such model, or the model has no feature maps.
        CheckpointError: the weights cannot be loaded, or do not fit.
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
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"timm's {model} gives no feature maps: {error}") from error
    last = {stride: place for place, stride in enumerate(strides) if stride >= FINEST}
    if maps == "last":
        arguments |= {"num_classes": 0, "global_pool": ""}
    else:
        arguments |= {"features_only": True, "out_indices": tuple(sorted(last.values()))}
    body = (
        _with_weights(model, pretrained, arguments) if pretrained else timm.create_model(model, **arguments)
    )
    if norm == "frozen":
        body = freeze_batch_norm_2d(body)
    if maps == "last":
        return TimmClassifierBody(body, stride=strides[-1])
    return TimmBackbone(body, channels_last=str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"))


def _with_weights(
    model: str, pretrained: bool | Mapping[str, Any], arguments: dict[str, Any]
) -> torch.nn.Module:
    """A timm model with its own weights; raises CheckpointError."""
    import timm

    if pretrained is not True:
        _require_all(model, pretrained)
        own = {"state_dict": dict(pretrained), "hf_hub_id": None, "url": ""}
        arguments = arguments | {"pretrained_cfg_overlay": own}
    try:
        return timm.create_model(model, pretrained=True, **arguments)
    except (OSError, RuntimeError, KeyError) as error:
        reasons = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"weights of timm.{model} could not be loaded: {reasons[0]}; give a file of them in place of"
            " timm's hub"
        ) from error


def _require_all(model: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError if tensors of a model are missing, except its last layer."""
    import timm

    with torch.device("meta"):
        whole = timm.create_model(model).state_dict()
    known = timm.get_pretrained_cfg(model)
    last = known.classifier if known else ()
    heads = (last,) if isinstance(last, str) else tuple(last or ())
    missing = [name for name in whole if name not in tensors and not name.startswith(heads)]
    if missing:
        raise CheckpointError(
            f"weights of timm.{model} could not be loaded: {len(missing)} of {len(whole)} tensors are missing"
            f" ({', '.join(missing[:4])} ...); is it a file of this model?"
        )


def timm_images(model: str) -> dict[str, Any]:
    """The preprocessing of a model's timm weights, as fields of the conventions of images; empty if timm does
    not document it."""
    import timm

    known = timm.get_pretrained_cfg(model)
    if known is None:
        return {}
    found = {"channel_order": "rgb", "value_range": "0..1"}
    return found | {"mean": list(known.mean), "std": list(known.std)}
