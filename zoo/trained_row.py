"""A row as changed by a training: other classes, other settings. No torch until a file is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.settings import with_settings, with_value

ROW = "row"  # of a training checkpoint: differences from the manifest's row


def row_classes(entry: ModelEntry) -> tuple[str, ...]:
    """The names of a row's classes by label; empty where the manifests do not list them."""
    return tuple(entry.class_names or load_manifests().datasets[entry.dataset].classes)


def with_classes(entry: ModelEntry, classes: Sequence[str]) -> ModelEntry:
    """The row for other classes: as many outputs as there are classes, in their order."""
    changed = entry.model_copy(update={"classes": len(classes), "class_names": list(classes)})
    ssd = entry.conventions.ssd if entry.conventions is not None else None
    if ssd is not None and ssd.channels == "coco_ids":
        changed = with_value(changed, "ssd.channels", "dense")
    return changed


def row_of_checkpoint(entry: ModelEntry, weights: str) -> ModelEntry:
    """The row as a training checkpoint was trained: its classes and settings; the row itself for other
    weights.

    Args:
        weights: what `build_model` takes.
    """
    path = Path(weights)
    if weights in ("random", "published") or not path.is_file():
        return entry
    from detection_zoo.zoo.weights.pickle.safe import file_kind, read_torch_outline

    if file_kind(path) != "torch zip":
        return entry
    try:
        value = read_torch_outline(path)
    except CheckpointError:  # reported later by the reader of weights
        return entry
    trained = value.get(ROW) if isinstance(value, dict) else None
    if not trained:
        return entry
    if value.get("entry") != entry.name:
        raise CheckpointError(f"{path}: a training of {value.get('entry')!r:.100}, not of {entry.name!r}")
    trained = trained if isinstance(trained, dict) else {}
    classes, settings = trained.get("classes"), trained.get("settings")
    if not (_is_texts(settings) and (classes is None or (_is_texts(classes) and classes))):
        raise CheckpointError(f"{path}: its classes and settings are not lists of strings; is it damaged?")
    if classes is not None:
        entry = with_classes(entry, classes)
    schedule = next(iter(load_manifests().schedules.values()))
    return with_settings(entry, schedule, [text for text in settings if not text.startswith("schedule.")])[0]


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
