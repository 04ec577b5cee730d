"""Everything that stands in results/ and README and is made from records: written anew, or compared with what
stands there. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from detection_zoo.benchmarks.compare.record import COMPARISONS, read_comparisons
from detection_zoo.benchmarks.report.blocks import renew_blocks
from detection_zoo.benchmarks.report.export import SUFFIX, stored_tables, table_files
from detection_zoo.benchmarks.report.kernel_cases import NAME as KERNELS
from detection_zoo.benchmarks.report.kernel_cases import read_timings
from detection_zoo.benchmarks.report.tables import tables_from, text_of
from detection_zoo.benchmarks.report.wide import Overview, overview
from detection_zoo.benchmarks.store import DEFAULT_STORE, RESULTS_FOLDER, read_runs, write_whole
from detection_zoo.zoo.manifest import load_manifests

README = RESULTS_FOLDER.parent / "README.md"
FORMATS = (*SUFFIX, "svg", "png", "html")
TRACKED = ("md", "csv", "svg", "html")  # what results/ keeps; the rest is made when somebody asks for it
FIGURES = {"svg", "png"}
PAGE = "report.html"


@dataclass
class Generated:
    """Files by their path below the folder they belong to, and what was wrong in the store."""

    files: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def stored_overview(store: Path | None = None) -> Overview:
    """Every line of the manifests and of a store, and the comparisons and operators' timings beside it; None
    takes results/runs."""
    folder = store or DEFAULT_STORE
    stored, (timings, wrong) = read_runs(folder), read_timings(folder.parent / KERNELS)
    comparisons, refused = read_comparisons(folder.parent / COMPARISONS.name)
    view = overview(load_manifests(), stored.runs, [*stored.problems, *wrong, *refused])
    view.kernels, view.comparisons = timings, comparisons
    return view


def generate(view: Overview, formats: set[str]) -> Generated:
    """Make every table, figure and page of these formats.

    Raises:
        ModuleNotFoundError: matplotlib or jinja2 is not installed; says how to get it.
    """
    from tqdm import tqdm

    files: dict[str, bytes] = {}
    try:
        for part in tqdm(
            (table_files, _figures, _page), desc="report", unit="part", leave=False, disable=None
        ):
            files |= part(view, formats)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing, which draws the report: pip install -e .[report], or leave svg, png"
            " and html out of --format",
            name=error.name,
        ) from None
    return Generated(files, view.problems)


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


def readme_text(view: Overview, readme: Path = README) -> str:
    """README with its blocks made anew; raises ManifestError for a block that is no table, ValueError for
    broken markers."""
    stored = stored_tables(view)

    def render(name: str) -> str:
        return text_of(stored[name] if name in stored else tables_from(name, view.runs), "markdown")

    return renew_blocks(readme.read_text(encoding="utf-8"), render, readme.name)


def write_files(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files below a folder, each whole or not at all; those that are the same already are left alone.
    Returns every file's path."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)
    return [folder / name for name in files]


def make_report(store: Path | None, out: Path | None, formats: set[str]) -> tuple[list[str], list[str]]:
    """What `bench.py report` does.

    Args:
        store: folder of records; None takes results/runs.
        out: folder to write into; None takes results/, and makes README's blocks anew too.
        formats: of FORMATS.

    Returns:
        The files, written or found as they should be, and what was wrong in the store.
    """
    view = stored_overview(store)
    made = generate(view, formats)
    paths = write_files(out or RESULTS_FOLDER, made.files)
    if out is None:
        paths += write_files(README.parent, {README.name: readme_text(view, README).encode()})
    return [str(path if out else path.relative_to(README.parent)) for path in paths], made.problems


def stale_report() -> tuple[list[str], list[str]]:
    """What `bench.py report --check` does: what is stale, and what is wrong in the store."""
    view = stored_overview()
    return stale(view), view.problems


def stale(view: Overview, folder: Path = RESULTS_FOLDER, readme: Path = README) -> list[str]:
    """What in results/ and README is not what the records say today, a sentence each; figures are judged by
    the data they say they were made from."""
    from detection_zoo.benchmarks.report.plot import descriptions

    text = set(TRACKED) - FIGURES
    wanted = generate(view, text).files
    found = [
        f"{folder.name}/{name} is {'missing' if not (folder / name).is_file() else 'stale'}"
        for name, content in wanted.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content
    ]
    drawn = {f"figures/{name}.svg": said for name, said in descriptions(view).items()}
    found += [
        f"{folder.name}/{name} is missing or stale"
        for name, said in drawn.items()
        if not (folder / name).is_file() or said not in (folder / name).read_text(encoding="utf-8")
    ]
    ours = [
        path.relative_to(folder).as_posix()
        for part in ("tables", "figures")
        for path in sorted((folder / part).glob("*"))
    ]
    found += [
        f"{folder.name}/{name} is made from nothing any more: delete it"
        for name in ours
        if name not in wanted and name not in drawn
    ]
    if readme.read_text(encoding="utf-8") != readme_text(view, readme):
        found.append(f"{readme.name} has stale blocks")
    return found
