"""Output of `bench.py show`, `run` and `evaluate`: manifest rows, measurements, accuracy. Does not import
torch."""

from __future__ import annotations

from typing import Any

from detection_zoo.benchmarks.report.lines import own_metric, seeds_text
from detection_zoo.benchmarks.spec import Metric, Run, metric
from detection_zoo.benchmarks.tabular import Cell, Notes, Table, render, text_table
from detection_zoo.benchmarks.terminal import wrap
from detection_zoo.zoo.manifest import ModelEntry, WeightSpec
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.plain import one_line


def described(entry: ModelEntry, width: int | None = None) -> str:
    """Return all fields of a manifest row as indented text, in lines of at most `width` characters."""
    data = entry.model_dump(
        exclude_none=True, exclude_defaults=True, exclude={"published", "weights", "conventions"}
    )
    lines = [f"{key}: {_plain(value)}" for key, value in data.items() if key != "training"]
    lines += _training(entry)
    if entry.conventions is not None:
        lines += [
            "conventions:",
            *(f"  {line}" for line in _flat(entry.conventions.model_dump(exclude_none=True))),
        ]
    lines += [line for spec in entry.weights for line in _weights(spec)]
    for record in entry.published:
        parts = ("source", "variant", "split", "hardware", "protocol", "note")
        where = "; ".join(filter(None, (getattr(record, part) for part in parts)))
        lines += [
            f"published ({where}):",
            *(
                f"  {metric(own_metric(entry, name)).title}: {value} {metric(name).unit}"
                for name, value in record.values.items()
            ),
        ]
    if width is None:
        return "\n".join(lines)
    return "\n".join(part for line in lines for part in _wrapped(one_line(line), width))


def _training(entry: ModelEntry) -> list[str]:
    """Training of the weights of this project, expected accuracy, and accuracy of other seeds."""
    found = entry.training
    if found is None:
        return []
    lines = [
        f"training: {found.updates} updates, seed {found.seed}, {found.hours:g} h on {found.machine},"
        f" {found.date}; log results/training/{found.log}"
    ]
    for name, by_images in found.expected.items():
        title = metric(own_metric(entry, name)).title
        expected = ", ".join(f"{value:.2f} on {images} images" for images, value in by_images.items())
        lines.append(f"  expected {title}: {expected}, within {found.tolerance:g}")
        lines += [f"  {title} {text}" for text in [seeds_text(found.by_seed(name))] if text]
    return lines


def _wrapped(line: str, width: int) -> list[str]:
    """A wrapped line; continuation lines are indented."""
    indent = line[: len(line) - len(line.lstrip())]
    return [indent + part for part in wrap(line.strip(), width - len(indent), indent="    ")]


def _plain(value: Any) -> str:
    """Format a component as name(arguments), and other values as text."""
    if isinstance(value, dict) and "name" in value:
        arguments = ", ".join(f"{key}={item!r}" for key, item in value.items() if key != "name")
        return f"{value['name']}({arguments})"
    return (
        ", ".join(f"{key} = {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
    )


def _flat(value: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested tables as lines with dotted keys."""
    lines = []
    for key, item in value.items():
        lines += _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else [f"{prefix}{key} = {item}"]
    return lines


def _weights(spec: WeightSpec) -> list[str]:
    lines = [f"weights ({spec.role}, {spec.holds}, {spec.format}):"]
    if spec.wrong:
        lines.append(f"  WRONG LINK, never fetched: {spec.wrong}")
    lines += [f"  {url}" for url in spec.urls] + ([f"  by hand: {spec.manual}"] if spec.manual else [])
    known = ("sha256", "md5", "bytes", "licence", "shared", "note")
    values = {name: getattr(spec, name) for name in known}
    return lines + [f"  {name}: {value}" for name, value in values.items() if value is not None]


def accuracy(metrics: dict[str, float], width: int | None = None) -> str:
    """Return a table of metrics and values."""
    rows = [
        [metric(name).title, metric(name).format(value), metric(name).unit] for name, value in metrics.items()
    ]
    return text_table(["metric", "value", "unit"], rows, width)


def class_accuracy(per_class: dict[str, dict[str, float]]) -> str:
    """Return a table of AP per class in percent, best first."""
    names = list(dict.fromkeys(name for values in per_class.values() for name in values))
    ranked = sorted(per_class.items(), key=lambda item: -next(iter(item[1].values())))
    rows = [
        [title, *(f"{values[name]:.1f}" if name in values else "-" for name in names)]
        for title, values in ranked
    ]
    return text_table(["class", *names], rows)


def mistakes(kind: str, shares: dict[str, float]) -> str:
    """Return a table of the AP50 lost to each error type, in percentage points."""
    return text_table([f"{kind}: AP50 lost to", "points"], [[n, f"{100 * v:.1f}"] for n, v in shares.items()])


def results(runs: list[Run], width: int | None = None) -> str:
    """Return a table of measurements per run, the reasons of absent metrics, and the failure of failed
    runs."""
    return "\n".join(_result(run, width) for run in runs)


def _result(run: Run, width: int | None) -> str:
    entry, marks = load_manifests().entries.get(run.row), Notes()

    def known(name: str) -> Metric:
        return metric(own_metric(entry, name) if entry else name)

    rows: list[list[Cell]] = [
        [
            known(name).title,
            f"{metric(name).format(m.value)} {marks.mark(m.covers, m.remarks)}".rstrip(),
            m.unit,
            "-" if m.interval is None else "-".join(metric(name).format(v) for v in m.interval),
            str(m.n),
        ]
        for name, m in run.measurements.items()
    ]
    head = [
        run.row,
        *([f"{run.status} while {run.stage}: {run.reason}"] if run.reason else []),
        *([f"weights: {run.weights}"] if run.weights else []),
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in run.absent.items():
        reasons.setdefault(why, []).append(known(name).title)
    absent = [f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()]
    table = Table(
        ["metric", "value", "unit", "95 % interval", "n"],
        rows,
        [*marks.lines(), *absent],
        title="; ".join([*head, f"record {run.id}"]),
    )
    return render([table], "text", width)
