"""What `bench.py list` and `bench.py show` print: rows of the manifests as text or as data. No torch."""

from __future__ import annotations

from typing import Any

from detection_zoo.benchmarks.spec import Run, metric
from detection_zoo.zoo.manifest import ModelEntry, WeightSpec

HEADLINE = (
    "box_ap",
    "voc_map",
    "top1_error",
    "proposal_ar",
)  # the first that a row publishes stands in the list


def summary(entry: ModelEntry) -> dict[str, Any]:
    """One row as the list shows it."""
    published = next(
        (
            (name, record.values[name])
            for name in HEADLINE
            for record in entry.published
            if name in record.values
        ),
        None,
    )
    return {
        "name": entry.name,
        "detector": entry.detector.name if entry.detector else "classifier",
        "backbone": entry.backbone.name,
        "dataset": entry.dataset,
        "published": (
            f"{metric(published[0]).title} {metric(published[0]).format(published[1])}" if published else "-"
        ),
        "weights": _weights_state(entry),
    }


def _weights_state(entry: ModelEntry) -> str:
    """Whether trained weights can be fetched, in one word."""
    if entry.published_only:
        return "numbers only"
    spec = next(iter(entry.trained_weights), None)
    if spec is None:
        return "none"
    return "wrong link" if spec.wrong else "link" if spec.urls else "by hand"


def listing(entries: list[ModelEntry]) -> str:
    """Rows as a plain table."""
    from tabulate import tabulate

    return tabulate(
        [list(summary(entry).values()) for entry in entries],
        list(summary(entries[0])) if entries else [],
        disable_numparse=True,
    )


def described(entry: ModelEntry) -> str:
    """Everything a manifest says of one row, as indented text."""
    data = entry.model_dump(
        exclude_none=True, exclude_defaults=True, exclude={"published", "weights", "conventions"}
    )
    lines = [f"{key}: {_plain(value)}" for key, value in data.items()]
    if entry.conventions is not None:
        lines += [
            "conventions:",
            *(f"  {line}" for line in _flat(entry.conventions.model_dump(exclude_none=True))),
        ]
    lines += [line for spec in entry.weights for line in _weights(spec)]
    for record in entry.published:
        where = "; ".join(
            part
            for part in (
                record.source,
                record.variant,
                record.split,
                record.hardware,
                record.protocol,
                record.note,
            )
            if part
        )
        lines += [
            f"published ({where}):",
            *(
                f"  {metric(name).title}: {value} {metric(name).unit}"
                for name, value in record.values.items()
            ),
        ]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A component as name(arguments); anything else as it is."""
    if isinstance(value, dict) and "name" in value:
        arguments = ", ".join(f"{key}={item!r}" for key, item in value.items() if key != "name")
        return f"{value['name']}({arguments})"
    return (
        ", ".join(f"{key} = {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
    )


def _flat(value: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested tables as dotted lines."""
    lines = []
    for key, item in value.items():
        lines += _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else [f"{prefix}{key} = {item}"]
    return lines


def _weights(spec: WeightSpec) -> list[str]:
    lines = [f"weights ({spec.role}, {spec.holds}, {spec.format}):"]
    if spec.wrong:
        lines.append(f"  WRONG LINK, never fetched: {spec.wrong}")
    lines += [f"  {url}" for url in spec.urls] + ([f"  by hand: {spec.manual}"] if spec.manual else [])
    known = {
        "sha256": spec.sha256,
        "md5": spec.md5,
        "bytes": spec.bytes,
        "licence": spec.licence,
        "shared": spec.shared,
        "note": spec.note,
    }
    return lines + [f"  {key}: {value}" for key, value in known.items() if value is not None]


def accuracy(metrics: dict[str, float]) -> str:
    """Metrics and values, a line each."""
    from tabulate import tabulate

    return tabulate(
        [
            [metric(name).title, metric(name).format(value), metric(name).unit]
            for name, value in metrics.items()
        ],
        tablefmt="plain",
        disable_numparse=True,
    )


def results(runs: list[Run]) -> str:
    """Every measurement of some runs, a line each, and why others are absent; of failed runs, where and
    why."""
    from tabulate import tabulate

    blocks = []
    for run in runs:
        lines = [
            [
                metric(name).title,
                metric(name).format(m.value),
                m.unit,
                "" if m.interval is None else "-".join(metric(name).format(v) for v in m.interval),
                str(m.n),
                m.covers,
            ]
            for name, m in run.measurements.items()
        ]
        head = [
            run.row,
            *([f"{run.status} while {run.stage}: {run.reason}"] if run.reason else []),
            f"record {run.id}",
        ]
        table = tabulate(
            lines, ["metric", "value", "unit", "95 % interval", "n", "covers"], disable_numparse=True
        )
        reasons: dict[str, list[str]] = {}
        for name, why in run.absent.items():
            reasons.setdefault(why, []).append(metric(name).title)
        blocks.append(
            "\n".join(
                [
                    "; ".join(head),
                    table,
                    *(f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()),
                ]
            )
        )
    return "\n\n".join(blocks)
