"""Data of the figures: panels of points, bars of phases, histories. Imports neither torch nor matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from detection_zoo.benchmarks.report.lines import Point, comparable
from detection_zoo.benchmarks.report.wide import Overview, WideLine, setting_title
from detection_zoo.benchmarks.spec import Metric, Run
from detection_zoo.zoo.plain import one_line

PHASES = {
    "decode_ms": "decode",
    "resize_ms": "resize + normalise",
    "copy_ms": "copy to device",
    "forward_ms": "forward",
    "postprocess_ms": "post-processing",
    "result_copy_ms": "copy back",
}
PARTS = {
    "backbone_ms": "backbone",
    "neck_ms": "neck",
    "rpn_ms": "RPN",
    "heads_ms": "heads",
    "forward_rest_ms": "rest",
}  # of the forward phase, timed in separate passes
MOST_PANELS, MOST_BARS, MOST_HISTORIES = 4, 24, 6
COMMIT_DIGITS = 7


@dataclass(frozen=True)
class Dot:
    """One point of a plot: a line of the wide table."""

    label: str
    detector: str
    x: Point
    y: Point
    trusted: bool
    on_front: bool = False


@dataclass(frozen=True)
class Panel:
    """Points of one setting, which are comparable."""

    title: str
    kind: str
    x: str
    y: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Bar:
    """Median time of each phase of one line, and of each part of its forward phase if measured, in ms."""

    label: str
    phases: dict[str, float]
    parts: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """The time of the forward phase, divided in proportion to the times of its parts in separate
        passes."""
        total = sum(self.parts.values())
        return (
            {name: self.phases["forward_ms"] * value / total for name, value in self.parts.items()}
            if total
            else {}
        )


@dataclass(frozen=True)
class Ratios:
    """Speed-up of our operators over a peer's on one device."""

    title: str
    names: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class History:
    """One metric of one row in one setting, per commit."""

    title: str
    metric: str
    commits: tuple[str, ...]
    points: tuple[Point, ...]


def panels(view: Overview, x: Metric) -> tuple[list[Panel], int]:
    """Return a panel for each of the settings with most lines that have x and an accuracy, measured settings
    first; and the number of omitted settings."""
    accuracies = [metric for metric in view.quantities.values() if metric.accuracy]
    groups: dict[tuple[str, ...], list[WideLine]] = {}
    for line in view.lines:
        if line.setting and line.point(x):
            groups.setdefault(line.setting, []).append(line)
    found = [panel for lines in groups.values() if len((panel := _panel(lines, x, accuracies)).dots) >= 2]
    found.sort(
        key=lambda panel: (
            panel.kind != "measured",
            not any(dot.trusted for dot in panel.dots),
            -len(panel.dots),
            panel.title,
        )
    )
    return found[:MOST_PANELS], max(0, len(found) - MOST_PANELS)


def _panel(lines: list[WideLine], x: Metric, accuracies: list[Metric]) -> Panel:
    """Return a panel with the accuracy metric that most lines have; the first one if equal."""
    have = Counter(metric.name for line in lines for metric in accuracies if line.point(metric))
    y = max(accuracies, key=lambda metric: have[metric.name])
    both = [(line, line.point(x), point) for line in lines if (point := line.point(y))]
    trusted = [place for place, (line, _, _) in enumerate(both) if line.trusted]
    front = {
        trusted[place]
        for place in pareto_front(
            [(both[p][1].value, both[p][2].value) for p in trusted], (x.better, y.better)
        )
    }
    dots = (
        Dot(_label(line), detector(line), px, py, line.trusted, place in front)
        for place, (line, px, py) in enumerate(both)
    )
    return Panel(
        lines[0].setting_title,
        lines[0].kind,
        x.name,
        y.name,
        tuple(sorted(dots, key=lambda dot: (dot.x.value, dot.y.value, dot.label))),
    )


def pareto_front(
    points: Sequence[tuple[float, float]], better: tuple[str, str] = ("lower", "higher")
) -> list[int]:
    """Return the indices of points that are not dominated; a dominating point is at least as good in both
    values and better in one.

    Args:
        points: (x, y) pairs.
        better: whether lower or higher is better, for x and y.

    Returns:
        Indices into `points`, best x first; equal points are all included.
    """
    signs = [1.0 if way == "lower" else -1.0 for way in better]
    cost = [(x * signs[0], y * signs[1]) for x, y in points]  # smaller is better in both
    front: list[int] = []
    for place in sorted(range(len(cost)), key=lambda place: (*cost[place], place)):
        if not front or cost[place][1] < cost[front[-1]][1] or cost[place] == cost[front[-1]]:
            front.append(place)
    return front


def _label(line: WideLine) -> str:
    return ", ".join([line.entry.backbone.name, *(line.flags if line.kind == "published" else ())])


def detector(line: WideLine) -> str:
    """Return the detector family, which sets the colour."""
    return line.entry.detector.name.split(".")[0] if line.entry.detector else "classifier"


def phase_bars(view: Overview) -> tuple[str, list[Bar], int]:
    """Return the phases of the setting with most measured phases: its title, the bars (slowest first), and
    the number of omitted lines."""
    timed = [line for line in view.lines if line.kind == "measured" and "forward_ms" in line.metrics()]
    if not timed:
        return "", [], 0
    most = Counter(line.setting for line in timed).most_common(1)[0][0]
    lines = [line for line in timed if line.setting == most]
    bars = [
        Bar(
            ", ".join([line.entry.name, *(flag for flag in line.flags if "images" not in flag)]),
            *(
                {name: line.metrics()[name].value for name in names if name in line.metrics()}
                for names in (PHASES, PARTS)
            ),
        )
        for line in lines
    ]
    bars.sort(key=lambda bar: (-sum(bar.phases.values()), bar.label))
    return lines[0].setting_title, bars[:MOST_BARS], len(timed) - min(len(bars), MOST_BARS)


def kernel_ratios(view: Overview) -> list[Ratios]:
    """Return the ratios for each device on which operators were timed with a peer's."""
    found = []
    for timings in view.kernels:
        cases = [
            (case.name, Point(case.ratio, case.ratio_interval))
            for case in timings.cases
            if case.ratio is not None
        ]
        if cases:
            title = one_line(f"{timings.environment.device_name}, {timings.backend} beside {timings.peer}")
            found.append(Ratios(title, tuple(name for name, _ in cases), tuple(point for _, point in cases)))
    return found


def histories(runs: Iterable[Run], metric: str = "model_ms") -> tuple[list[History], int]:
    """Return the histories with most runs, for rows measured at two or more commits in one setting with the
    same weights; and the number of omitted histories."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.started, run.id)):
        if metric in run.measurements and run.environment and run.environment.commit:
            groups.setdefault(
                (run.row, *comparable(run), run.weights.digest if run.weights else ""), []
            ).append(run)
    several = [
        group
        for group in groups.values()
        if len({run.environment.commit for run in group if run.environment}) >= 2
    ]
    several.sort(key=lambda group: (-len(group), group[0].row, setting_title(group[0])))
    return [_history(group, metric) for group in several[:MOST_HISTORIES]], max(
        0, len(several) - MOST_HISTORIES
    )


def _history(group: list[Run], metric: str) -> History:
    commits = [
        f"{run.environment.commit[:COMMIT_DIGITS]}{'+' if run.environment.dirty else ''}"
        for run in group
        if run.environment and run.environment.commit
    ]
    points = [Point(found.value, found.interval) for found in (run.measurements[metric] for run in group)]
    return History(f"{group[0].row}\n{setting_title(group[0])}", metric, tuple(commits), tuple(points))
