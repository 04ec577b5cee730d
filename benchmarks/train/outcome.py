"""Outputs of a finished training run besides its checkpoints: a results table, curves,
TensorBoard events."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.tabular import Table, render
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.training.distributed import Process
from detection_zoo.zoo.training.metrics_log import peak_mib
from detection_zoo.zoo.training.plan import Plan
from detection_zoo.zoo.training.trainer import EVALUATIONS, METRICS, Outcome

COLUMNS = ["model", "GPUs", "batch", "lr", "lr_decay", "max_epoch", "speed/epoch", "memory/GPU", "mAP"]


def result_table(name: str, plan: Plan, done: Outcome, process: Process) -> Table:
    """Return the results of a run in the columns of the sources' READMEs.

    lr_decay and max_epoch count epochs; speed is the mean time per iteration times the iterations per epoch;
    memory is the peak of the first process: allocated on a GPU, resident on a CPU.
    """
    schedule = plan.schedule
    scale = 1 if schedule.epochs is not None else plan.updates_per_epoch
    steps = [f"{step / scale:.3g}" for step in schedule.steps]
    devices = f"{process.world} {'GPU' if process.device.type == 'cuda' else 'CPU'}"
    known = done.seconds == done.seconds
    speed = timedelta(seconds=round(done.seconds * plan.updates_per_epoch)) if known else "-"
    accuracy = next((f"{value:.1f} ({key})" for key, value in done.metrics.items()), "-")
    row = [
        *(name, devices, str(schedule.images_per_batch * plan.accumulate), f"{schedule.lr:g}"),
        *(", ".join(steps) or "-", f"{plan.epoch(done.iterations):.3g}", str(speed)),
        *(f"{peak_mib(process.device):.0f} MiB", accuracy),
    ]
    return Table(COLUMNS, [row], name="training", title=f"{name}: training")


def write_results(folder: Path, table: Table, width: int | None = None) -> str:
    """Write results.md; return its text, or the table for a terminal of this width."""
    text = render([table], "markdown").rstrip("\n")
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return text if width is None else render([table], "text", width).rstrip("\n")


def write_curves(folder: Path) -> Path | None:
    """Plot metrics.csv and evaluations.csv as curves.svg: loss, learning rate, accuracy; None without
    matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    updates, evaluations = _columns(folder / METRICS), _columns(folder / EVALUATIONS)
    if not updates:
        return None
    rows = 3 if evaluations else 2
    with matplotlib.rc_context({"svg.hashsalt": "detection-zoo", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7, 2.4 * rows))
        places = {"left": 0.12, "right": 0.98, "top": 0.98, "hspace": 0.08}
        axes = figure.subplots(rows, 1, sharex=True, gridspec_kw=places)
        losses = updates["loss"]
        axes[0].plot(updates["iteration"], losses, lw=0.5, alpha=0.4, color="#0072b2")
        last = [[v for v in losses[max(i - 19, 0) : i + 1] if math.isfinite(v)] for i in range(len(losses))]
        smoothed = [sum(each) / len(each) if each else math.nan for each in last]
        axes[0].plot(updates["iteration"], smoothed, color="#0072b2")
        axes[0].set_ylabel("loss")
        shown = [losses, updates["lr"]]
        axes[1].plot(updates["iteration"], updates["lr"], color="#009e73")
        axes[1].set_ylabel("learning rate")
        if evaluations:
            name = next(key for key in evaluations if key not in ("iteration", "epoch"))
            axes[2].plot(evaluations["iteration"], evaluations[name], "o-", color="#d55e00")
            axes[2].set_ylabel(f"{name}, %")
            shown.append(evaluations[name])
        axes[-1].set_xlabel("updates")
        # without limits, one large value would create too many ticks
        axes[-1].set_xlim(0, updates["iteration"][-1])
        for axis, values in zip(axes, shown, strict=True):
            axis.set_ylim(0, 1.05 * max([v for v in values if math.isfinite(v)], default=1) or 1)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    path = folder / "curves.svg"
    path.write_bytes(content.getvalue())
    return path


def _columns(path: Path) -> dict[str, list[float]]:
    lines = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    return {name: [float(line[name] or "nan") for line in lines] for name in (lines[0] if lines else ())}


def event_writer(folder: Path) -> tuple[Callable[[Mapping[str, Any]], None], Callable[[], None]]:
    """Return a function that writes lines of metrics.csv and evaluations.csv as TensorBoard events, and one
    that closes the writer.

    Tags are the columns' names, `total_loss` for the sum.

    Raises:
        ManifestError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ManifestError(
            "--tensorboard needs the package tensorboard: pip install 'detection-zoo[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder / "events"))

    def observe(values: Mapping[str, Any]) -> None:
        step = int(values["iteration"])
        for name, value in values.items():
            if name not in ("iteration", "images", "skipped"):
                writer.add_scalar("total_loss" if name == "loss" else name, value, step)

    return observe, writer.close
