"""EfficientNet classifiers of the package efficientnet_pytorch, renamed for timm's models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import CheckpointFormat, Rules, Translation, translate_names

REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of the stages of B0 and Lite0 (Tan and Le, ICML 2019, table 1)
_OUTSIDE: Rules = (
    (r"^_conv_stem\.", "backbone.body.conv_stem."),
    (r"^_bn0\.", "backbone.body.bn1."),
    (r"^_conv_head\.", "backbone.body.conv_head."),
    (r"^_bn1\.", "backbone.body.bn2."),
    (r"^_fc\.", "fc."),
)
# the very first block has no 1x1 expansion, and its second convolution is called pw
_NARROW = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_WIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _classifier(arrays: dict[str, Any]) -> Translation:
    places = _places(arrays)

    def layer(match: Any) -> str:
        names = _WIDE if f"_blocks.{match[1]}._expand_conv.weight" in arrays else _NARROW
        return f"backbone.body.blocks.{places[int(match[1])]}.{names.get(match[2], match[2])}."

    return translate_names(arrays, (*_OUTSIDE, (r"^_blocks\.(\d+)\.(\w+)\.", layer)))


def _places(names: Iterable[str]) -> list[str]:
    """timm's "stage.block" of each block of the file; raises CheckpointError for another network."""
    blocks = {int(name.split(".")[1]) for name in names if name.startswith("_blocks.")}
    if blocks != set(range(sum(REPEATS))):
        raise CheckpointError(
            f"the file has {len(blocks)} blocks where EfficientNet-B0 and -Lite0 have {sum(REPEATS)}; is it a"
            " checkpoint of efficientnet_pytorch, and of this model?"
        )
    return [f"{stage}.{block}" for stage, count in enumerate(REPEATS) for block in range(count)]


CHECKPOINT_FORMATS.register("efficientnet_pytorch_pth")(CheckpointFormat(read_arrays, _classifier))
