"""A row with the classes of a user's own data: its head is rebuilt, all other weights are kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from detection_zoo.zoo.build import build_model, load_row_weights, own_weights
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.weights.load import checkpoint_format as format_named
from detection_zoo.zoo.weights.load import format_of_file
from detection_zoo.zoo.weights.rename import account


def load_rest(
    model: nn.Module, entry: ModelEntry, weights: str, checkpoint_format: str | None = None
) -> list[str]:
    """Load the tensors of matching shape from the row's published weights or a file; the others keep their
    initial values.

    Args:
        model: of the row with other classes.
        entry: that row.
        weights: "published", or the path of a file.
        checkpoint_format: of a file; default: this project's, or that of the row's weights.

    Returns:
        names of the tensors that were skipped because their shape differs.

    Raises:
        CheckpointError: the file lacks tensors, has unknown ones, or fewer than half match.
    """
    if weights == "published":
        from detection_zoo.zoo.weights.convert import read_arrays
        from detection_zoo.zoo.weights.fetch.cache import WeightCache

        spec = own_weights(entry)
        arrays, path = read_arrays(spec, WeightCache(), entry.name)
        name = spec.format
    else:
        path = Path(weights)
        stated = [spec.format for spec in entry.trained_weights]
        whole = build_model(row_named(entry.name), device="meta")  # with the file's classes
        name = checkpoint_format or format_of_file(whole, path, stated[0] if stated else None)
        arrays = format_named(name).read(path)
    where = f"{path} ({name}) for row {entry.name}"
    translation = format_named(name).translate(dict(arrays))
    tensors = model.state_dict(keep_vars=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    report = account(translation, shapes, where)
    if report.missing or report.unexpected:
        report.require_complete()
    left_out = [key for key, _, _ in report.wrong_shape]
    if len(left_out) >= len(report.matched):
        raise CheckpointError(
            f"{where}: {len(left_out)} of {len(shapes)} tensors are of another shape; is it a file of this"
            " row? Nothing was loaded"
        )
    with torch.no_grad():
        for key in report.matched:
            tensors[key].copy_(torch.as_tensor(translation.state[key]))
    return left_out


def build_for(
    entry: ModelEntry, weights: str, own: bool, checkpoint_format: str | None = None
) -> tuple[nn.Module, list[str]]:
    """The row's model with initial weights, and the names of skipped tensors.

    Args:
        entry: the row, with the classes of the training data.
        weights: as in `build_model`.
        own: whether those classes differ from the row's.
        checkpoint_format: of a file, if it is not the row's.
    """
    model, left_out = build_model(entry), []
    if weights == "random":
        return model, left_out
    if own:
        left_out = load_rest(model, entry, weights, checkpoint_format)
    else:
        load_row_weights(model, entry, weights, checkpoint_format)
    return model, left_out
