"""Likely causes of a differing accuracy: each is one wrong convention, as a row with one setting
changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.settings import with_value

if TYPE_CHECKING:
    from torch import nn

COMPONENTS = ("backbone", "neck", "detector")
NEAR = 0.01  # fraction of the value range; closer normalisations count as equal


@dataclass(frozen=True)
class Variant:
    """A row with one setting changed.

    suspect, change: the suspected setting and the change, as text. entry: the changed row. kind: "selection""
        does not change the network's
    outputs; "precision" computes in bfloat16; "half" leaves part of the weights at their initial values;"
    "ends" inverts whether box ends are inclusive.
    """

    suspect: str
    change: str
    entry: ModelEntry
    kind: Literal["network", "selection", "precision", "half", "ends"] = "network"


def variants(entry: ModelEntry, model: nn.Module) -> Iterator[Variant]:
    """Yield every change that applies to a row, suspect by suspect.

    Args:
        entry: with conventions.
        model: the row's model, which determines the applicable changes.
    """
    yield from _channel_order(entry)
    yield from _normalisation(entry)
    yield from _resize(entry)
    if entry.detector is not None:
        yield from _selection(entry)
    yield from _network(entry, model)
    yield Variant("precision", "bfloat16", entry, "precision")
    yield Variant("half-loaded weights", "the last third of the body at its initial values", entry, "half")


def _channel_order(entry: ModelEntry) -> Iterator[Variant]:
    other = {"rgb": "bgr", "bgr": "rgb"}[entry.conventions.image.channel_order]
    changed = with_value(entry, "image.channel_order", other)
    yield Variant("channel order", other.upper(), changed)
    mean, std = entry.conventions.image.mean, entry.conventions.image.std
    if mean != mean[::-1] or std != std[::-1]:
        turned = with_value(with_value(changed, "image.mean", mean[::-1]), "image.std", std[::-1])
        yield Variant("channel order", f"{other.upper()}, mean and std reordered too", turned)


def _normalisation(entry: ModelEntry) -> Iterator[Variant]:
    """Yield the normalisations in conventions.toml, in the row's channel order."""
    own, seen = entry.conventions.image, []
    seen.append(_affine(own.value_range, own.mean, own.std))
    for name, bundle in load_manifests().conventions.items():
        image = bundle.image
        turn = -1 if image.channel_order != own.channel_order else 1
        mean, std = image.mean[::turn], image.std[::turn]
        here = _affine(image.value_range, mean, std)
        if any(
            all(
                abs(a - b) <= NEAR * max(abs(a), abs(b), 1e-3) + (NEAR if place else 0)
                for place, (a, b) in enumerate(zip(here, one, strict=True))
            )
            for one in seen
        ):
            continue
        seen.append(here)
        changed = entry
        for field, value in (("value_range", image.value_range), ("mean", mean), ("std", std)):
            changed = with_value(changed, f"image.{field}", value)
        yield Variant(
            "mean and std", f"{image.value_range}, mean {_listed(mean)}, std {_listed(std)} ({name})", changed
        )


def _affine(value_range: str, mean: list[float], std: list[float]) -> list[float]:
    """Return the normalised values of black and white: (white - black, black) of each channel, in units of
    the slope."""
    factor, offset = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (2 / 255, -1.0)}[value_range]
    return [sum(factor / s for s in std), *((offset - m) / (255 * factor) for m in mean)]


def _listed(values: list[float]) -> str:
    return "/".join(f"{value:g}" for value in values)


def _resize(entry: ModelEntry) -> Iterator[Variant]:
    image = entry.conventions.image
    for other in ("pil_bilinear", "cv2_bilinear", "tf1_bilinear"):
        if (
            image.resize != "none"
            and other != image.interpolation
            and not (image.normalise_first and other == "pil_bilinear")
        ):
            yield Variant("resize rule", other, with_value(entry, "image.interpolation", other))
    if image.resize == "centre_crop":
        other = {"round": "truncate", "truncate": "round"}[image.crop_rounding]
        yield Variant(
            "resize rule", f"crop's corner: {other}", with_value(entry, "image.crop_rounding", other)
        )
        changed = with_value(with_value(entry, "image.resize", "fixed"), "image.size", image.size)
        yield Variant("resize rule", "full image resized, no crop", changed)
    if image.resize == "shorter_side":
        other = {"round": "truncate", "half_up": "truncate", "truncate": "round"}[image.rounding]
        yield Variant("resize rule", f"sides: {other}", with_value(entry, "image.rounding", other))
        size = 600 if image.size >= 800 else 800
        yield Variant("resize rule", f"shorter side {size}", with_value(entry, "image.size", size))


def _selection(entry: ModelEntry) -> Iterator[Variant]:
    """Yield changes of thresholds and limits, if the row's family has them."""
    section = entry.detector.name if entry.detector.name in ("ssd", "retinanet") else "detections"
    values = getattr(entry.conventions, section, None)
    if values is None:
        return
    limit = "per_image_keep" if section == "ssd" else "max_detections"
    for title, field, others in (
        ("score threshold", "score_threshold", (0.001, 0.05, 0.5)),
        ("detections per image", limit, (20, 100, 300)),
        ("NMS threshold", "nms_iou", (0.3, 0.5, 0.7)),
    ):
        for other in others:
            if other != getattr(values, field):
                yield Variant(
                    title,
                    f"{other:g} for {getattr(values, field):g}",
                    with_value(entry, f"{section}.{field}", other),
                    "selection",
                )
    yield Variant(
        "box ends", "x2 and y2 inclusive instead of exclusive, or the reverse (the +1)", entry, "ends"
    )


def _network(entry: ModelEntry, model: nn.Module) -> Iterator[Variant]:
    pooling = entry.conventions.pooling
    if pooling is not None and pooling.method == "roi_align" and hasattr(model, "box"):
        aligned = pooling.aligned
        yield Variant(
            "RoIAlign alignment",
            "off" if aligned else "on (shift by half a pixel)",
            with_value(entry, "pooling.aligned", not aligned),
        )
    if hasattr(model.backbone if hasattr(model, "backbone") else model, "stride_in_1x1"):
        first = model.backbone.stride_in_1x1
        where = "3x3" if first else "first 1x1"
        yield Variant(
            "stride position", f"in the {where}", with_value(entry, "backbone.stride_in_1x1", not first)
        )
    padded = [
        part
        for part in ("backbone", "detector")
        if getattr(entry, part) is not None and _takes_padding(entry, part)
    ]
    if padded:
        other = {"same": "symmetric", "symmetric": "same"}[
            entry.backbone.arguments.get("padding", "symmetric")
        ]
        changed = entry
        for part in padded:
            changed = with_value(changed, f"{part}.padding", other)
        yield Variant("padding", {"same": "TensorFlow's SAME", "symmetric": "symmetric"}[other], changed)


def _takes_padding(entry: ModelEntry, part: str) -> bool:
    import inspect

    from detection_zoo.zoo.registry import BACKBONES, DETECTORS

    registry = BACKBONES if part == "backbone" else DETECTORS
    return "padding" in inspect.signature(registry[getattr(entry, part).name]).parameters
