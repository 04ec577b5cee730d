"""Everything in a results folder, and in the blocks of documents, that is made from records: written anew, or
compared with what is there. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from detection_zoo.benchmarks.compare.record import stored_comparisons
from detection_zoo.benchmarks.folders import RUNS
from detection_zoo.benchmarks.report.beside import class_accuracies, row_pictures
from detection_zoo.benchmarks.report.blocks import MARKER, renew_blocks
from detection_zoo.benchmarks.report.export import SUFFIX, source_tables, stored_tables, table_files
from detection_zoo.benchmarks.report.headline import BESIDE, HEADLINE, beside_table, headline_table
from detection_zoo.benchmarks.report.kernel_cases import stored_timings
from detection_zoo.benchmarks.report.layouts import WIDE, read_layouts
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
from detection_zoo.zoo.manifest import Manifests, load_manifests, read_manifests

PROJECT = PROJECT_RESULTS.parent
FORMATS = (*SUFFIX, "svg", "png", "html")
FIGURES = {"svg", "png"}
PAGE = "report.html"
TRACKED = {"md"}  # formats that git tracks in the checkout's results/; others are made in seconds
UNTRACKED = {f"tables/{WIDE}.md"}  # large


@dataclass
class Generated:
    """Files by their path below the folder they belong to, and what was wrong in the store."""

    files: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def stored_overview(store: Path | None = None, manifests: Manifests | None = None) -> Overview:
    """Every line of the manifests and of a store, with the comparisons and operators' timings beside it.

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
    """Make every table, figure and page of these formats; where matplotlib or jinja2 is not installed, what
    needs it is left out and becomes a problem."""
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
    """The Markdown files of a checkout that have blocks made from records."""
    every = [root / "README.md", root / "results" / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in every if path.is_file() and MARKER.search(path.read_text(encoding="utf-8"))]


def document_text(view: Overview, path: Path) -> str:
    """A document with its blocks made anew; raises ManifestError for a block that is no table, ValueError for
    broken markers."""
    stored = stored_tables(view) | {HEADLINE: [headline_table(view)], BESIDE: [beside_table(view)]}

    def render(name: str) -> str:
        tables = stored[name] if name in stored else source_tables(view, name)
        return render_tables(tables, "markdown")

    return renew_blocks(path.read_text(encoding="utf-8"), render, path.name)


def write_files(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files below a folder, each atomically; those that are the same already are left alone.
    Returns every file's path."""
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)
    return [folder / name for name in files]


def make_report(store: Path | None, out: Path | None, formats: set[str]) -> tuple[list[str], list[str]]:
    """Write the report of a store.

    Args:
        store: folder of runs; None: ./results/runs.
        out: folder to write into; None: ./results. For the checkout's own results/, the blocks of its
            documents are made anew too.
        formats: of FORMATS.

    Returns:
        The files, written or left as they were, and what was wrong in the store.
    """
    view = stored_overview(store)
    made, folder = generate(view, formats), out or results_folder()
    paths = write_files(folder, made.files)
    if folder.resolve() == PROJECT_RESULTS:
        for document in documents(PROJECT):
            paths += write_files(document.parent, {document.name: document_text(view, document).encode()})
    return [str(path) for path in paths], made.problems


def stale_report(root: Path = PROJECT) -> tuple[list[str], list[str]]:
    """What in a checkout's tracked results and documents is not what its tracked records and manifests say, a
    sentence each; and what is wrong with its records."""
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
        f"results/{name} is made from nothing any more: delete it"
        for path in sorted((folder / "tables").glob("*.md"))
        if (name := path.relative_to(folder).as_posix()) not in wanted
    ]
    sentences += [
        f"{path.relative_to(root)} has stale blocks"
        for path in documents(root)
        if path.read_text(encoding="utf-8") != document_text(view, path)
    ]
    return sentences, view.problems
