"""Figures from stored records: accuracy against time, memory and parameters, phases, history; the same
records give the same bytes. Does not import torch."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from detection_zoo.benchmarks.report.figure_data import (
    PARTS,
    PHASES,
    Bar,
    Dot,
    History,
    Panel,
    Ratios,
    histories,
    kernel_ratios,
    panels,
    phase_bars,
)
from detection_zoo.benchmarks.report.lines import Point
from detection_zoo.benchmarks.report.wide import Overview
from detection_zoo.benchmarks.spec import digest_of, metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AGAINST = {
    "ap_time": "time_ms",
    "ap_memory": "memory_gib",
    "ap_parameters": "parameters_m",
}  # figure -> metric of the x axis
# distinct for the colour-blind (after Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#5e5e5e", "#7a5cff", "#56b4e9")
INK, FAINT = "#1b1f24", "#8b949e"
STYLE = {
    "svg.hashsalt": "detection-zoo",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 120,
}
TITLE_WIDTH = 58  # characters of a title in a figure with two columns
LABEL_GAP = 0.06  # minimum distance of two labels, as a fraction of the panel height


def figure_files(view: Overview, formats: set[str]) -> dict[str, bytes]:
    """Return every non-empty figure as SVG and PNG, by path below results/; the metadata contain a hash of
    the data."""
    import matplotlib

    forms = [form for form in ("svg", "png") if form in formats]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        return {
            f"figures/{name}.{form}": content
            for name, (data, draw) in _plans(view).items()
            if data
            for form, content in zip(forms, _saved(draw(), data, forms), strict=True)
        }


def described(data: Any) -> str:
    """Return the description for the metadata of a figure; a figure with another one is out of date."""
    return f"made from stored records by bench.py report; data sha256 {digest_of(data)}"


def _plans(view: Overview) -> dict[str, tuple[list[Any], Callable[[], Figure]]]:
    """Figure -> its data (empty: no figure) and the function that draws it."""
    plans: dict[str, tuple[list[Any], Callable[[], Figure]]] = {}
    for name, x in AGAINST.items():
        found, left_out = panels(view, view.quantities[x])
        plans[name] = (
            [*map(asdict, found), left_out] if found else [],
            lambda found=found, left_out=left_out: _draw_panels(found, left_out),
        )
    title, bars, without = phase_bars(view)
    plans["phases"] = (
        [title, *map(asdict, bars), without] if bars else [],
        lambda: _draw_phases(title, bars, without),
    )
    drawn, left_out = histories(view.runs)
    plans["history"] = (
        [*map(asdict, drawn), left_out] if drawn else [],
        lambda: _draw_histories(drawn, left_out),
    )
    ratios = kernel_ratios(view)
    plans["kernels"] = ([*map(asdict, ratios)], lambda: _draw_ratios(ratios))
    return plans


def _saved(figure: Figure, data: Any, forms: list[str]) -> Iterator[bytes]:
    from matplotlib.backend_bases import get_registered_canvas_class

    get_registered_canvas_class("svg")(figure)  # texts are measured as in SVG, for PNG too
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)  # it is laid out: savefig would draw everything twice for that
    for form in forms:
        content = io.BytesIO()
        # no date and no library version, so that equal data give equal bytes
        unsaid = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(content, format=form, metadata={"Description": described(data), **unsaid})
        yield content.getvalue()


def _grid(count: int, height: float, width: float = 4.6) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes in at most two columns."""
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _draw_panels(found: list[Panel], left_out: int) -> Figure:
    figure, axes = _grid(len(found), 3.5)
    families = sorted({dot.detector for panel in found for dot in panel.dots})
    colours = {family: COLOURS[place % len(COLOURS)] for place, family in enumerate(families)}
    for axis, panel in zip(axes, found, strict=True):
        _draw_panel(axis, panel, colours)
    _legend(figure, colours)
    _left_out(figure, left_out, "settings")
    return figure


