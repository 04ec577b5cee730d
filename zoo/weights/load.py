"""Loading local weight files into models: read safely, rename, account for every tensor, copy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.formats import (  # noqa: F401 - register their formats
    detectron,
    detectron2,
    detnet,
    efficientnet,
    hardnet,
    keras_classifiers,
    maskrcnn_benchmark,
    ssd_mobilenetv1,
    ssdlite,
    torchvision_detectors,
)
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import (
    CheckpointFormat,
    LoadReport,
    Translation,
    account,
    listed,
    plain_names,
    translate_names,
)

CHECKPOINT_FORMATS.register("zoo")(CheckpointFormat(read_arrays, partial(translate_names, rules=())))


def format_of_file(model: nn.Module, path: Path | str, stated: str | None) -> str:
    """The format of a local file.

    Args:
        model: that the file is for.
        stated: the row's own format.

    Returns:
        "zoo" where the file's names are the model's own; else the first format under which the file fits the
            model completely, `stated` before the others; else `stated`.

    Raises:
        CheckpointError: no format fits and none is stated; the message describes the file.
    """
    path = Path(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    contents: dict[Any, dict[str, Any] | CheckpointError] = {}

    def read(name: str) -> dict[str, Any]:
        reader = CHECKPOINT_FORMATS[name].read
        if reader not in contents:
            try:
                contents[reader] = reader(path)
            except CheckpointError as error:
                contents[reader] = error
        if isinstance(content := contents[reader], CheckpointError):
            raise content
        return content

    def matched(name: str) -> tuple[bool, int]:
        try:
            translation = CHECKPOINT_FORMATS[name].translate(read(name))
        except CheckpointError:  # not a file of this format
            return False, 0
        report = account(translation, shapes, str(path))
        return report.complete, len(report.matched)

    with suppress(CheckpointError):
        if plain_names(read("zoo"))[0].keys() <= shapes.keys():
            return "zoo"
    counts: dict[str, int] = {}
    for name in dict.fromkeys([stated, *CHECKPOINT_FORMATS] if stated else CHECKPOINT_FORMATS):
        fits, counts[name] = matched(name)
        if fits:
            return name
    if stated is not None:
        return stated
    arrays = read("zoo")  # raises if the file cannot be read at all
    nearest = max(counts, key=lambda name: counts[name])
    raise CheckpointError(
        f"{path}: fits the model in none of the checkpoint formats, and the row states none. The file has"
        f" {listed(arrays)}; as {nearest}, {counts[nearest]} of the model's {len(shapes)} tensors are found."
        " Is it the right file?"
    )


def has_own_names(path: Path) -> bool:
    """Whether a readable file names the tensors of a classifier as this project does."""
    try:
        names = plain_names(read_arrays(path))[0]
    except CheckpointError:
        return False
    return any(name.startswith("backbone.") for name in names)


def checkpoint_format(name: str) -> CheckpointFormat:
    """The registered format; raises CheckpointError with the nearest names."""
    try:
        return CHECKPOINT_FORMATS[name]
    except KeyError as error:
        raise CheckpointError(str(error.args[0])) from None


def load_weights(
    model: nn.Module, path: Path | str, checkpoint: str, *, row: str | None = None
) -> LoadReport:
    """Load a whole checkpoint file into a model.

    Args:
        model: any module; nothing is changed unless the file fits completely.
        path: local file.
        checkpoint: format, a name of zoo.registry.CHECKPOINT_FORMATS.
        row: the manifest row, for messages.

    Raises:
        CheckpointError: unreadable, unsafe, or incomplete; lists the tensors.
    """
    where = f"{path} ({checkpoint})" + (f" for row {row}" if row else "")
    return load_arrays(model, checkpoint_format(checkpoint).read(Path(path)), checkpoint, where=where)


def load_arrays(model: nn.Module, arrays: Mapping[str, Any], checkpoint: str, *, where: str) -> LoadReport:
    """Load arrays by the file's names, like `load_weights`."""
    return copy_into(model, checkpoint_format(checkpoint).translate(dict(arrays)), where)


def load_backbone(
    model: nn.Module, path: Path | str, checkpoint: str, *, row: str | None = None
) -> LoadReport:
    """Load an ImageNet classifier's file into the corresponding parts of a detector; its last layer is
    left out.

    Args, raises: as in `load_weights`. The model's `backbone_parts` (classifier prefix -> model prefix) maps
        them.
    """
    where = f"{path} ({checkpoint})" + (f" for the backbone of row {row}" if row else "")
    return load_backbone_arrays(
        model, checkpoint_format(checkpoint).read(Path(path)), checkpoint, where=where
    )


def load_backbone_arrays(
    model: nn.Module, arrays: Mapping[str, Any], checkpoint: str, *, where: str
) -> LoadReport:
    """Load a classifier's arrays by the file's names, like `load_backbone`."""
    translation, only = backbone_translation(model, arrays, checkpoint)
    return copy_into(model, translation, where, only=only)


def backbone_translation(
    model: nn.Module, arrays: Mapping[str, Any], checkpoint: str
) -> tuple[Translation, tuple[str, ...]]:
    """A classifier's tensors under the names of the parts of a detector, and the prefixes of those parts."""
    translation = checkpoint_format(checkpoint).translate(dict(arrays))
    parts: dict[str, str] = getattr(model, "backbone_parts", {"backbone.": "backbone."})
    moved = Translation(
        defaults=translation.defaults, dropped=dict(translation.dropped), optional=translation.optional
    )
    known = model.state_dict(keep_vars=True).keys()
    for name, array in translation.state.items():
        prefix = max((p for p in parts if name.startswith(p)), key=len, default=None)
        if prefix is None:
            moved.dropped[translation.origin[name]] = "the classifier's last layer"
            continue
        target = parts[prefix] + name.removeprefix(prefix)
        if name.endswith(".num_batches_tracked") and target not in known:
            moved.dropped[translation.origin[name]] = "a counter of training, which frozen norms do not keep"
            continue
        moved.put(target, array, translation.origin[name])
    return moved, tuple(parts.values())


def account_for(
    model: nn.Module, translation: Translation, where: str, *, only: tuple[str, ...] = ("",)
) -> LoadReport:
    """Compare a translated file with a model, which may be on the meta device.

    Args: as in `copy_into`.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; lists them.
    """
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name.startswith(only)
    }
    return account(translation, shapes, where).require_complete()


def copy_into(
    model: nn.Module, translation: Translation, where: str, *, only: tuple[str, ...] = ("",)
) -> LoadReport:
    """Copy translated tensors into a model after every tensor is accounted for.

    Args:
        model: receives values in its own types; it must not be on the meta device.
        translation: by the model's names.
        where: file and row, for messages.
        only: prefixes of the model's names that the file must fill.
    """
    tensors = {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.startswith(only)
    }
    report = account_for(model, translation, where, only=only)
    values = {name: torch.as_tensor(translation.state[name]) for name in report.matched}
    other = [
        f"{name} ({values[name].dtype})"
        for name in report.matched
        if tensors[name].is_floating_point() and not values[name].is_floating_point()
    ]
    if other:
        raise CheckpointError(
            f"{where}: tensors in the file are not floating point: {listed(other)}; is it quantised or"
            " damaged? Nothing was loaded"
        )
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)
    return report
