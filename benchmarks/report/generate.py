"""Generate or check all files of a results folder, and all blocks of documents, that are computed from
records. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from detection_zoo.benchmarks.compare.record import stored_comparisons
from detection_zoo.benchmarks.folders import RUNS
from detection_zoo.benchmarks.report.beside import class_accuracies, row_pictures
from detection_zoo.benchmarks.report.blocks import MARKER, renew_blocks
from detection_zoo.benchmarks.report.headline import BESIDE, HEADLINE, beside_table, headline_table
from detection_zoo.benchmarks.report.kernel_cases import stored_timings
from detection_zoo.benchmarks.report.layouts import WIDE, read_layouts
from detection_zoo.benchmarks.report.tables import SUFFIX, source_tables, stored_tables, table_files
from detection_zoo.benchmarks.report.training_logs import training_logs
from detection_zoo.benchmarks.report.wide import Overview, overview
from detection_zoo.benchmarks.store import (
    PROJECT_RESULTS,
    record_folders,
    results_folder,
    stored_runs,
    write_whole,
)
from detection_zoo.benchmarks.tabular import render as render_tables
from detection_zoo.zoo.manifest import Manifests
from detection_zoo.zoo.manifest_files import load_manifests, read_manifests

PROJECT = PROJECT_RESULTS.parent
FORMATS = (*SUFFIX, "svg", "png", "html")
FIGURES = {"svg", "png"}
PAGE = "report.html"
TRACKED = {"md"}  # formats that are tracked by git in results/
UNTRACKED = {f"tables/{WIDE}.md"}  # large


@dataclass
class Generated:
    """Content of files by path below the output folder, and problems of the store."""

    files: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def stored_overview(store: Path | None = None, manifests: Manifests | None = None) -> Overview:
    """Return all lines of the manifests and of a store, with its comparisons and operator timings.

    Args:
        store: folder of runs; None: ./results/runs.
        manifests: None: the project's.
    """
    stored, (timings, wrong) = stored_runs(store), stored_timings(store)
    comparisons, refused = stored_comparisons(store)
    view = overview(manifests or load_manifests(), stored.runs, [*stored.problems, *wrong, *refused])
    view.kernels, view.comparisons = timings, comparisons
    folder = store or results_folder() / RUNS
    view.classes = class_accuracies(folder, stored.runs)
    view.pictures = row_pictures(folder, view.manifests.entries)
    view.trainings = training_logs(record_folders(RUNS, store), view.manifests.entries)
    return view


def generate(view: Overview, formats: set[str]) -> Generated:
    """Generate every table, figure and page in these formats; if matplotlib or jinja2 is not installed, the
    files that need it are omitted and a problem is added."""
    made = Generated(problems=list(view.problems))
    for part, what in ((table_files, "tables"), (_figures, "figures"), (_page, "the page")):
        try:
            made.files |= part(view, formats)
        except ModuleNotFoundError as error:
            made.problems.append(
                f"{what} left out: {error.name} is not installed; pip install 'detection-zoo[report,plots]'"
            )
    return made


def _figures(view: Overview, formats: set[str]) -> dict[str, bytes]:
    if not formats & FIGURES:
        return {}
    from detection_zoo.benchmarks.report.plot import figure_files

    return figure_files(view, formats)


def _page(view: Overview, formats: set[str]) -> dict[str, bytes]:
    if "html" not in formats:
        return {}
    from detection_zoo.benchmarks.report.html_page import html_page

    return {PAGE: html_page(view).encode()}


def documents(root: Path) -> list[Path]:
    """Return the Markdown files of a checkout that have generated blocks."""
    every = [root / "README.md", root / "results" / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in every if path.is_file() and MARKER.search(path.read_text(encoding="utf-8"))]


def document_text(view: Overview, path: Path) -> str:
    """Return a document with its blocks generated again; raises ManifestError for an unknown table,
    ZooError for invalid markers."""
    stored = stored_tables(view) | {HEADLINE: [headline_table(view)], BESIDE: [beside_table(view)]}

    def render(name: str) -> str:
        tables = stored[name] if name in stored else source_tables(view, name)
        return render_tables(tables, "markdown")

    return renew_blocks(path.read_text(encoding="utf-8"), render, path.name)


def write_files(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files below a folder, each atomically, unless they are up to date; return all paths."""
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)
    return [folder / name for name in files]


def make_report(store: Path | None, out: Path | None, formats: set[str]) -> tuple[list[str], list[str]]:
    """Write the report of a store.

    Args:
        store: folder of runs; None: ./results/runs.
        out: output folder; None: ./results. For results/ of the checkout, the blocks of its documents are
            updated too.
        formats: of FORMATS.

    Returns:
        The paths of all files, and the problems of the store.
    """
    view = stored_overview(store)
    made, folder = generate(view, formats), out or results_folder()
    paths = write_files(folder, made.files)
    if folder.resolve() == PROJECT_RESULTS:
        for document in documents(PROJECT):
            paths += write_files(document.parent, {document.name: document_text(view, document).encode()})
    return [str(path) for path in paths], made.problems


def stale_report(root: Path = PROJECT) -> tuple[list[str], list[str]]:
    """Return a message for each tracked result or document that differs from the one generated from the
    tracked records and manifests; and the problems of the records."""
    folder = root / "results"
    view = stored_overview(folder / RUNS, read_manifests(root / "manifests"))
    view.layouts = read_layouts(root / "manifests" / "tables")
    wanted = generate(view, TRACKED).files
    sentences = [
        f"results/{name} is {'stale' if (folder / name).is_file() else 'missing'}"
        for name, content in wanted.items()
        if name not in UNTRACKED
        and not ((folder / name).is_file() and (folder / name).read_bytes() == content)
    ]
    sentences += [
        f"results/{name} is not generated any more: delete it"
        for path in sorted((folder / "tables").glob("*.md"))
        if (name := path.relative_to(folder).as_posix()) not in wanted
    ]
    sentences += [
        f"{path.relative_to(root)} has stale blocks"
        for path in documents(root)
        if path.read_text(encoding="utf-8") != document_text(view, path)
    ]
    return sentences, view.problems