def _draw_panel(axis: Axes, panel: Panel, colours: dict[str, str]) -> None:
    x, y = metric(panel.x), metric(panel.y)
    for dots in _alike(panel.dots):
        across, up = [dot.x for dot in dots], [dot.y for dot in dots]
        axis.errorbar(
            [point.value for point in across],
            [point.value for point in up],
            xerr=_reaches(across),
            yerr=_reaches(up),
            elinewidth=0.9,
            capsize=1.5,
            linestyle="",
            **_marker(dots[0], panel.kind, colours[dots[0].detector]),
        )
    front = [dot for dot in panel.dots if dot.on_front]
    axis.plot(
        [dot.x.value for dot in front],
        [dot.y.value for dot in front],
        drawstyle="steps-post",
        color=INK,
        linewidth=0.9,
        zorder=1,
    )
    _label_front(axis, panel)
    axis.set_xlabel(f"{x.title} ({x.unit})")
    axis.set_ylabel(f"{y.title} ({y.unit})")
    axis.margins(0.12)
    axis.set_title(textwrap.fill(f"{panel.kind}: {panel.title}", TITLE_WIDTH))


def _alike(dots: Iterable[Dot]) -> list[list[Dot]]:
    """Group dots with equal style, to draw them together."""
    groups: dict[tuple[str, bool], list[Dot]] = {}
    for dot in dots:
        groups.setdefault((dot.detector, dot.trusted), []).append(dot)
    return list(groups.values())


def _label_front(axis: Axes, panel: Panel) -> None:
    """Draw labels above the front, where there are no dots: left of a dot, or right of it near the left
    edge."""
    places = [dot.x.value for dot in panel.dots]
    edge = min(places) + 0.3 * (max(places) - min(places))
    for dot in _apart(panel):
        left = dot.x.value > edge
        axis.annotate(
            dot.label,
            (dot.x.value, dot.y.value),
            xytext=(-4 if left else -2, 3 if left else 6),
            textcoords="offset points",
            fontsize=6.5,
            ha="right" if left else "left",
        ).set_in_layout(False)


def _marker(dot: Dot, kind: str, colour: str) -> dict[str, Any]:
    """Marker: filled for measured, hollow for published, a cross if the accuracy is meaningless."""
    if not dot.trusted:
        return {"marker": "x", "color": FAINT, "markersize": 4}
    return {
        "marker": "o" if kind == "measured" else "D",
        "color": colour,
        "markerfacecolor": colour if kind == "measured" else "white",
        "markersize": 5 if kind == "measured" else 4,
    }


def _reaches(points: list[Point]) -> list[list[float]] | None:
    """Return error bar lengths from 95 % intervals, at least 0; None if there is no interval."""
    if all(point.interval is None for point in points):
        return None
    edges = [point.interval or (point.value, point.value) for point in points]
    return [
        [max(0.0, point.value - low) for point, (low, _) in zip(points, edges, strict=True)],
        [max(0.0, high - point.value) for point, (_, high) in zip(points, edges, strict=True)],
    ]


def _apart(panel: Panel) -> list[Dot]:
    """Return dots of the front whose labels do not overlap."""
    heights = [dot.y.value for dot in panel.dots]
    gap = LABEL_GAP * (max(heights) - min(heights))
    chosen: list[Dot] = []
    for dot in (dot for dot in panel.dots if dot.on_front):
        if not chosen or dot.y.value - chosen[-1].y.value >= gap:
            chosen.append(dot)
    return chosen


def _legend(figure: Figure, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="o", linestyle="", color=INK, label="measured"),
        Line2D(
            [],
            [],
            marker="D",
            linestyle="",
            color=INK,
            markerfacecolor="white",
            markersize=4,
            label="published",
        ),
        Line2D(
            [],
            [],
            marker="x",
            linestyle="",
            color=FAINT,
            label="untrained or synthetic: accuracy is meaningless",
        ),
        Line2D([], [], color=INK, linewidth=0.9, label="Pareto front"),
    ]
    families = [
        Line2D([], [], marker="s", linestyle="", color=colour, label=family)
        for family, colour in colours.items()
    ]
    figure.legend(
        handles=[*marks, *families],
        loc="outside lower center",
        ncols=min(6, len(marks) + len(families)),
        fontsize=7,
    )


