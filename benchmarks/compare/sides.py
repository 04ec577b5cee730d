"""The state of the models in a comparison, and differences between them other than speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detection_zoo.benchmarks.compare.options import Entrant
from detection_zoo.benchmarks.compare.record import Side
from detection_zoo.benchmarks.run.isolation import Outcome
from detection_zoo.benchmarks.spec import WeightsIdentity
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.manifest import ModelEntry


@dataclass
class State:
    """State of one model during the comparison."""

    entrant: Entrant
    weights: WeightsIdentity
    argument: str
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    failure: Outcome | None = None
    files: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # of its latest process

    def side(self, interrupted: bool) -> Side:
        """The model's part of the record."""
        failed = self.failure is not None
        return Side(
            label=self.entrant.label,
            row=self.entrant.row,
            exported=self.entrant.exported,
            status="failed" if failed else "interrupted" if interrupted else "finished",
            reason=self.failure.reason if failed else None,
            traceback=self.failure.traceback if failed else None,
            weights=self.weights,
            data=self.about.get("data"),
            environment=self.about.get("environment"),
            samples=self.samples,
            files=self.files,
        )


def footnotes(states: Sequence[State]) -> list[str]:
    """Return caveats about the models for readers of a ratio."""
    notes = []
    kinds = {state.weights.kind for state in states}
    if kinds & {"random", "stand-in"}:
        made_up = [state.entrant.label for state in states if state.weights.made_up]
        notes.append(
            f"untrained weights: {', '.join(made_up)}; a detector's time depends on its number of"
            " detections, and its accuracy is meaningless"
        )
    known = {
        state.about["data"].name for state in states if "data" in state.about and state.about["data"].made_up
    }
    notes += [
        f"the images of {name} are synthetic: times and accuracy on photographs may differ"
        for name in sorted(known)
    ]
    notes += unlike_rows([row_named(state.entrant.row) for state in states])
    if len({state.about["data"].digest for state in states if "data" in state.about}) > 1:
        notes.append("the rows use the same images, but number or select the classes differently")
    for state in states:
        notes += [f"{state.entrant.label}: {note}" for note in state.notes]
        if (exported := state.entrant.exported) is not None and exported.quantised:
            notes.append(f"{state.entrant.label}: {exported.quantised}")
        if state.entrant.extra_units:
            notes.append(
                f"{state.entrant.label} runs injected extra work, {state.entrant.extra_units} units per"
                " image, to test this comparison"
            )
    return notes


def unlike_rows(entries: Sequence[ModelEntry]) -> list[str]:
    """Return differences between rows other than backbone and weights, which also affect a ratio of their
    times."""
    notes = []
    for what, describe in (("detector", _detector), ("resize of the images", _resize)):
        found = {entry.name: describe(entry) for entry in entries}
        if len(set(found.values())) > 1:
            notes.append(
                f"the rows differ in the {what}: "
                + "; ".join(f"{name}: {value}" for name, value in found.items())
            )
    return notes


def _detector(entry: ModelEntry) -> str:
    return entry.detector.name if entry.detector else "none, a classifier"


def _resize(entry: ModelEntry) -> str:
    image = entry.conventions.image if entry.conventions else None
    if image is None or image.resize == "none":
        return "in the model, so timed in 'forward'"
    limits = f" {image.size}" + (f" (at most {image.max_size})" if image.max_size else "")
    return f"{image.resize.replace('_', ' ')}{limits} before the model"
