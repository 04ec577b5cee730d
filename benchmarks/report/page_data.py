"""The data of the HTML page, as one JSON value: rows, lines, records, settings; long texts are stored once.
Does not import torch."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

from detection_zoo.benchmarks.report.comparisons import comparison_data
from detection_zoo.benchmarks.report.figure_data import PARTS, PHASES, detector
from detection_zoo.benchmarks.report.kernel_cases import KernelTimings, kernel_table, time_text
from detection_zoo.benchmarks.report.lines import PublishedLine, comparable
from detection_zoo.benchmarks.report.training_logs import TrainingLog
from detection_zoo.benchmarks.report.wide import Overview, WideLine
from detection_zoo.benchmarks.spec import Measurement, Run
from detection_zoo.zoo.manifest import MetricSource, ModelEntry, Published

SIGNIFICANT = 6  # significant digits; the records have all
MOST_DOTS = 40  # maximum number of plotted samples
LEAST_SAMPLES = 8  # fewer samples are not plotted
METRIC = {"title", "unit", "digits", "note"}
ROW = {"name", "title", "source", "dataset", "schedule", "licence", "note"}
WEIGHTS = {"urls", "manual", "wrong", "sha256", "bytes", "licence", "format", "holds", "note"}
CONDITIONS = {"source", "title", "split", "hardware", "protocol", "variant", "note"}


class Once:
    """A list of different values; equal values are stored once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """The index of the value, which is appended if it is new."""
        place = self._places.setdefault(repr(value), len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def page_data(view: Overview) -> dict[str, Any]:
    """All data of the page, as plain values; the same records give the same data."""
    packed = _Packed(view)
    lines = [packed.line(line) for line in view.lines]
    records = [packed.record(run) for run in view.runs if run.row in view.manifests.entries]
    evaluated = {log.metric for logs in view.trainings.values() for log in logs}
    return {
        "quantities": [
            {"name": name} | q.model_dump(include={"better"} | METRIC) for name, q in view.quantities.items()
        ],
        "metrics": {
            name: view.manifests.metrics[name].model_dump(include=METRIC)
            for name in sorted((packed.metrics | evaluated) & view.manifests.metrics.keys())
        },
        "phases": PHASES,
        "parts": PARTS,
        "followed": _followed(view),
        "rows": packed.rows.values,
        "lines": lines,
        "records": records,
        "settings": packed.settings.values,
        "texts": packed.texts.values,
        "environments": packed.environments.values,
        "specs": packed.specs.values,
        "data": packed.data.values,
        "kernels": [_kernels(timings) for timings in view.kernels],
        "comparisons": [comparison_data(one) for one in view.comparisons],
        "pictures": view.pictures,
        "trainings": {row: [_training(log) for log in logs] for row, logs in view.trainings.items()},
        "problems": view.problems,
    }


def _followed(view: Overview) -> list[str]:
    """Metrics of records whose history the page plots: the overview metrics are computed from them."""
    sources = [
        source.metric
        for q in view.quantities.values()
        for source in q.measured or [MetricSource(metric=q.name)]
    ]
    return list(dict.fromkeys(sources))


def _kernels(timings: KernelTimings) -> dict[str, Any]:
    """Timings of operators; times are text with unit."""

    def text_of(time: Measurement | None) -> str | None:
        return None if time is None else f"{time_text(time.value)} {time.unit}"

    cases = [
        _bare(
            case.model_dump(include={"name", "correct", "note"})
            | {"ours": text_of(case.ours), "peer": text_of(case.peer)}
            | {"ratio": case.ratio, "interval": case.ratio_interval}
        )
        for case in timings.cases
    ]
    return {
        "device": timings.environment.device_name,
        "backend": timings.backend,
        "peer": timings.peer,
        "about": kernel_table(timings).notes,
        "cases": cases,
    }


def _training(log: TrainingLog) -> dict[str, Any]:
    """Curves of one training run."""
    accuracy = {"metric": log.metric, "at": log.evaluated, "values": [significant(v) for v in log.accuracy]}
    return _bare(
        {
            "name": log.name,
            "updates": log.updates,
            "losses": [significant(value) for value in log.losses],
            "rates": [significant(value) for value in log.rates],
            "accuracy": accuracy if log.accuracy else None,
        }
    )


def significant(value: float) -> float:
    """The value, rounded to SIGNIFICANT digits."""
    return float(f"{value:.{SIGNIFICANT}g}")


def _bare(value: Any) -> Any:
    """A mapping without empty values."""
    return {name: item for name, item in value.items() if item not in (None, [], {}, "")}


class _Packed:
    """Lines and records as plain values; repeated values are referred to by their index in a list."""

    def __init__(self, view: Overview) -> None:
        self.rows, self.settings, self.texts = Once(), Once(), Once()
        self.environments, self.specs, self.data = Once(), Once(), Once()
        self.metrics: set[str] = set()
        self.classes = view.classes
        self.quantities = list(view.quantities.values())
        self._places = {
            run.id: place
            for place, run in enumerate(run for run in view.runs if run.row in view.manifests.entries)
        }

    def line(self, line: WideLine) -> dict[str, Any]:
        """One line of the table and the plot."""
        found: dict[str, Any] = {
            "row": self.rows.place(_row(line)),
            "kind": line.kind,
            "values": self._values(line),
            "trusted": line.trusted,
        }
        if line.setting:
            found["setting"] = self.settings.place(
                {"kind": line.kind, "title": line.setting_title, "key": "|".join(line.setting)}
            )
        if line.kind == "measured":
            found["absent"] = {
                q.name: self.texts.place(line.why_not(q))
                for q in self.quantities
                if q.name not in found["values"]
            }
            found["records"] = [self._places[run.id] for run in line.runs]
        if isinstance(line.line, PublishedLine):
            self.metrics |= line.line.values.keys()
            found["published"] = [self._published(record) for record in line.line.records]
        return found | _bare(
            {"flags": list(line.flags), "reason": self.texts.place(line.reason) if line.reason else None}
        )

    def _values(self, line: WideLine) -> dict[str, list[float]]:
        points = {q.name: point for q in self.quantities if (point := line.point(q))}
        return {
            name: [significant(value) for value in (point.value, *(point.interval or ()))]
            for name, point in points.items()
        }

    def _published(self, record: Published) -> dict[str, Any]:
        where = _bare(record.model_dump(mode="json", include=CONDITIONS))
        return {"where": self.texts.place(where), "values": record.values}

    def record(self, run: Run) -> dict[str, Any]:
        """One record as the details of a line show it, with fewer samples."""
        self.metrics |= run.measurements.keys() | run.absent.keys()
        weights, env = run.weights, run.environment
        machine = env and _bare(env.model_dump(mode="json", exclude={"commit", "dirty"}))
        return _bare(
            run.model_dump(mode="json", include={"id", "status", "stage", "reason", "started"})
            | {
                "duration_s": significant(run.duration_s),
                "series": "|".join((run.row, *comparable(run), weights.digest if weights else "")),
                "weights": weights and weights.model_dump(mode="json", exclude_defaults=True),
                "commit": env and env.commit,
                "dirty": env and env.dirty,
                "environment": self.environments.place(machine) if machine else None,
                "spec": self.specs.place(run.spec.model_dump(mode="json")),
                "data": self.data.place(run.data.model_dump(mode="json")) if run.data else None,
                "values": {name: self._measurement(found) for name, found in run.measurements.items()},
                "absent": {name: self.texts.place(why) for name, why in run.absent.items()},
                "telemetry": {
                    group: _bare(one.model_dump(include={"verdict", "absent", "note"}))
                    for group, one in run.telemetry.items()
                },
                "notes": [self.texts.place(note) for note in run.notes],
                "classes": {name: significant(ap) for name, ap in self.classes.get(run.id, {}).items()},
            }
        )

    def _measurement(self, found: Measurement) -> dict[str, Any]:
        return _bare(
            found.model_dump(include={"unit", "n", "statistic"})
            | {
                "value": significant(found.value),
                "interval": [significant(edge) for edge in found.interval or ()],
                "percentiles": {name: significant(value) for name, value in found.percentiles.items()},
                "covers": self.texts.place(found.covers) if found.covers else None,
                "note": self.texts.place(found.note) if found.note else None,
                "extrapolated": found.extrapolated or None,
                "samples": thinned(found.samples),
            }
        )


def thinned(samples: list[float]) -> list[float]:
    """Medians of successive samples, at most MOST_DOTS, in measurement order; empty for fewer
    than LEAST_SAMPLES samples."""
    if len(samples) < LEAST_SAMPLES:
        return []
    count = min(MOST_DOTS, len(samples))
    edges = [place * len(samples) // count for place in range(count + 1)]
    return [float(f"{median(samples[start:end]):.4g}") for start, end in pairwise(edges)]


def _row(line: WideLine) -> dict[str, Any]:
    """One manifest row."""
    entry: ModelEntry = line.entry
    return _bare(
        entry.model_dump(mode="json", include=ROW)
        | {
            "backbone": entry.backbone.name,
            "neck": entry.neck.name if entry.neck else None,
            "detector": entry.detector.name if entry.detector else "classifier",
            "family": detector(line),
            "runnable": not entry.published_only,
            "weights": [
                _bare(spec.model_dump(mode="json", include=WEIGHTS)) for spec in entry.trained_weights
            ],
        }
    )