def _left_out(figure: Figure, count: int, what: str) -> None:
    if count:
        figure.suptitle(
            f"{count} more {what} are not shown; report.html has them all",
            fontsize=7,
            color=FAINT,
            x=0.995,
            ha="right",
        )


def _draw_phases(title: str, bars: list[Bar], without: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 1.4 + 0.24 * len(bars)), layout="constrained")
    axis = figure.subplots()
    shown = bars[::-1]  # the first bar at the top
    start = [0.0] * len(shown)
    for colour, (name, label) in zip(COLOURS[: len(PHASES)], PHASES.items(), strict=True):
        widths = [bar.phases.get(name, 0.0) for bar in shown]
        axis.barh([bar.label for bar in shown], widths, left=start, color=colour, label=label, height=0.7)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    _draw_parts(axis, shown)
    axis.set_xlabel(
        "median of each phase (ms per image); thin strips: parts of the forward phase, from separate passes"
    )
    axis.set_title(f"measured: {title}", loc="right")
    axis.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=len(PHASES), fontsize=7)
    _left_out(figure, without, "measured lines")
    return figure


def _draw_parts(axis: Axes, bars: list[Bar]) -> None:
    """Draw the parts of the forward phase as a thin grey strip below each bar."""
    start = [
        sum(bar.phases.get(name, 0.0) for name in list(PHASES)[: list(PHASES).index("forward_ms")])
        for bar in bars
    ]
    for grey, (name, label) in zip(
        ("#222222", "#777777", "#aaaaaa", "#444444", "#dddddd"), PARTS.items(), strict=True
    ):
        widths = [bar.shares.get(name, 0.0) for bar in bars]
        if any(widths):
            places = [place - 0.42 for place in range(len(bars))]
            axis.barh(places, widths, left=start, color=grey, label=label, height=0.14)
        start = [a + b for a, b in zip(start, widths, strict=True)]


def _draw_ratios(ratios: list[Ratios]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(9.2, sum(1.0 + 0.26 * len(one.names) for one in ratios)), layout="constrained")
    axes = figure.subplots(
        len(ratios),
        1,
        squeeze=False,
        gridspec_kw={"height_ratios": [1.0 + 0.26 * len(one.names) for one in ratios]},
    )
    for axis, one in zip(axes.flat, ratios, strict=True):
        values = [point.value for point in one.points]
        axis.barh(
            one.names,
            [value - 1 for value in values],
            left=1,
            xerr=_reaches(list(one.points)),
            ecolor=INK,
            capsize=1.5,
            height=0.65,
            color=[COLOURS[2] if value >= 1 else COLOURS[1] for value in values],
        )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.axvline(1, color=INK, linewidth=0.9)
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set_xlabel("speed-up over the peer")
        axis.set_title(f"measured: {one.title}", loc="right")
    return figure


def _draw_histories(drawn: Iterable[History], left_out: int) -> Figure:
    drawn = list(drawn)
    figure, axes = _grid(len(drawn), 2.6)
    for axis, history in zip(axes, drawn, strict=True):
        places = list(range(len(history.points)))
        axis.errorbar(
            places,
            [point.value for point in history.points],
            yerr=_reaches(list(history.points)),
            fmt="o-",
            color=COLOURS[0],
            markersize=4,
            linewidth=0.9,
            capsize=1.5,
        )
        axis.set_xticks(places, history.commits, rotation=30, ha="right")
        spec = metric(history.metric)
        axis.set_ylabel(f"{spec.title} ({spec.unit})")
        axis.set_title("\n".join(textwrap.fill(part, TITLE_WIDTH) for part in history.title.splitlines()))
        axis.margins(y=0.3)
    _left_out(figure, left_out, "histories")
    return figure
