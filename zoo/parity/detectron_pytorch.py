"""Recompute what Detectron.pytorch's reference folders record."""
from __future__ import annotations

from ..manifest import ModelEntry
from .base import Output, Reference, Skip


def outputs(reference: Reference, entry: ModelEntry | None, dtype: str, checkpoint_format: str | None) -> dict[str, Output | Skip]:
    """Every output of a folder, by its recorded name.

    Args:
        reference: the folder.
        entry: row to build; none for folders without a model.
        dtype: "float32" or "float64".
        checkpoint_format: "detectron_pytorch_pth" (default) or "detectron_pkl".
    """
    if not reference.has_checkpoint:
        from .detectron_steps import step_outputs

        return step_outputs(reference)
    raise NotImplementedError
