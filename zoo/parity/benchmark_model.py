"""The model of one of maskrcnn-benchmark's reference folders, loaded, and the outputs computed from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.build import WithoutRandomFills, assemble, shapes_only
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, Reference, Skip
from detection_zoo.zoo.parity.benchmark_batches import Tolerances, batches
from detection_zoo.zoo.parity.benchmark_settings import (
    departures,
    entry_from_settings,
    schedule_from_settings,
)
from detection_zoo.zoo.parity.near_ties import Choices, ProposalChoices, settle
from detection_zoo.zoo.parts.proposals import select_proposals
from detection_zoo.zoo.weights.load import checkpoint_format as format_of
from detection_zoo.zoo.weights.load import copy_into

Outputs = dict[str, Output | Skip]


class LoadedModel:
    """The model of a folder, loaded from its stand-in checkpoint, its batches and its computed outputs."""

    def __init__(
        self, reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint: str
    ) -> None:
        self.reference, self.meta, self.kind = reference, reference.meta, kind
        self.tolerances = Tolerances.of(reference)
        self.computed: Outputs = {}
        with WithoutRandomFills():
            row, model = self._model(entry)
        self.translation = format_of(checkpoint).translate(reference.checkpoint())
        copy_into(model, self.translation, f"stand-in checkpoint of {reference.folder} ({checkpoint})")
        self.model, self.schedule = model.to(kind).eval(), self._schedule(entry or row)
        divisor = row.conventions.image.size_divisor if row.conventions else 1
        self.batches = {
            name: replace(batch, images=batch.images.to(kind))
            for name, batch in batches(reference, divisor).items()
        }

    def _model(self, entry: ModelEntry | None) -> tuple[ModelEntry, nn.Module]:
        """The row's model; where no row fits the recorded settings, the model that these describe."""
        if not self.meta.get("settings"):
            entry = entry or entry_from_settings(self.reference)
            return entry, assemble(entry)
        recorded = entry_from_settings(self.reference)
        if entry is None:
            self.reference.notes.append(
                f"no manifest row has source_config {self.reference.config!r}: built from the recorded"
                " settings"
            )
            return recorded, assemble(recorded)
        with shapes_only():
            differing = list(departures(assemble(entry), assemble(recorded)))
        if entry.conventions is None or entry.conventions.image != recorded.conventions.image:
            differing.append("conventions.image")
        if not differing:
            return entry, assemble(entry)
        built = "built as the row is" if self.reference.asked else "built from the recorded settings"
        some = ", ".join(differing[:8]) + (f", ... ({len(differing)} in all)" if len(differing) > 8 else "")
        self.reference.notes.append(f"row {entry.name} departs from the recorded settings in {some}: {built}")
        return (entry, assemble(entry)) if self.reference.asked else (recorded, assemble(recorded))

    def _schedule(self, row: ModelEntry) -> Schedule | None:
        own = load_manifests().schedules[row.schedule] if row.schedule else None
        if not self.meta.get("settings"):
            return own
        recorded = schedule_from_settings(self.meta["settings"])
        if own is not None and own.model_copy(update={"short_sides": [], "note": None}) != recorded:
            self.reference.notes.append(
                f"schedule {row.schedule} of row {row.name} departs from the recorded solver settings, which"
                " were used"
            )
        return recorded

    def records(self, *prefixes: str) -> bool:
        """Whether anything is recorded under one of these prefixes; the rest need not be computed."""
        return any(name.startswith(prefixes) for name in self.reference.recorded)

    def add_map(self, name: str, value: Tensor) -> None:
        """A map or head output, and its mean over channels."""
        self.computed[name] = Output(value, self.tolerances.maps)
        if value.ndim == 4:
            self.computed[f"{name}.channel_mean"] = Output(value.mean(dim=1), self.tolerances.maps)

    def add_list(self, name: str, value: Tensor, columns: str = "", moved: int = 0) -> None:
        """Rows of numbers, also by column; moved: how many rows a near tie has in the recorded order."""
        note = f"{moved} rows of nearly equal scores are in the recorded order" if moved else None
        self.computed[name] = Output(value, self.tolerances.lists, note=note)
        for i, column in enumerate(columns.split()):
            self.computed[f"{name}.{column}"] = Output(value[..., i], self.tolerances.lists, note=note)

    def add_exact(self, name: str, value: Any) -> None:
        """Numbers that must be equal to those recorded."""
        self.computed[name] = Output(value, 0.0)

    def add_boxes(self, name: str, value: Tensor, moved: int = 0) -> None:
        """Boxes (R, 4), also by coordinate; moved: as of `add_list`."""
        self.add_list(name, value, "x1 y1 x2 y2", moved)

    @contextmanager
    def near_proposals(self) -> Iterator[ProposalChoices]:
        """Within the block the model's proposals are selected by the object that is given."""
        self.model.rpn.select = choices = ProposalChoices()
        try:
            yield choices
        finally:
            self.model.rpn.select = select_proposals

    def settled(self, choices: Choices, file: Callable[[], None]) -> bool:
        """Keep outputs with near ties decided as recorded; returns whether any were decided otherwise."""

        def compute() -> Outputs:
            before, self.computed = self.computed, {}
            file()
            found, self.computed = self.computed, before
            return {name: output for name, output in found.items() if name in self.reference.recorded}

        self.computed |= settle(compute, choices, self.reference, str(self.kind).removeprefix("torch."))
        return bool(choices.nudges)
